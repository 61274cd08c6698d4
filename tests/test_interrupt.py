# SPDX-License-Identifier: LGPL-2.1-or-later
"""Signals to whoever waits (facts.md 4, faults.md 8 to 10; style.md c7, 2)."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fsutil
from bed import Guest, Mount, sh, wait_for, within
from fsutil import Caller, HungLibvirtd, hung  # noqa: F401

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL]
HANDLED = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]
# The kernel reports them as interrupts as well: nobody means the end by them.
HARMLESS = [signal.SIGALRM, signal.SIGCHLD, signal.SIGUSR1, signal.SIGWINCH, signal.SIGIO]

HANDLE = "for n in (1, 2, 3, 10, 14, 15, 17, 28, 29): signal.signal(n, lambda *a: None)"
# os.write() of python goes on after a signal; write(2) itself does not.
WRITE = ("import ctypes; c = ctypes.CDLL(None, use_errno=True); "
         "n = c.write(os.open(sys.argv[1], os.O_WRONLY), b'backup x', 8); e = ctypes.get_errno(); "
         "(_ for _ in ()).throw(OSError(e, '')) if n < 0 else None")


@pytest.fixture(scope="module")
def machine() -> Iterator[Guest]:
    guest = Guest("intr1")
    guest.define()
    yield guest
    guest.undefine()


@pytest.fixture
def vm(machine: Guest, mnt: Mount) -> Path:
    path = mnt.domains / machine.name
    wait_for(path.exists, 5, "shown")
    return path


Start = Callable[[Path], Caller]


def by_mkdir(vm: Path) -> Caller:
    return fsutil.mkdir(vm / "backups/x", prepare=HANDLE)


def by_command(vm: Path) -> Caller:
    return Caller(fsutil.WRITE, WRITE, vm / "control", prepare=HANDLE)


both = pytest.mark.parametrize("start", [by_mkdir, by_command], ids=["mkdir", "control"])


def wait_undone(vm: Path) -> None:
    """No backup, and another can be made: nothing is left of the first."""
    def made() -> bool:
        try:
            (vm / "backups/after").mkdir()
        except OSError as error:
            assert error.errno == errno.EBUSY, error
            return False
        return True

    wait_for(made, 15, "another backup")
    assert sorted(os.listdir(vm / "backups")) == ["after", "latest"]
    fsutil.command(vm / "backups/after", "end")


def wait_noticed(caller: Caller) -> None:
    """After its first signal a caller waits for the end alone, in state D."""
    wait_for(lambda: fsutil.process_state(caller.pid) == "D", 5, "the signal is noticed")


### What ends

@both
@pytest.mark.parametrize("number", HANDLED)
def test_signal_with_a_handler_is_eintr(
        vm: Path, hung: HungLibvirtd, start: Start, number: int) -> None:
    hung.hang()
    caller = start(vm)
    caller.wait_blocked()
    with within(0.5, "the interrupt"):           # 120 ms for the undoing, and python's end
        os.kill(caller.pid, number)
        assert caller.errno(2) == errno.EINTR
    hung.go_on()
    wait_undone(vm)


@both
@pytest.mark.parametrize("number", ENDING)
def test_signal_ends_the_process(vm: Path, hung: HungLibvirtd, start: Start, number: int) -> None:
    hung.hang()
    script, where = ((f"mkdir {vm}/backups/x", fsutil.MKDIR) if start is by_mkdir else
                     (f"tee {vm}/control <<<'backup x'", fsutil.WRITE))
    # Who runs the tests may have told us to ignore signals (nohup).
    script = f"exec env --default-signal {script}"
    process = subprocess.Popen(["bash", "-c", script], stdout=subprocess.DEVNULL)
    wait_for(lambda: fsutil.is_waiting(process.pid, where), 10, "it waits")
    with within(0.5, "the signal"):
        process.send_signal(number)
        assert process.wait(10) == -number
    hung.go_on()
    wait_undone(vm)
    assert "x" not in os.listdir(vm / "backups")


# What was undone after its caller had gone is told.
def test_outcome_of_an_interrupted_mkdir_is_in_error(vm: Path, hung: HungLibvirtd) -> None:
    hung.hang()
    caller = by_mkdir(vm)
    caller.wait_blocked()
    os.kill(caller.pid, signal.SIGINT)
    assert caller.errno(2) == errno.EINTR
    hung.go_on()
    wait_for(lambda: fsutil.failures(vm), 10, "a line")
    failure = fsutil.last_failure(vm)
    assert failure.errno == "ECANCELED"
    assert failure.operation.startswith("mkdir ") and f"pid={caller.pid}" in failure.who
    wait_undone(vm)


# Only the write whose caller was interrupted ends; its file is as good as before.
def test_control_file_works_after_an_interrupt(vm: Path, hung: HungLibvirtd) -> None:
    hung.hang()
    caller = by_command(vm)
    caller.wait_blocked()
    os.kill(caller.pid, signal.SIGTERM)
    assert caller.errno(2) == errno.EINTR
    hung.go_on()

    def free() -> bool:
        return sh(f"echo backup y > {vm}/control", check=False).returncode == 0

    wait_for(free, 10, "a second command")
    fsutil.command(vm / "backups/y", "end")


### What does not

@both
def test_harmless_signals_cancel_nothing(vm: Path, hung: HungLibvirtd, start: Start) -> None:
    hung.hang()
    caller = start(vm)
    caller.wait_blocked()
    for number in HARMLESS:
        os.kill(caller.pid, number)
    wait_noticed(caller)
    hung.go_on()
    assert caller.errno() == 0
    fsutil.command(vm / "backups/x", "end")


def test_alarm_of_the_caller_itself_cancels_nothing(vm: Path, hung: HungLibvirtd) -> None:
    hung.hang()
    # Off before the end: an interpreter that ends has no handlers any more.
    caller = fsutil.mkdir(vm / "backups/x",
                          prepare=HANDLE + "\nsignal.setitimer(signal.ITIMER_REAL, 0.2, 0.05)"
                          "\nimport atexit"
                          "\natexit.register(signal.setitimer, signal.ITIMER_REAL, 0)")
    caller.wait_blocked()
    wait_noticed(caller)
    hung.go_on()
    assert caller.errno() == 0
    fsutil.command(vm / "backups/x", "end")


# Ctrl-Z and fg.
@both
def test_stop_and_continue_cancel_nothing(vm: Path, hung: HungLibvirtd, start: Start) -> None:
    hung.hang()
    caller = start(vm)
    caller.wait_blocked()
    for number in (signal.SIGTSTP, signal.SIGCONT, signal.SIGSTOP, signal.SIGCONT):
        os.kill(caller.pid, number)
    wait_noticed(caller)
    hung.go_on()
    assert caller.errno() == 0
    fsutil.command(vm / "backups/x", "end")


def test_strace_cancels_nothing(vm: Path, hung: HungLibvirtd, tmp_path: Path) -> None:
    hung.hang()
    caller = by_mkdir(vm)
    caller.wait_blocked()
    trace = tmp_path / "trace"
    tracer = subprocess.Popen(["strace", "-o", trace, "-p", str(caller.pid)],
                              stderr=subprocess.DEVNULL)
    wait_noticed(caller)
    hung.go_on()
    assert caller.errno() == 0
    tracer.wait(10)
    fsutil.command(vm / "backups/x", "end")


def test_blocked_signal_cancels_nothing(vm: Path, hung: HungLibvirtd) -> None:
    hung.hang()
    block = "\nsignal.pthread_sigmask(signal.SIG_BLOCK, [15]); os.kill(os.getpid(), 15)"
    caller = fsutil.mkdir(vm / "backups/x", prepare=HANDLE + block)
    caller.wait_blocked()
    os.kill(caller.pid, signal.SIGALRM)
    wait_noticed(caller)
    hung.go_on()
    assert caller.errno() == 0
    fsutil.command(vm / "backups/x", "end")


# The kernel reports the first signal alone and keeps the second to itself.
@both
@pytest.mark.parametrize("first", [signal.SIGCHLD, signal.SIGTSTP, signal.SIGSTOP])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGKILL])
def test_ending_signal_after_a_harmless_one_ends(
        vm: Path, hung: HungLibvirtd, start: Start, first: int, second: int) -> None:
    hung.hang()
    caller = start(vm)
    caller.wait_blocked()
    os.kill(caller.pid, first)
    wait_noticed(caller)
    with within(1, "the second signal"):
        os.kill(caller.pid, second)
        os.kill(caller.pid, signal.SIGCONT)
        if second == signal.SIGKILL:
            wait_for(caller.is_over, 1, "killed")
        else:
            assert caller.errno(2) == errno.EINTR
    hung.go_on()
    wait_undone(vm)


### Other waits

def test_interrupted_rmdir_does_not_begin_later(vm: Path) -> None:
    (vm / "backups/x").mkdir()
    with (vm / "backups/x/disks/vda.raw").open("rb"):
        caller = Caller(fsutil.RMDIR, "os.rmdir(sys.argv[1])", vm / "backups/x", prepare=HANDLE)
        caller.wait_blocked()
        os.kill(caller.pid, signal.SIGINT)
        assert caller.errno(1) == errno.EINTR
    # Its reader is gone now, and so is the one who wanted its end.
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        assert (vm / "backups/x/state").read_text() == "running\n"
    (vm / "backups/x").rmdir()


def test_reading_a_text_that_hangs_is_interrupted(vm: Path, hung: HungLibvirtd) -> None:
    hung.hang()
    for number in (signal.SIGINT, signal.SIGKILL):
        with subprocess.Popen(["cat", vm / "domain.xml"]) as process:
            wait_for(lambda: fsutil.is_waiting(process.pid, ""), 5, "it waits")
            process.send_signal(number)
            assert process.wait(10) == -number
    hung.go_on()
    wait_for(lambda: "intr1" in sh(f"cat {vm}/domain.xml", check=False).stdout, 10, "readable")


def test_follow_ends_by_a_signal_after_a_harmless_one(mnt: Mount) -> None:
    caller = Caller(fsutil.READ, "open(sys.argv[1], 'rb', buffering=0).read(1 << 20); "
                    "open(sys.argv[1], 'rb', buffering=0).readall()",
                    mnt.path / ".vmsnapfs/events.follow", prepare=HANDLE)
    caller.wait_blocked()

    # An event may end the first read in the moment of the signal; the second one waits.
    def is_noticed() -> bool:
        os.kill(caller.pid, signal.SIGCHLD)
        return fsutil.process_state(caller.pid) == "D"

    wait_for(is_noticed, 5, "the signal is noticed")
    os.kill(caller.pid, signal.SIGKILL)
    wait_for(caller.is_over, 1, "killed")
