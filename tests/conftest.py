# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures: real guests, mounts, and a check that no test leaves anything."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bed
from bed import Disk, Guest, Mount

# The guests of the whole run; their QEMUs are no leftovers.
session_guests: list[Guest] = []

STATE_DIRS = (Path("/run/vmsnapfs"), Path("/var/lib/vmsnapfs"))
# What the daemon makes once and keeps: lock files, and the directories that are
# not one job's own (those have 24 random digits for a name).
PERMANENT = re.compile(r".*(^|/|\.)lock$")
JOB_DIR = re.compile(r"[0-9a-f]{24}")
# The bed's own, and the session daemons that libvirt starts for itself.
DAEMONS = {"libvirtd", "virtlogd", "virtlockd"}


### Skips are failures where everything has to run

def _must_run() -> bool:
    return os.environ.get("TESTS_MUST_RUN", "") not in ("", "0")


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if _must_run() and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but TESTS_MUST_RUN is set: {report.longrepr}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    _forbid_skip(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    outcome = yield
    _forbid_skip(outcome.get_result())


def pytest_configure(config: pytest.Config) -> None:
    if "BED_DIR" not in os.environ:
        raise pytest.UsageError(
            "the tests need a libvirtd of their own: run contrib/check, or "
            "contrib/bed/enter /usr/bin/python3 -m pytest tests")


### Two runs at once

# With TESTS_CLAIMS, a directory, several runs share the test files: each file is
# run by the one that claims it first, so that both end at about the same time.
_claimed: dict[Path, bool] = {}


def _claim(path: Path) -> bool:
    try:
        (Path(os.environ["TESTS_CLAIMS"]) / path.name).mkdir()
    except FileExistsError:
        return False
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """True: it has been seen to, by another run."""
    if "TESTS_CLAIMS" not in os.environ:
        return None
    if item.path not in _claimed:
        _claimed[item.path] = _claim(item.path)
    return None if _claimed[item.path] else True


### Guests

def _session_guest(name: str, *disks: Disk) -> Iterator[Guest]:
    guest = Guest(name, writer=True)
    guest.define(*disks)
    session_guests.append(guest)
    guest.start()
    yield guest
    session_guests.remove(guest)
    guest.undefine()


@pytest.fixture(scope="session")
def booted_guest() -> Iterator[Guest]:
    yield from _session_guest("bed1", Disk("vda"))


@pytest.fixture(scope="session")
def booted_guest2() -> Iterator[Guest]:
    yield from _session_guest("bed2", Disk("vda"), Disk("vdb", "raw"))


def _awake(guest: Guest) -> Iterator[Guest]:
    """A guest under TCG that writes all the time costs a third of a core."""
    guest.ensure()
    yield guest
    guest.rest()


@pytest.fixture
def guest(booted_guest: Guest, leftovers: None) -> Iterator[Guest]:
    """One disk, a writer, booted once for all tests; to be left as it was."""
    yield from _awake(booted_guest)


@pytest.fixture
def guest2(booted_guest2: Guest, leftovers: None) -> Iterator[Guest]:
    """As guest, with two disks: vda is qcow2, vdb is raw."""
    yield from _awake(booted_guest2)


MakeGuest = Callable[..., Guest]


def _factory(start: bool) -> Iterator[MakeGuest]:
    made: list[Guest] = []

    def make(*disks: Disk, name: str | None = None, **options: bool | int) -> Guest:
        _factory.count += 1  # type: ignore[attr-defined]
        guest = Guest(name or f"vm{_factory.count}", **options)  # type: ignore
        made.append(guest)
        guest.define(*disks)
        if start:
            guest.start()
        return guest

    yield make
    for guest in reversed(made):
        guest.undefine()


_factory.count = 0  # type: ignore[attr-defined]


@pytest.fixture
def make_guest(leftovers: None) -> Iterator[MakeGuest]:
    """make_guest(*disks, name=, writer=, agent=, memory=): a booted one of the test's own."""
    yield from _factory(start=True)


@pytest.fixture
def off_guest(leftovers: None) -> Iterator[MakeGuest]:
    """As make_guest, defined and not started."""
    yield from _factory(start=False)


### Mounts

MakeMount = Callable[..., Mount]


@pytest.fixture
def mount(leftovers: None) -> Iterator[MakeMount]:
    """mount(uri="qemu:///system", *options, env={}): a Mount; ended after the test.

    Without a word about it, backups leave no checkpoints: the guests of the session
    are to be left as they were.
    """
    mounts: list[Mount] = []

    def make(uri: str = "qemu:///system", *options: str,
             env: dict[str, str] | None = None) -> Mount:
        if not any(option.startswith("checkpoint=") for option in options):
            options = (*options, "checkpoint=none")
        made = Mount(uri, *options, env=env)
        mounts.append(made)
        made.wait_mounted()
        return made

    yield make
    faults = []
    for made in reversed(mounts):
        try:
            made.finish()
        except AssertionError as error:
            faults.append(str(error))
    if faults:
        pytest.fail("\n".join(faults), pytrace=False)


@pytest.fixture
def mnt(mount: MakeMount) -> Mount:
    return mount()


### Leftovers

def _processes() -> dict[tuple[int, str], str]:
    """(pid, start time) -> command line; zombies and the bed's own left out."""
    ours = {guest.qemu_pid() for guest in session_guests}
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            stat = (directory / "stat").read_text()
            command = (directory / "cmdline").read_bytes()
        except OSError:
            continue
        comm = stat[stat.index("(") + 1:stat.rindex(")")]
        fields = stat[stat.rindex(")") + 2:].split()
        pid = int(directory.name)
        if fields[0] in "ZX" or comm in DAEMONS or pid in ours:
            continue
        text = command.replace(b"\0", b" ").decode(errors="replace").strip()
        found[(pid, fields[19])] = text or comm
    return found


def _state_files() -> set[str]:
    found = set()
    for top in STATE_DIRS:
        for path in top.rglob("*"):
            kept = path.is_dir() and not JOB_DIR.fullmatch(path.name)
            if not kept and not PERMANENT.match(str(path)):
                found.add(str(path))
    return found


def _guest_marks(guest: Guest) -> set[str]:
    """Everything about a session guest that a test might have changed."""
    name = guest.name
    if guest.is_undefined():
        return {f"{name}: is not defined any more"}
    marks = {f"{name}: checkpoint {c}" for c in guest.checkpoints()}
    marks |= {f"{name}: snapshot {s}" for s in guest.snapshots()}
    marks |= {f"{name}: {d.target} is on {guest.disk_path(d.target)}"
              for d in guest.disks}
    marks |= {f"{name}: file {f}" for f in guest.dir.iterdir()}
    if guest.has_job():
        marks.add(f"{name}: a job runs")
    return marks


class World:
    """What there is in the bed at one moment."""

    def __init__(self) -> None:
        self.processes = _processes()
        self.mounts = set(bed.mount_points())
        self.files = _state_files()
        self.domains = {d.name() for d in bed.connection().listAllDomains()}
        self.guests = {g.name: _guest_marks(g) for g in session_guests}

    def more_than(self, before: World) -> list[str]:
        more = [f"process {key[0]}: {text}" for key, text
                in self.processes.items() if key not in before.processes]
        more += [f"mount {m}" for m in sorted(self.mounts - before.mounts)]
        more += [f"file {f}" for f in sorted(self.files - before.files)]
        more += [f"domain {d}" for d in sorted(self.domains - before.domains)]
        more += [f"domain {d} is gone"
                 for d in sorted(before.domains - self.domains)]
        for name, marks in self.guests.items():
            more += sorted(marks - before.guests.get(name, marks))
        return more

    def clean_up(self, before: World) -> None:
        """So that the next test is judged by what it does itself."""
        for point in self.mounts - before.mounts:
            subprocess.run(["umount", "-l", point], check=False)
        for pid, start in self.processes.keys() - before.processes.keys():
            if (pid, start) in _processes():
                os.kill(pid, signal.SIGKILL)
        for guest in session_guests:
            now = self.guests[guest.name]
            if now != before.guests.get(guest.name, now):
                guest.rebuild()


@pytest.fixture(autouse=True)
def leftovers() -> Iterator[None]:
    """The first to be set up and the last to look."""
    before = World()
    yield
    left: list[str] = []
    after = before
    if not bed.is_libvirtd_up():
        bed.libvirtd("start")
        pytest.fail("libvirtd was left stopped", pytrace=False)

    def nothing_left() -> bool:
        nonlocal left, after
        after = World()
        left = after.more_than(before)
        return not left

    try:
        bed.wait_for(nothing_left, 5, "nothing left")
    except AssertionError:
        after.clean_up(before)
        pytest.fail("left over by the test:\n  " + "\n  ".join(left),
                    pytrace=False)
