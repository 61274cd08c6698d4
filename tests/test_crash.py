# SPDX-License-Identifier: LGPL-2.1-or-later
"""kill -9 at every point of every action: nothing is frozen, left, lost or doubled.

A debug build names its points (backend/step.h).  Each row of the table provokes one
area; a first run asks the daemon which points it passes, then a daemon is killed at
each of them, and the next start has to put all in order.  A new point is a new word
in a row, or in CRASHES of the file that knows more of its action: test_points.py
compares them all with the source.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import libvirt
import pytest

from bed import Guest, Mount, bed_dir, raises_errno, sh, wait_for
from test_backup import digest, text
from test_offline import qemu_nbds
from test_recovery import job_files

KINDS = ("backups", "snapshots", "checkpoints")
POINTS, CRASH_AT, FAIL_AT = "VMSNAPFS_POINTS", "VMSNAPFS_CRASH_AT", "VMSNAPFS_FAIL_AT"


### What is done

def vm(mnt: Mount, guest: Guest) -> Path:
    return mnt.domains / guest.name


def make(kind: str) -> Callable[[Mount, Guest], None]:
    return lambda mnt, guest: (vm(mnt, guest) / kind / "now").mkdir()


def drop(kind: str) -> Callable[[Mount, Guest], None]:
    return lambda mnt, guest: (vm(mnt, guest) / kind / "now").rmdir()


def command(line: str, of: str = ".") -> Callable[[Mount, Guest], None]:
    return lambda mnt, guest: (vm(mnt, guest) / of / "control").write_text(line)


def nothing(_mnt: Mount, _guest: Guest) -> None:
    """The start itself is what is killed."""


def freeze_and_thaw(mnt: Mount, guest: Guest) -> None:
    command("freeze timeout=60")(mnt, guest)
    command("thaw")(mnt, guest)


def read_and_drop(mnt: Mount, guest: Guest) -> None:
    digest(vm(mnt, guest) / "backups/now/disks/vda.raw")
    drop("backups")(mnt, guest)


def abort_behind_its_back(mnt: Mount, guest: Guest) -> None:
    guest.domain.abortJob()
    wait_for(lambda: text(vm(mnt, guest) / "backups/now/state").startswith("failed")
             and not job_files(), 20, "failed, and nothing left of it")


def killed_with_a_backup(mnt: Mount, guest: Guest) -> None:
    """Not prepared in the daemon that crashes, but in one before it."""
    make("backups")(mnt, guest)
    mnt.signal(signal.SIGKILL)
    mnt.process.wait(10)


@dataclass(frozen=True)
class Row:
    name: str
    area: str                          # the points that count begin so
    provoke: Callable[[Mount, Guest], None]
    points: tuple[str, ...]            # it passes these and no others
    prepare: Callable[[Mount, Guest], None] | None = None
    before: Callable[[Mount, Guest], None] | None = None   # by an earlier daemon
    off: bool = False
    options: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)      # FAIL_AT: the points of the undo
    ends: str = ""                     # only points that end so


BOTH = ("before", "after")


def points(area: str, steps: str, whens: tuple[str, ...] = BOTH) -> tuple[str, ...]:
    return tuple(f"{area}:{step}:{when}" for step in steps.split() for when in whens)


UNDONE, AFTER = ("undone",), ("after",)
BEGIN = points("backup-begin", "record hold directories extras checkpoint begin")
FREEZE = ("freeze:mark:after", *points("freeze", "call"), *points("freeze", "thaw forget", AFTER))
END = ("backup-end:abort:before", *points("backup-end", "abort record settle release", AFTER))

ROWS = (
    Row("backup", "backup-begin:", make("backups"),
        (*BEGIN, "backup-begin:journal:after", "backup-begin:frozen:after",
         *points("backup-begin", "confirm describe list"))),
    Row("backup-undo", "backup-begin:", make("backups"),
        points("backup-begin", "begin checkpoint hold record", UNDONE), ends=":undone",
        env={FAIL_AT: "backup-begin:describe:after"}),
    Row("backup-freeze", "freeze:", make("backups"), FREEZE),
    Row("freeze", "freeze:", freeze_and_thaw, FREEZE),
    Row("end", "backup-end:", drop("backups"), END, prepare=make("backups")),
    Row("fail", "backup-fail:", abort_behind_its_back,
        ("backup-fail:settle:before", *points("backup-fail", "abort record release", AFTER)),
        prepare=make("backups")),
    Row("off-backup", "backup-off:", make("backups"),
        points("backup-off", "record directories extras lock check describe list"), off=True),
    Row("off-backup-undo", "backup-off:", make("backups"),
        points("backup-off", "directories record", UNDONE), off=True, ends=":undone",
        env={FAIL_AT: "backup-off:describe:after"}),
    Row("off-end", "backup-end:", read_and_drop, END, prepare=make("backups"), off=True),
    Row("recover-adopt", "recover:", nothing, ("recover:look:before", "recover:adopt:after"),
        before=killed_with_a_backup),
    Row("recover-end", "recover:", nothing,
        ("recover:look:before", *points("recover", "abort record release", AFTER)),
        before=killed_with_a_backup, options=("recover=end",)),
    Row("off-recover", "recover:", nothing,
        ("recover:look:before", *points("recover", "abort record release", AFTER)),
        before=killed_with_a_backup, off=True),
)

# Of this file; others have their own.
CRASHES = {point for row in ROWS for point in row.points}


### How it is tried

def world(guest: Guest) -> dict[str, object]:
    """What no crash may change for good."""
    return {"checkpoints": guest.checkpoints(), "snapshots": guest.snapshots(),
            "files": sorted(p.name for p in guest.dir.iterdir()),
            "disks": [str(guest.disk_path(d.target)) for d in guest.disks],
            "state": guest.state}


@contextlib.contextmanager
def started(*options: str, env: dict[str, str] | None = None) -> Iterator[Mount]:
    mnt = Mount("qemu:///system", *options, env=env)
    try:
        yield mnt
    finally:
        sh(["umount", "-l", str(mnt.path)], check=False)
        mnt.finish()


def row_failed(now: Path) -> bool:
    return text(now / "state").startswith("failed: the backup job was ended by somebody else")


def tidy(mnt: Mount, guest: Guest) -> None:
    """What the user has after the crash he can read and end."""
    for kind in KINDS:
        now = vm(mnt, guest) / kind / "now"
        if now.exists():
            if kind == "backups" and not row_failed(now):
                assert text(now / "state") == "running"
                digest(now / "disks/vda.raw")
            now.rmdir()


def leftovers(guest: Guest) -> list[str]:
    found = [str(p) for p in job_files()] + [f"qemu-nbd {pid}" for pid in qemu_nbds()]
    return found + (["a job"] if guest.has_job() else [])


def wait_clean(guest: Guest, before: dict[str, object], what: str, seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while leftovers(guest) or world(guest) != before:
        assert time.monotonic() < end, f"{what}: {leftovers(guest)}\n{world(guest)}\n{before}"
        time.sleep(0.02)


def is_thawed(guest: Guest) -> bool:
    with contextlib.suppress(libvirt.libvirtError):
        return guest.command("guest-fsfreeze-status", timeout=2) == "thawed"
    return False


def run(row: Row, guest: Guest, env: dict[str, str]) -> Mount:
    """One daemon that does it, and is left mounted, alive or dead."""
    if row.before:
        with started() as mnt:
            mnt.wait_mounted()
            row.before(mnt, guest)
    mnt = Mount("qemu:///system", *row.options, env=row.env | env)
    with contextlib.suppress(AssertionError if row.before else ()):
        mnt.wait_mounted()
    with contextlib.suppress(OSError):
        if row.prepare:
            row.prepare(mnt, guest)
        row.provoke(mnt, guest)
    return mnt


def points_of(row: Row, guest: Guest, before: dict[str, object]) -> list[str]:
    path = bed_dir() / "tmp" / f"points.{row.name}"
    mnt = run(row, guest, {POINTS: str(path)})
    with contextlib.suppress(OSError):
        tidy(mnt, guest)
    mnt.finish()
    wait_clean(guest, before, "without a crash")
    seen = list(dict.fromkeys(path.read_text().splitlines()))
    path.unlink()
    return [p for p in seen if p.startswith(row.area) and p.endswith(row.ends)]


def crash(row: Row, guest: Guest, point: str, before: dict[str, object]) -> None:
    mnt = run(row, guest, {CRASH_AT: point})
    assert mnt.process.wait(20) == -signal.SIGKILL, f"{point}: was not killed"
    killed = time.monotonic()
    mnt.expected_exit = -signal.SIGKILL
    sh(["umount", "-l", str(mnt.path)], check=False)
    mnt.finish()
    if not row.off:
        wait_for(lambda: is_thawed(guest), 10 - (time.monotonic() - killed), f"{point}: thawed")
    with started() as again:
        again.wait_mounted()
        tidy(again, guest)
        wait_clean(guest, before, point)
        make("backups")(again, guest)
        drop("backups")(again, guest)
    wait_clean(guest, before, point)


@pytest.fixture
def machine(request: pytest.FixtureRequest, guest: Guest, off_guest: Callable[[], Guest]) -> Guest:
    return off_guest() if request.param else guest


def machines(*rows: Row) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row, machine", [(row, row.off) for row in rows],
                                   ids=[row.name for row in rows], indirect=["machine"])


@machines(*ROWS)
def test_crash(row: Row, machine: Guest) -> None:
    before = world(machine)
    passed = points_of(row, machine, before)
    assert set(passed) == set(row.points)
    for point in passed:
        crash(row, machine, point, before)
    print(f"{row.name}: {len(passed)} points\n  " + "\n  ".join(passed))


# The last step is the one after which the user has it.
@machines(*(row for row in ROWS if row.name in ("backup", "off-backup")))
def test_each_step_that_fails_is_undone(row: Row, machine: Guest) -> None:
    before = world(machine)
    passed = [p.split(":") for p in points_of(row, machine, before)]
    steps = [p[1] for p in passed if [p[0], p[1], "before"] in passed and p[2] == "after"]
    assert len(steps) >= 4
    for step in steps[:-1]:
        with started(env={FAIL_AT: f"{row.area}{step}:after"}) as mnt:
            mnt.wait_mounted()
            with raises_errno(errno.EIO):
                row.provoke(mnt, machine)
            assert row.area + step in (vm(mnt, machine) / "error").read_text()
            wait_clean(machine, before, step)
            assert not [p for p in os.listdir(vm(mnt, machine) / "backups") if p != "latest"]
