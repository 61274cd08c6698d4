# SPDX-License-Identifier: LGPL-2.1-or-later
"""Scratch space runs out: the backup gives way, never the guest (rows 1, 61, 62)."""

from __future__ import annotations

import contextlib
import errno
import os
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from bed import MIB, Disk, Guest, Mount, bed_dir, raises_errno, sh, wait_for
from test_backup import collection, text
from test_recovery import job_files


# By hand: STRESS=long.
RUNS = 30 if os.environ.get("STRESS") == "long" else 3
SECONDS = float(os.environ.get("STRESS_SECONDS", "3600"))


@pytest.fixture
def small() -> Iterator[Path]:
    """A file system of 96 MiB for scratch images."""
    path = bed_dir() / "images" / "small"
    path.mkdir(mode=0o711)
    sh(["mount", "-t", "tmpfs", "-o", "size=96m,mode=711", "small", str(path)])
    yield path
    try:                               # the guard may be looking
        wait_for(lambda: sh(["umount", str(path)], check=False).returncode == 0, 10, "unmounted")
    finally:
        sh(["umount", "-l", str(path)], check=False)
        path.rmdir()


def overwrite(guest: Guest) -> None:
    """In the guest, to the end, whether or not it is paused meanwhile."""
    guest.run("(dd if=/dev/zero of=/data/victim bs=1M count=192 conv=notrunc,fsync; "
              "echo $? > /data/exit) >/dev/null 2>&1 </dev/null &")

    def exit_code() -> str | None:
        with contextlib.suppress(libvirt.libvirtError, AssertionError):
            return guest.run("cat /data/exit 2>/dev/null || true").strip() or None
        return None

    assert wait_for(exit_code, 90, "the guest has written") == "0"


# With half the room as reserve the guest never notices; without one it is paused
# when the room is gone, and goes on: no error ever reaches a program in it.
@pytest.mark.parametrize("reserve, reason", [("48M", "given up"), ("0", "ended")])
def test_guest_writes_more_than_there_is_room(make_guest, mount, small: Path, reserve: str,
                                              reason: str) -> None:
    guest = make_guest(Disk(size=512 * MIB))
    guest.run("dd if=/dev/urandom of=/data/victim bs=1M count=192; sync")
    mnt = mount("qemu:///system", f"scratch={small}", f"scratch-reserve={reserve}")
    now = collection(mnt, guest) / "now"
    now.mkdir()
    with (now / "disks/vda.raw").open("rb") as file:
        assert len(file.read(4096)) == 4096
        overwrite(guest)
        wait_for(lambda: text(now / "state").startswith("failed"), 60, "failed")
        with raises_errno(errno.EIO):
            os.pread(file.fileno(), 4096, 400 * MIB)
    assert guest.is_running() and not guest.has_job() and not job_files()
    assert "I/O error" not in guest.run("dmesg")
    assert reason in text(now / "state") or "ended" in text(now / "state")
    assert not list(small.iterdir())
    now.rmdir()


# Again and again, with all reserves there are: no run ever hurts the guest.
def test_no_run_hurts_the_guest(make_guest, small: Path) -> None:
    guest = make_guest(Disk(size=512 * MIB))
    guest.run("dd if=/dev/urandom of=/data/victim bs=1M count=192; sync")
    begin, run = time.monotonic(), 0
    while run < RUNS and (run < 3 or time.monotonic() - begin < SECONDS):
        reserve = ("16M", "0", "64M")[run % 3]
        mnt = Mount("qemu:///system", f"scratch={small}", f"scratch-reserve={reserve}")
        mnt.wait_mounted()
        try:
            now = collection(mnt, guest) / "now"
            now.mkdir()
            overwrite(guest)
            wait_for(lambda now=now: text(now / "state").startswith("failed"), 60, "failed")
            assert "I/O error" not in guest.run("rm /data/exit; dmesg")
            assert not guest.has_job() and not list(small.iterdir())
            now.rmdir()
        finally:
            mnt.finish()
        run += 1
    print(f"{run} runs in {time.monotonic() - begin:.0f} s")


def test_room_is_shown_and_qemu_tells_of_it(make_guest, mount, small: Path) -> None:
    guest = make_guest(Disk(size=512 * MIB))
    guest.run("dd if=/dev/urandom of=/data/victim bs=1M count=48; sync")
    mnt = mount("qemu:///system", "-d", f"scratch={small}", "scratch-reserve=16M")
    now = collection(mnt, guest) / "now"
    now.mkdir()

    def shown() -> dict[str, int]:
        lines = dict(line.split(": ", 1) for line in text(now / "job").splitlines())
        return {k: int(v) for k, v in lines.items() if k.startswith("scratch-")}
    begin = wait_for(shown, 5, "shown")
    assert begin["scratch-reserve"] == 16 * MIB and 0 < begin["scratch-free"] <= 96 * MIB
    guest.run("dd if=/dev/zero of=/data/victim bs=1M count=48 conv=notrunc,fsync")
    wait_for(lambda: "passed its threshold" in mnt.log(), 5, "an event")
    wait_for(lambda: shown()["scratch-used"] > 46 * MIB, 5, "used")
    assert shown()["scratch-free"] < 52 * MIB
    assert text(now / "state") == "running"
    now.rmdir()


# The backup that needs the room goes, the one that does not stays.
def test_the_backup_that_takes_most_gives_way(make_guest, mount, small: Path,
                                              guest: Guest) -> None:
    writer = make_guest(Disk(size=512 * MIB))
    writer.run("dd if=/dev/urandom of=/data/victim bs=1M count=192; sync")
    mnt = mount("qemu:///system", f"scratch={small}", "scratch-reserve=60M")
    quiet, loud = collection(mnt, guest) / "quiet", collection(mnt, writer) / "loud"
    quiet.mkdir()
    loud.mkdir()
    overwrite(writer)
    wait_for(lambda: text(loud / "state").startswith("failed"), 60, "failed")
    wait_for(lambda: len(list(small.iterdir())) == 1, 5, "its room is free")
    assert text(quiet / "state") == "running"
    quiet.rmdir()
    loud.rmdir()
    assert guest.is_running() and writer.is_running()


def test_no_room_at_the_start(guest: Guest, mount, small: Path) -> None:
    mnt = mount("qemu:///system", f"scratch={small}", "scratch-reserve=96M")
    with raises_errno(errno.ENOSPC):
        (collection(mnt, guest) / "now").mkdir()
    assert "less than the reserve" in (mnt.domains / guest.name / "error").read_text()


def test_disk_that_would_report_the_error_needs_room_for_all(off_guest, mount,
                                                             small: Path) -> None:
    guest = off_guest(Disk(size=256 * MIB))
    raw = guest.disk_path("vda")
    sh(["qemu-io", "-f", "qcow2", "-c", "write -P 7 8M 128M", str(raw)])
    xml = guest.xml(inactive=True)
    xml.find("devices/disk/driver").set("error_policy", "report")
    guest.domain.connect().defineXML(ET.tostring(xml).decode())
    guest.start(wait=False)
    mnt = mount("qemu:///system", f"scratch={small}", "scratch-reserve=1M")
    with raises_errno(errno.ENOSPC):
        (collection(mnt, guest) / "now").mkdir()
    assert "error_policy='report'" in (mnt.domains / guest.name / "error").read_text()
