# SPDX-License-Identifier: LGPL-2.1-or-later
"""A thousand machines; how fast that is, contrib/bench/scale tells (faults.md 41, 47)."""

from __future__ import annotations

import os
import threading
import time

import pytest

import fsutil
from bed import Mount, sh
from conftest import MakeMount
from fsutil import driver_uri

NAMES = [f"vm{i:04}" for i in range(1000)]
# Files and directories of one machine, itself included.
ENTRIES = 11


@pytest.fixture
def big(mount: MakeMount) -> Mount:
    return mount(driver_uri(*NAMES))


def test_every_machine_is_there_once(big: Mount) -> None:
    assert os.listdir(big.domains) == NAMES
    with os.scandir(big.domains) as entries:
        numbers = {entry.stat().st_ino for entry in entries}
    assert len(numbers) == len(NAMES)
    for name in NAMES[::50]:
        assert (big.domains / name / "state").read_text() == "running\n"
    assert not (big.domains / "vm1000").exists()


def test_walkers_see_all_of_it(big: Mount) -> None:
    found = sh(["find", str(big.domains), "-mindepth", "1"]).stdout.splitlines()
    assert len(found) == len(set(found)) == ENTRIES * len(NAMES)
    assert len(sh(["ls", "-l", str(big.domains)]).stdout.splitlines()) == 1 + len(NAMES)


# A directory is read in parts; each reader keeps its place in it.
def test_many_readers_at_once(big: Mount) -> None:
    wrong: list[int] = []

    def read() -> None:
        for _ in range(5):
            names = os.listdir(big.domains)
            if names != NAMES:
                wrong.append(len(names))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_place_in_a_directory_is_kept(big: Mount) -> None:
    """telldir and seekdir, and a rewind that sees what is there then."""
    program = f"""
        use strict; opendir(my $d, "{big.domains}") or die; my @all = readdir($d);
        rewinddir($d); my (@first, $at); push @first, scalar readdir($d) for 1 .. 500;
        $at = telldir($d); my @rest = readdir($d); seekdir($d, $at); my @again = readdir($d);
        die "rest" unless "@rest" eq "@again"; die "all" unless "@all" eq "@first @rest";
        print scalar @all"""
    assert sh(["perl", "-e", program]).stdout == str(len(NAMES) + 2)


SNAPSHOTS = [f"s{i}" for i in range(5)]


@pytest.fixture
def many_snapshots(mount: MakeMount) -> Mount:
    return mount(driver_uri(*NAMES, snapshots=SNAPSHOTS))


# No event tells of snapshots: each list is read, and none is read for nothing.
def test_walkers_see_all_snapshots(many_snapshots: Mount) -> None:
    start = time.monotonic()
    found = sh(["find", str(many_snapshots.domains), "-mindepth", "3", "-maxdepth", "3",
                "-path", "*/snapshots/*", "-type", "d"])
    seconds = time.monotonic() - start
    assert sorted(found.stdout.splitlines()) == sorted(
        f"{many_snapshots.domains}/{name}/snapshots/{snapshot}"
        for name in NAMES for snapshot in SNAPSHOTS)
    assert seconds < 60
    for name in NAMES[::100]:
        assert os.readlink(many_snapshots.domains / name / "snapshots/current") == SNAPSHOTS[-1]
        assert (many_snapshots.domains / name / "snapshots/s1/parent").read_text() == "s0\n"


def test_commands_on_many(big: Mount) -> None:
    for name in NAMES[:100]:
        fsutil.command(big.domains / name, "suspend")
    states = sh(f"cat {big.domains}/*/state").stdout.split()
    assert states == ["paused"] * 100 + ["running"] * 900
