# SPDX-License-Identifier: LGPL-2.1-or-later
"""Chains over weeks: long schedules, many backups, retention, and machines that come back."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from bed import MIB, Disk, Guest, Mount, bed_dir, connection, raises_errno, wait_for
from chain import SIZE, Chain, ask
from fsutil import command, failures, last_failure
from test_checkpoints import records
from test_incremental import Chain as Kept
from test_incremental import forget  # an autouse fixture
from test_recovery import STATE, job_files, kill, remount

__all__ = ["forget"]

URI = "qemu:///system"
AUTO = "checkpoint=auto"
# Two weeks of F I I D I I D, and what comes after; all by day.
WEEK = "FIIDIID"
DAYS = 70 if os.environ.get("STRESS") == "long" else 20
KEPT = 8


### Two disks, day by day

def scribble(guest: Guest, day: int) -> None:
    """One day of a guest: fills up, writes over, small and unaligned, deletes, trims."""
    guest.run(f"""
        kinds() {{
            cd $1
            dd if=/dev/urandom of=new{day} bs=64k count={20 + day * 7 % 13}
            dd if=/dev/urandom of=old bs=1k count=300 seek={day * 37 % 2000} conv=notrunc
            dd if=/dev/urandom of=old bs=1 count={17 + day} seek={day * 12347} conv=notrunc
            dd if=/dev/zero of=old bs=4k count=5 seek={day * 3} conv=notrunc
            [ {day % 5} != 2 ] || dd if=/dev/zero of=fill bs=1M
            [ {day % 5} != 3 ] || rm -f fill
            rm -f new{day - 2}
            sync
            [ {day % 3} = 0 ] || fstrim .
        }} 2>/dev/null
        kinds /data; [ {day % 4} = 1 ] || kinds /data2; true""")


def since_of(day: int) -> str | None:
    """What the backup of a day stands on."""
    kind, week = WEEK[day % len(WEEK)], day // len(WEEK) * len(WEEK)
    return {"F": None, "I": f"d{day - 1}", "D": f"d{week}"}[kind]


def test_weeks_of_full_incremental_and_differential(make_guest, mount, tmp_path: Path) -> None:
    """With plain cp -r; each day restores to the byte, long after its checkpoint has gone."""
    guest = make_guest(Disk("vda", size=96 * MIB), Disk("vdb", size=64 * MIB))
    chain = Kept(mount(URI, AUTO), guest, tmp_path / "keep")
    for day in range(DAYS):
        kind, since = WEEK[day % len(WEEK)], since_of(day)
        scribble(guest, day)
        options = {"F": "since=none", "I": ("", "since=latest")[day % 2],
                   "D": f"since={since}"}[kind]
        said = chain.take(f"d{day}", options)
        assert said == {"since": since or "none", "checkpoint": f"d{day}", "chain": "default"}
        for target in ("vda", "vdb"):
            assert chain.backing(f"d{day}", target) == (
                f"../{since}/{target}.qcow2" if since else None)
    for day in range(DAYS):
        chain.verify(f"d{day}")
    kept = [f"d{day}" for day in range(max(0, DAYS - KEPT), DAYS)]
    assert guest.checkpoints() == sorted(kept)
    assert not failures(chain.backups.parent)


### Many, one after the other

@pytest.fixture
def machine(off_guest) -> Guest:
    """One that never runs an instruction, as in chain.py."""
    return off_guest(Disk(size=SIZE, fs=False), agent=False)


def begin(guest: Guest, mnt: Mount, copies: Path) -> Chain:
    chain = Chain(guest, mnt, copies)
    if guest.is_off():
        chain.start()
        chain.write("-P 1 0 256k")
        chain.write("-P 2 8M 1M")
    return chain


def test_thirty_in_a_row_are_as_quick_as_one(machine: Guest, mount, tmp_path: Path) -> None:
    chain = begin(machine, mount(URI, AUTO), tmp_path)
    seconds = []
    for number in range(30):
        backup = chain.path / f"backups/n{number}"
        chain.write(f"-P {number + 3} {number % 30}M 64k")
        started = time.monotonic()
        backup.mkdir()
        seconds.append(time.monotonic() - started)
        assert chain.copy(backup.name) == (f"n{number - 1}" if number else "none")
        backup.rmdir()
        wait_for(lambda: not machine.has_job(), 40, "ended")
    assert machine.checkpoints() == sorted(f"n{number}" for number in range(30 - KEPT, 30))
    assert len(records(machine)) == KEPT
    print(" ".join(f"{s * 1000:.0f}" for s in seconds))
    # The quickest of several says what it costs; what is above that is other load.
    assert min(seconds[-6:]) < 3 * min(seconds[:6]) + 0.2
    chain.forget()


def test_less_is_kept_from_now_on(machine: Guest, mount, tmp_path: Path) -> None:
    """As after an upgrade: the first backup takes away all that is too much."""
    mnt = mount(URI, AUTO, "keep-checkpoints=100")
    chain = begin(machine, mnt, tmp_path)
    for number in range(12):
        chain.write(f"-P {number + 3} {number}M 64k")
        chain.backup(f"n{number:02}")
    assert len(machine.checkpoints()) == 12
    mnt.signal(signal.SIGTERM)
    assert mnt.process.wait(30) == 0
    chain = begin(machine, mount(URI, AUTO), tmp_path)
    chain.write("-P 99 20M 64k")
    chain.assert_goes_on("n12", "n11")
    assert machine.checkpoints() == [f"n{number:02}" for number in range(5, 13)]
    chain.write("-P 98 21M 64k")
    chain.assert_goes_on("n13", "n12")
    chain.forget()


### Retention by the calendar

def set_time(guest: Guest, name: str, when: str) -> None:
    """When a checkpoint was made, local time of the daemon (below)."""
    zone = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
    time_us = int(datetime.datetime.fromisoformat(when).replace(tzinfo=zone).timestamp() * 1e6)
    for path in records(guest):
        record = json.loads(path.read_text())
        if record["checkpoint"] == name:
            path.write_text(json.dumps(record | {"created-us": time_us}))
            return
    raise KeyError(name)


def test_prune_by_days_weeks_and_months(machine: Guest, mount, tmp_path: Path) -> None:
    mnt = mount(URI, AUTO, "keep-checkpoints=100", env={"TZ": "Asia/Kolkata"})
    chain = begin(machine, mnt, tmp_path)
    made = {"a": "2026-09-30T23:59", "b": "2026-10-01T00:01", "c": "2026-10-31T12:00",
            "d": "2026-11-08T23:59", "e": "2026-11-09T00:01", "f": "2026-11-13T01:00",
            "g": "2026-11-13T04:00", "h": "2026-11-14T02:00"}
    for number, name in enumerate(made):
        chain.write(f"-P {number + 3} {number}M 64k")
        chain.backup(name)
    for name, when in made.items():
        set_time(machine, name, when)
    # e to h are one week by ISO 8601, which begins on Monday, the 9th; d is the week before.
    plan = """remove a (chain default)
remove b (chain default)
keep c (chain default): monthly 2026-10
keep d (chain default): weekly 2026-W45
remove e (chain default)
remove f (chain default)
keep g (chain default): daily 2026-11-13
keep h (chain default): daily 2026-11-14, weekly 2026-W46, monthly 2026-11, \
the base of the next increment
"""
    rules = "keep-daily=2 keep-weekly=2 keep-monthly=2"
    before = sorted(p.read_bytes() for p in records(machine))
    assert ask(chain, f"prune {rules} dry-run") == "dry run: nothing is removed\n" + plan
    assert machine.checkpoints() == sorted(made)
    assert sorted(p.read_bytes() for p in records(machine)) == before
    assert ask(chain, f"prune {rules}") == plan
    assert machine.checkpoints() == ["c", "d", "g", "h"] and len(records(machine)) == 4
    # What stays serves: a differential since a month ago, an increment since yesterday.
    chain.write("-P 77 20M 1M")
    assert chain.backup("diff", "since=c", "checkpoint=none") == "c"
    chain.assert_goes_on("i", "h")
    chain.forget()


### Away, and back

def define_again(guest: Guest) -> None:
    """libvirt has forgotten all checkpoints."""
    text_of = guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    guest.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    connection().defineXML(text_of)
    assert guest.checkpoints() == []


def test_defined_again_and_the_daemon_restarted(machine: Guest, mount, tmp_path: Path) -> None:
    mnt = mount(URI, AUTO)
    chain = begin(machine, mnt, tmp_path)
    assert chain.backup("a") == "none"
    chain.write("-P 3 1M 64k")
    chain.assert_goes_on("b", "a")
    chain.stop()
    kill(mnt)
    text_of = machine.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    machine.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    # A start while there is no such machine keeps what is known of it.
    mnt = remount(mount, mnt, AUTO)
    mnt.signal(signal.SIGTERM)
    assert mnt.process.wait(30) == 0
    connection().defineXML(text_of)
    chain = Chain(machine, mount(URI, AUTO), tmp_path)
    chain.start()
    chain.write("-P 4 2M 64k")
    chain.assert_goes_on("c", "b")
    assert machine.checkpoints() == ["a", "b", "c"]
    chain.forget()


def test_another_host_with_the_same_storage(machine: Guest, mount, tmp_path: Path) -> None:
    """The state directory was copied there before: with the storage it is all there is."""
    mnt = mount(URI, AUTO)
    chain = begin(machine, mnt, tmp_path)
    assert chain.backup("a") == "none"
    chain.write("-P 3 1M 64k")
    chain.assert_goes_on("b", "a")
    chain.stop()
    mnt.signal(signal.SIGTERM)
    assert mnt.process.wait(30) == 0
    there = bed_dir() / "tmp/state"                  # QEMU's user may enter it
    shutil.copytree(STATE, there, ignore=shutil.ignore_patterns("lock"))
    forget_all()
    define_again(machine)
    mnt = mount(URI, AUTO, f"state-dir={there}")
    chain = Chain(machine, mnt, tmp_path)
    chain.start()
    chain.write("-P 4 2M 64k")
    chain.assert_goes_on("c", "b")
    assert machine.checkpoints() == ["a", "b", "c"]
    chain.forget()
    mnt.signal(signal.SIGTERM)
    assert mnt.process.wait(30) == 0
    shutil.rmtree(there)


def forget_all() -> None:
    for record in STATE.glob("*/checkpoints/*.json"):
        record.unlink()


def test_state_that_was_lost_is_a_full_backup(machine: Guest, mount, tmp_path: Path) -> None:
    mnt = mount(URI, AUTO)
    chain = begin(machine, mnt, tmp_path)
    assert chain.backup("a") == "none"
    mnt.signal(signal.SIGTERM)
    assert mnt.process.wait(30) == 0
    forget_all()
    chain = begin(machine, mount(URI, AUTO), tmp_path)
    chain.write("-P 3 1M 64k")
    # Whose it is nobody knows any more: it is another program's now.
    assert chain.backup("b") == "none"
    chain.write("-P 4 2M 64k")
    chain.assert_goes_on("c", "b")
    for checkpoint in machine.domain.listAllCheckpoints():
        checkpoint.delete()


@pytest.mark.parametrize("days, stays", [(29, True), (31, False)])
def test_records_of_a_machine_that_is_gone(off_guest, mount, tmp_path: Path, days: int,
                                           stays: bool) -> None:
    guest = off_guest(Disk(size=SIZE, fs=False), agent=False)
    mnt = mount(URI, AUTO)
    chain = begin(guest, mnt, tmp_path)
    assert chain.backup("a") == "none"
    uuid, image = guest.uuid, chain.images["vda"]
    record, = records(guest)
    chain.stop()
    guest.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    then = json.loads(record.read_text())
    then["created-us"] -= days * 24 * 3600 * 1000000
    record.write_text(json.dumps(then))

    def restart(mnt: Mount) -> Mount:
        mnt.signal(signal.SIGTERM)
        assert mnt.process.wait(30) == 0
        return mount(URI, AUTO)
    mnt = restart(mnt)
    assert record.exists(), "its image is there"
    image.rename(image.with_suffix(".away"))
    mnt = restart(mnt)
    wait_for(lambda: record.exists() == stays, 10, "as its age says")
    assert uuid in record.name


### libvirt fails, for real

def monitor(guest: Guest, execute: str, **arguments: object) -> Any:
    """A command of QEMU's own monitor."""
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(
        guest.domain, json.dumps({"execute": execute, "arguments": arguments}), 0))
    assert "error" not in answer, answer
    return answer["return"]


def recording(guest: Guest) -> dict[str, set[str]]:
    """The bitmaps that QEMU has now, of each node."""
    return {node["node-name"]: {b["name"] for b in node.get("dirty-bitmaps", [])}
            for node in monitor(guest, "query-named-block-nodes", flat=True)}


def next_exports(chain: Chain) -> list[str]:
    """The ids that libvirt will give the exports of the next backup: it only counts."""
    seen = []
    for _ in range(2):
        command(chain.path, "backup trial checkpoint=none")
        seen.append(sorted(int(export["id"].split("-")[-2])
                           for export in monitor(chain.guest, "query-block-exports")))
        (chain.path / "backups/trial").rmdir()
    return [f"libvirt-nbd-libvirt-{2 * late - early}-format"
            for early, late in zip(*seen, strict=True)]


@contextlib.contextmanager
def nbd_server_is_taken(chain: Chain) -> Iterator[None]:
    """libvirt's own does not start: nothing has begun by then."""
    path = bed_dir() / "tmp/theirs.sock"
    monitor(chain.guest, "nbd-server-start", addr={"type": "unix", "data": {"path": str(path)}})
    yield
    monitor(chain.guest, "nbd-server-stop")
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def export_is_taken(chain: Chain, which: int) -> Iterator[None]:
    """libvirt cannot show the disk: its jobs run and its bitmaps are made by then."""
    path = bed_dir() / "tmp/theirs.sock"
    name = next_exports(chain)[which]
    index = chain.guest.xml().find("devices/disk/source").get("index")
    monitor(chain.guest, "block-export-add", **{
        "type": "vhost-user-blk", "id": name, "node-name": f"libvirt-{index}-format",
        "addr": {"type": "unix", "path": str(path)}})
    yield
    monitor(chain.guest, "block-export-del", id=name, mode="hard")
    wait_for(lambda: not monitor(chain.guest, "query-block-exports"), 20, "theirs is gone")
    path.unlink(missing_ok=True)


OBSTACLES = {
    "server": nbd_server_is_taken,
    "first-export": lambda chain: export_is_taken(chain, 0),
    "last-export": lambda chain: export_is_taken(chain, -1),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_begin_that_fails_leaves_no_checkpoint(off_guest, mount, tmp_path: Path,
                                               obstacle: str) -> None:
    disks = (Disk("vda", size=SIZE, fs=False), Disk("vdb", size=SIZE, fs=False))
    guest = off_guest(*disks, agent=False)
    chain = begin(guest, mount(URI, AUTO), tmp_path)
    assert chain.backup("mon") == "none"
    chain.write("-P 3 1M 64k")
    before = recording(guest), job_files()
    with OBSTACLES[obstacle](chain):
        with raises_errno(errno.EIO):
            (chain.path / "backups/tue").mkdir()
        assert "libvirt cannot begin the backup" in last_failure(chain.path).text
        assert guest.checkpoints() == ["mon"] and not guest.has_job()
        assert os.listdir(chain.path / "backups") == []
        wait_for(lambda: (recording(guest), job_files()) == before, 30, "as before")
    chain.write("-P 4 1M 64k", "vdb")
    chain.assert_goes_on("tue", "mon")
    chain.forget()
