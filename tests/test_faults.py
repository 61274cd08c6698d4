# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every call fails once (tests/faults.c): no crash, no leak, as before or as after."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest

from bed import VMSNAPFS, Guest, Mount, bed_dir, raises_errno, wait_for, within
from test_backup import digest, text
from test_crash import KINDS, command, drop, is_thawed, make, vm, wait_clean, world
from test_recovery import kill, remount

LIBRARY = VMSNAPFS.parent.parent / "tests" / "faults.so"
LAYOUT = struct.Struct("32sIII")
# Beyond this many calls of one kind only STRESS=long goes.
CALLS = 100000 if os.environ.get("STRESS") == "long" else 12


class Faults:
    """The control that the daemon has mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(LAYOUT.size))
        with path.open("r+b") as file:
            self.map = mmap.mmap(file.fileno(), LAYOUT.size)

    def arm(self, kind: str, nth: int) -> None:
        self.map[:] = LAYOUT.pack(b"", nth, 0, 0)
        self.map[:32] = kind.encode().ljust(32, b"\0")

    def fired(self) -> bool:
        """Whether a call has failed, or hangs."""
        return bool(LAYOUT.unpack(self.map[:])[3])

    def disarm(self) -> bool:
        self.map[:32] = bytes(32)
        return self.fired()

    def environment(self) -> dict[str, str]:
        libraries = [str(LIBRARY)]
        linked = subprocess.run(["ldd", VMSNAPFS], capture_output=True, text=True).stdout
        # A sanitizer wants to be the first.
        libraries[:0] = [line.split()[2] for line in linked.splitlines()
                         if "libasan" in line or "libtsan" in line]
        return {"LD_PRELOAD": ":".join(libraries), "FAULTS": str(self.path)}


@pytest.fixture
def faults() -> Iterator[Faults]:
    made = Faults(bed_dir() / "tmp" / "faults")
    yield made
    made.path.unlink()


### What is tried

def read(name: str) -> Callable[[Mount, Guest], None]:
    """Twice: bytes that came although a call failed are the right ones."""
    def run(mnt: Mount, guest: Guest) -> None:
        file = vm(mnt, guest) / "backups/now" / name
        first = digest(file)
        Read.later.append(lambda: digest(file) == first)
    return run


class Read:
    later: list[Callable[[], bool]] = []


def freeze_and_thaw(mnt: Mount, guest: Guest) -> None:
    try:
        command("freeze timeout=2")(mnt, guest)
    finally:
        command("thaw")(mnt, guest)


def suspend_and_resume(mnt: Mount, guest: Guest) -> None:
    command("suspend")(mnt, guest)
    command("resume")(mnt, guest)


def look(mnt: Mount, guest: Guest) -> None:
    os.listdir(mnt.domains)
    (vm(mnt, guest) / "domain.xml").read_text()
    text(vm(mnt, guest) / "job")


FILES = ("open", "write", "fsync", "rename", "mkdir")


@dataclass(frozen=True)
class Operation:
    name: str
    run: Callable[[Mount, Guest], None]
    kinds: tuple[str, ...]
    prepare: Callable[[Mount, Guest], None] | None = None
    off: bool = False


OPERATIONS = (
    Operation("mkdir", make("backups"), ("libvirt", *FILES)),
    Operation("mkdir-off", make("backups"), ("libvirt", *FILES), off=True),
    Operation("rmdir", drop("backups"), ("libvirt", "open"), make("backups")),
    Operation("rmdir-off", drop("backups"), ("libvirt", "open"), make("backups"), off=True),
    Operation("read", read("disks/vda.raw"), ("nbd", "libvirt"), make("backups")),
    Operation("read-off", read("disks/vda.raw"), ("pread", "open"), make("backups"), off=True),
    Operation("read-full", read("full/vda.qcow2"), ("pread",), make("backups"), off=True),
    Operation("freeze", freeze_and_thaw, ("libvirt", *FILES)),
    Operation("suspend", suspend_and_resume, ("libvirt",)),
    Operation("look", look, ("libvirt", "open")),
    Operation("snapshot", make("snapshots"), ("libvirt", *FILES), off=True),
    Operation("snapshot-rmdir", drop("snapshots"), ("libvirt", "write"), make("snapshots"),
              off=True),
    Operation("revert", command("revert", "snapshots/now"), ("libvirt", "write"),
              command("snapshot now disk=internal"), off=True),
    Operation("checkpoint", make("checkpoints"), ("libvirt", "write", "fsync")),
    Operation("checkpoint-rmdir", drop("checkpoints"), ("libvirt", "write"),
              make("checkpoints")),
)


def put_back(mnt: Mount, guest: Guest, operation: Operation, before: dict[str, object]) -> None:
    """Whatever came of it: it can be ended, and then all is as it was."""
    def ended() -> bool:
        there = [p for p in (vm(mnt, guest) / kind / "now" for kind in KINDS) if p.exists()]
        for now in there:
            with contextlib.suppress(OSError):
                now.rmdir()
        return not there
    wait_for(ended, 20, "ended")

    def well() -> bool:
        with contextlib.suppress(OSError):
            look(mnt, guest)
            return True
        return False
    wait_for(well, 10, "all can be read again")
    if not operation.off and guest.state != before["state"]:
        command("resume")(mnt, guest)
    # A freeze whose answer was lost is thawed once more after 12 s.
    wait_clean(guest, before, operation.name, 20)
    assert operation.off or is_thawed(guest)


def try_once(mnt: Mount, guest: Guest, operation: Operation, faults: Faults, kind: str,
             nth: int) -> bool:
    """Whether there was an n-th call."""
    if operation.prepare:
        operation.prepare(mnt, guest)
    failed = False
    Read.later.clear()
    begin = time.monotonic()
    faults.arm(kind, nth)
    try:
        operation.run(mnt, guest)
    except OSError:
        failed = True
    fired = faults.disarm()
    print(f"{operation.name} {kind} {nth}: {time.monotonic() - begin:.2f} s, {failed=} {fired=}")
    assert mnt.process.poll() is None, "the daemon is gone"
    assert fired or not failed, "it failed without a fault"
    assert all(check() for check in Read.later), "wrong bytes"
    return fired


def step(nth: int) -> int:
    """Each of the first calls; of the thousands by which a disk is read, some."""
    return 1 if nth < 60 else nth // 10


@pytest.fixture
def machine(request: pytest.FixtureRequest, guest: Guest, off_guest: Callable[[], Guest]) -> Guest:
    return off_guest() if request.param else guest


@pytest.mark.parametrize("operation, machine", [(o, o.off) for o in OPERATIONS],
                         ids=[o.name for o in OPERATIONS], indirect=["machine"])
def test_every_call_fails_once(operation: Operation, machine: Guest, mount,
                               faults: Faults) -> None:
    before = world(machine)
    mnt = mount("qemu:///system", env=faults.environment())
    for kind in operation.kinds:
        nth, done = 1, 0
        while nth <= CALLS and try_once(mnt, machine, operation, faults, kind, nth):
            put_back(mnt, machine, operation, before)
            done += 1
            nth += step(nth)
        put_back(mnt, machine, operation, before)
        print(f"{operation.name}: {done} calls of {kind} failed, the last was number {nth}")


### Killed while libvirt is still at it

def test_daemon_is_killed_before_the_backup_has_begun(guest: Guest, mount,
                                                      faults: Faults) -> None:
    """libvirt goes on with the call: nobody would end what comes of it."""
    before, qemu = world(guest), guest.qemu_pid()
    mnt = mount("qemu:///system", "quiesce=off", env=faults.environment())

    def begin() -> None:
        with raises_errno(errno.ENOTCONN, errno.ECONNABORTED):
            make("backups")(mnt, guest)
    maker = threading.Thread(target=begin)
    faults.arm("begin", 1)
    maker.start()
    goes_on = threading.Timer(2, os.kill, (qemu, signal.SIGCONT))
    try:
        wait_for(faults.fired, 30, "it begins")
        wait_for(lambda: guest.domain.controlInfo()[0] != libvirt.VIR_DOMAIN_CONTROL_OK, 30,
                 "libvirt waits for QEMU")
        kill(mnt)
        goes_on.start()
        remount(mount, mnt)
    finally:
        goes_on.cancel()
        os.kill(qemu, signal.SIGCONT)
        maker.join(30)
    wait_clean(guest, before, "killed while it began", 60)


### A save fails, and libvirt leaves the guest paused

@pytest.mark.parametrize("kind, state, said", [
    ("paused", libvirt.VIR_DOMAIN_RUNNING, "failed and left the guest paused; it has been resumed"),
    ("stuck", libvirt.VIR_DOMAIN_PAUSED, "THE GUEST IS PAUSED after the save that failed"),
])
def test_guest_that_a_failed_save_left_paused(guest: Guest, mount, faults: Faults, kind: str,
                                              state: int, said: str) -> None:
    mnt = mount("qemu:///system", env=faults.environment())
    faults.arm(kind, 1)
    with raises_errno(errno.EINVAL):        # an invalid domain
        command("save")(mnt, guest)
    faults.disarm()
    assert guest.state == state
    errors = (vm(mnt, guest) / "error").read_text()
    assert said in errors and "the machine cannot be saved" in errors
    assert said in mnt.log()
    if kind == "stuck":
        wait_for(lambda: text(vm(mnt, guest) / "state") == "paused", 10, "state says so")
        command("resume")(mnt, guest)
    assert guest.is_running()


### The file system of the scratch images hangs

@pytest.fixture
def hung_scratch() -> Iterator[Path]:
    path = bed_dir() / "images" / "hung" / "scratch"
    path.mkdir(parents=True, mode=0o711)
    path.parent.chmod(0o711)
    yield path
    path.rmdir()
    path.parent.rmdir()


def test_hung_scratch_harms_nobody_else(guest: Guest, guest2: Guest, mount, faults: Faults,
                                        hung_scratch: Path) -> None:
    mnt = mount("qemu:///system", env=faults.environment())
    command(f"backup now scratch={hung_scratch}")(mnt, guest)
    here, other = vm(mnt, guest) / "backups/now", vm(mnt, guest2) / "backups/now"
    expected = digest(here / "disks/vda.raw")
    faults.arm("statvfs", 1)
    wait_for(faults.fired, 10, "its guard hangs")
    with within(30, "three backups beside it"):
        for _ in range(3):
            other.mkdir()
            digest(other / "disks/vdb.raw")
            other.rmdir()
    assert text(here / "state") == "running" and "scratch-free: " in (here / "job").read_text()
    assert digest(here / "disks/vda.raw") == expected
    here.rmdir()
    assert not guest.has_job() and guest.is_running()
    faults.disarm()
    wait_for(lambda: not list(hung_scratch.iterdir()), 10, "nothing left")


def test_hung_scratch_does_not_keep_us_from_ending(guest: Guest, mount, faults: Faults,
                                                   hung_scratch: Path) -> None:
    mnt = mount("qemu:///system", env=faults.environment())
    command(f"backup now scratch={hung_scratch}")(mnt, guest)
    faults.arm("statvfs", 1)
    wait_for(faults.fired, 10, "its guard hangs")
    mnt.signal(signal.SIGTERM)
    assert mnt.process.wait(70) == 0
    faults.disarm()
    assert not guest.has_job() and not list(hung_scratch.iterdir())
