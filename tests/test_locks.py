# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whoever waits keeps nobody else waiting (facts.md 4; faults.md 11, 18; style.md c7)."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fsutil
from bed import Guest, Mount, raises_errno, sh, wait_for, within
from conftest import MakeGuest, MakeMount
from fsutil import Caller, HungLibvirtd, defined, hung  # noqa: F401

MANY = [f"many{i:02}" for i in range(20)]


@pytest.fixture
def many(mnt: Mount) -> Iterator[list[Path]]:
    """Machines without a disk: a mkdir there waits for libvirt and then fails."""
    with defined(*MANY):
        paths = [mnt.domains / name for name in MANY]
        wait_for(lambda: all(path.exists() for path in paths), 5, "shown")
        yield paths


def quick(command: str) -> str:
    """In a process of its own, so that one that hangs can be told.

    The inventory may just be a second old: then it is waited for, once.  Whoever waits
    for the host waits for ever, so that what a loaded machine adds can be allowed for.
    """
    with within(5, command):
        return sh(command, check=False, timeout=30).stdout


def blocked(callers: list[Caller]) -> list[Caller]:
    for caller in callers:
        caller.wait_blocked()
    return callers


# style.md c7, 1: more of them than there are threads of any kind
def test_twenty_blocked_mkdirs_keep_nobody_waiting(
        many: list[Path], mnt: Mount, hung: HungLibvirtd) -> None:
    hung.hang()
    callers = blocked([fsutil.mkdir(path / "backups/x") for path in many])
    with within(5, "finding out that libvirtd hangs"):
        many[0].stat()
    quick(f"ls {mnt.path}")
    assert len(quick(f"ls {mnt.domains}").split()) >= len(many)
    quick(f"ls -l {mnt.domains}")
    for path in many[::6]:
        assert quick(f"cat {path}/state") == "shutoff\n"
        assert quick(f"cat {path}/error") == ""
        assert "backup NAME" in quick(f"cat {path}/control")
        quick(f"stat {path} {path}/backups {path}/control")
        assert quick(f"ls -la {path}/backups") != ""
        assert quick(f"ls {path}").split()[0] == "backups"
        assert quick(f"find {path} -name x") == ""
    with within(5, "a second mkdir"), raises_errno(errno.EBUSY):
        (many[0] / "backups/y").mkdir()
    assert "backup x" in fsutil.last_failure(many[0]).text
    with within(5, "a control file"), raises_errno(errno.EBUSY):
        fsutil.command(many[0], "suspend")
    quick(f"rmdir {many[0]}/backups/z {many[0]}/backups")
    assert not any(caller.is_over() for caller in callers)
    hung.go_on()
    assert {caller.errno() for caller in callers} == {errno.EOPNOTSUPP}
    assert all(os.listdir(path / "backups") == [] for path in many)


# Both the four that run and those that wait in the queue behind them.
def test_blocked_mkdirs_are_interrupted(many: list[Path], hung: HungLibvirtd) -> None:
    hung.hang()
    handler = "signal.signal(signal.SIGINT, lambda *a: None)"
    callers = blocked([fsutil.mkdir(path / "backups/x", prepare=handler) for path in many])
    with within(2, "twenty interrupts"):
        for caller in callers:
            os.kill(caller.pid, signal.SIGINT)
        assert {caller.errno(5) for caller in callers} == {errno.EINTR}
    hung.go_on()

    def usable() -> bool:
        with contextlib.suppress(AssertionError), raises_errno(errno.EOPNOTSUPP):
            (many[0] / "backups/y").mkdir()
            return False
        return fsutil.last_failure(many[0]).errno == "EOPNOTSUPP"

    wait_for(usable, 10, "the first machine is free again")


def test_those_who_look_can_be_killed(many: list[Path], hung: HungLibvirtd) -> None:
    hung.hang()
    [caller] = blocked([fsutil.mkdir(many[0] / "backups/x")])
    second = fsutil.mkdir(many[0] / "backups/y")
    assert second.errno(2) == errno.EBUSY
    os.kill(caller.pid, signal.SIGKILL)
    wait_for(caller.is_over, 1, "killed")
    hung.go_on()


@pytest.fixture
def ask() -> Iterator[Callable[[str], str]]:
    """Has one shell run a command; its output."""
    with subprocess.Popen(["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as shell:
        def run(command: str) -> str:
            shell.stdin.write(f"{command}\necho END\n")
            shell.stdin.flush()
            return "".join(iter(shell.stdout.readline, "END\n"))
        yield run
        shell.stdin.close()


def test_shell_in_the_collection_finds_itself_again(
        many: list[Path], ask: Callable[[str], str], hung: HungLibvirtd) -> None:
    backups = many[0] / "backups"
    ask(f"cd {backups}")
    assert ask("/bin/pwd") == f"{backups}\n"
    hung.hang()
    [caller] = blocked([fsutil.mkdir(backups / "x")])
    with within(1, "looking"):
        os.listdir(backups)
        assert ask("pwd") == f"{backups}\n"         # the shell's own
    hung.go_on()
    assert caller.errno() == errno.EOPNOTSUPP
    os.listdir(backups)
    assert ask("/bin/pwd") == f"{backups}\n"
    assert ask("ls -a") == ".\n..\n"


# The one who waits may sit there himself, as in `cd backups; mkdir x`.
def test_own_directory_is_found_again(many: list[Path], hung: HungLibvirtd) -> None:
    backups = many[0] / "backups"
    caller = Caller(fsutil.MKDIR, "os.chdir(sys.argv[1])\n    try: os.mkdir('x')\n    except OSError as e: n = e.errno\n"
                    "    os.listdir('.'); os.stat(sys.argv[1]); os.getcwd(); raise OSError(n, '')",
                    backups)
    hung.hang()
    blocked([caller])
    os.listdir(backups)
    hung.go_on()
    assert caller.errno() == errno.EOPNOTSUPP


### A host that does not answer (faults.md 11)

def test_hanging_libvirtd_is_waited_for_a_second_at_most(
        many: list[Path], mnt: Mount, hung: HungLibvirtd) -> None:
    xml = (many[0] / "domain.xml").read_text()
    hung.hang()
    with within(2.5, "ls"):
        assert len(os.listdir(mnt.domains)) >= len(many)
    for _ in range(3):
        quick(f"ls -l {mnt.domains}; cat {many[1]}/state {many[1]}/uuid {many[1]}/error")
    wait_for(lambda: "stale: yes" in (mnt.path / ".vmsnapfs/stats").read_text(), 3, "stale")
    with within(2, "stat of a text that libvirt makes"):
        assert (many[0] / "domain.xml").stat().st_size == len(xml)
    with within(2, "open of one"):
        assert (many[0] / "domain.xml").read_text() == xml      # the last one that was seen
    with within(2, "stat of one that was never seen"), raises_errno(errno.ETIMEDOUT):
        (many[2] / "domain.xml").stat()
    with within(1, "another"), raises_errno(errno.ETIMEDOUT):
        (many[2] / "domain.xml").open()
    hung.go_on()
    wait_for(lambda: "stale: no" in (mnt.path / ".vmsnapfs/stats").read_text(), 10, "fresh")
    assert "many02" in (many[2] / "domain.xml").read_text()


def test_action_that_gets_no_answer_is_etimedout(
        off_guest: MakeGuest, mount: MakeMount, hung: HungLibvirtd) -> None:
    guest = off_guest()
    vm = mount("qemu:///system", "action-timeout=1").domains / guest.name
    wait_for(vm.exists, 5, "shown")
    hung.hang()
    caller = fsutil.mkdir(vm / "backups/x")
    assert caller.errno(5) == errno.ETIMEDOUT
    assert fsutil.last_failure(vm).errno == "ETIMEDOUT"
    hung.go_on()
    wait_for(lambda: fsutil.last_failure(vm).errno != "ETIMEDOUT", 10, "what came of it")
    assert fsutil.last_failure(vm).errno == "ECANCELED"
    assert os.listdir(vm / "backups") == []
    (vm / "backups/x").mkdir()
    (vm / "backups/x").rmdir()


def test_long_verbs_have_no_deadline(
        off_guest: MakeGuest, mount: MakeMount, hung: HungLibvirtd) -> None:
    domains = mount("qemu:///system", "action-timeout=1").domains
    one, two, other = (domains / off_guest().name for _ in range(3))
    wait_for(other.exists, 5, "shown")
    (one / "snapshots/s").mkdir()
    hung.hang()
    callers = [fsutil.write(one / "snapshots/s/control", "delete"),
               fsutil.write(two / "control", "snapshot s memory=external")]
    for caller in callers:
        caller.wait_blocked()
    assert fsutil.mkdir(other / "backups/x").errno(5) == errno.ETIMEDOUT
    # Both began before the one whose deadline has passed.
    assert not any(caller.is_over() for caller in callers)
    hung.go_on()
    assert callers[0].errno() == 0 and not (one / "snapshots/s").exists()
    assert callers[1].errno() == errno.EINVAL
    wait_for(lambda: fsutil.last_failure(other).errno == "ECANCELED", 10, "what came of it")


### Ending

def test_rmdir_that_waits_for_a_reader_keeps_nobody_waiting(
        off_guest: MakeGuest, mnt: Mount) -> None:
    vm = mnt.domains / off_guest().name
    wait_for(vm.exists, 5, "shown")
    (vm / "backups/x").mkdir()
    with (vm / "backups/x/disks/vda.raw").open("rb"):
        caller = fsutil.rmdir(vm / "backups/x")
        caller.wait_blocked()
        quick(f"ls -l {vm}/backups; cat {vm}/backups/x/state")
        assert caller.errno() == errno.EBUSY
    (vm / "backups/x").rmdir()


def test_rmdir_does_not_wait_for_ever(guest: Guest, mnt: Mount, hung: HungLibvirtd) -> None:
    vm = mnt.domains / guest.name
    wait_for(vm.exists, 5, "shown")
    (vm / "backups/x").mkdir()
    hung.hang()
    with within(3, "rmdir"):
        assert fsutil.rmdir(vm / "backups/x").errno() == 0
    assert (vm / "backups/x/state").read_text().startswith("ending")
    with within(2, "mkdir"), raises_errno(errno.EBUSY):
        (vm / "backups/y").mkdir()
    assert "ending" in fsutil.last_failure(vm).text
    hung.go_on()
    wait_for(lambda: not (vm / "backups/x").exists(), 20, "its end")
    (vm / "backups/y").mkdir()
    (vm / "backups/y").rmdir()
