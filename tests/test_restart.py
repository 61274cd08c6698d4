# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a start does with backups of an earlier process, and backups that nobody reads."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

import fsutil
from bed import MIB, Disk, Guest, Mount, bed_dir, sh, wait_for
from test_backup import collection, digest, text
from test_recovery import job_files, kill, names, remount

FAILED = {"VMSNAPFS_CRASH_AT": "backup-fail:settle:before"}


def events(mnt: Mount, kind: str) -> list[dict[str, str]]:
    lines = (mnt.path / ".vmsnapfs/events").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == kind]


@pytest.fixture
def small() -> Iterator[Path]:
    """A file system for scratch images that a guest fills."""
    path = bed_dir() / "images" / "small"
    path.mkdir(mode=0o711)
    sh(["mount", "-t", "tmpfs", "-o", "size=64m,mode=711", "small", str(path)])
    yield path
    try:                               # the guard may be looking
        wait_for(lambda: sh(["umount", str(path)], check=False).returncode == 0, 10, "unmounted")
    finally:
        sh(["umount", "-l", str(path)], check=False)
        path.rmdir()


### -o recover

def test_adopt_is_the_default(guest: Guest, mount) -> None:
    mnt = mount()
    now = collection(mnt, guest) / "now"
    now.mkdir()
    expected = digest(now / "disks/vda.raw")
    kill(mnt)
    again = remount(mount, mnt, "recover=adopt")
    now = collection(again, guest) / "now"
    assert text(now / "state") == "running"
    assert digest(now / "disks/vda.raw") == expected
    assert "taken up again" in events(again, "backup-started")[0]["text"]
    now.rmdir()


def test_end_leaves_nothing(guest: Guest, mount) -> None:
    mnt = mount()
    (collection(mnt, guest) / "now").mkdir()
    kill(mnt)
    assert guest.has_job()
    again = remount(mount, mnt, "recover=end")
    wait_for(lambda: not guest.has_job(), 5, "ended")
    assert names(collection(again, guest)) == [] and not job_files()
    ended = events(again, "backup-ended")
    assert [e["object"] for e in ended] == ["now"] and "recover=end" in ended[0]["text"]


def test_end_of_an_off_machine(off_guest, mount) -> None:
    guest = off_guest()
    mnt = mount()
    (collection(mnt, guest) / "now").mkdir()
    kill(mnt)
    again = remount(mount, mnt, "recover=end")
    assert names(collection(again, guest)) == [] and not job_files()
    guest.start(wait=False)


# It had failed, and the process was killed before the host had ended the job: the
# guest may have been paused by the full scratch space since then.
@pytest.mark.parametrize("recover", ["adopt", "end"])
def test_failed_backup_is_never_given_back(make_guest, mount, small: Path, recover: str) -> None:
    guest = make_guest(Disk(size=512 * MIB))
    guest.run("dd if=/dev/urandom of=/data/victim bs=1M count=96; sync")
    mnt = mount("qemu:///system", f"scratch={small}", "scratch-reserve=40M", env=FAILED)
    mnt.expected_exit = -signal.SIGKILL
    (collection(mnt, guest) / "now").mkdir()
    guest.run("(dd if=/dev/zero of=/data/victim bs=1M count=96 conv=notrunc,fsync; "
              "echo $? > /data/exit) >/dev/null 2>&1 </dev/null &")
    assert mnt.process.wait(30) == -signal.SIGKILL, "no such crash point"
    wait_for(lambda: guest.state == libvirt.VIR_DOMAIN_PAUSED, 30, "paused by the full scratch")
    again = remount(mount, mnt, f"scratch={small}", "scratch-reserve=40M", f"recover={recover}")
    assert names(collection(again, guest)) == [] and not job_files()
    assert "had failed" in events(again, "backup-ended")[0]["text"]
    wait_for(guest.is_running, 5, "goes on")

    def written() -> str:
        with contextlib.suppress(libvirt.libvirtError, AssertionError):
            return guest.run("cat /data/exit 2>/dev/null || true").strip()
        return ""
    assert wait_for(written, 60, "written") == "0"
    assert not list(small.iterdir())


### -o idle-end

def test_idle_backup_is_ended_and_said_so(guest: Guest, mount) -> None:
    mnt = mount("qemu:///system", "idle-end=2")
    now = collection(mnt, guest) / "now"
    now.mkdir()
    wait_for(lambda: not now.exists(), 15, "ended")
    assert not guest.has_job() and not job_files()
    failure = fsutil.last_failure(mnt.domains / guest.name)
    assert failure.errno == "ETIMEDOUT" and "nobody has read it for 2 s" in failure.text
    assert "idle-end" in events(mnt, "warning")[0]["text"]
    assert [e["object"] for e in events(mnt, "backup-ended")] == ["now"]


@pytest.mark.parametrize("file", ["disks/vda.raw", "full/vda.qcow2"])
def test_open_file_is_a_reader(off_guest, mount, file: str) -> None:
    guest = off_guest()
    mnt = mount("qemu:///system", "idle-end=1")
    now = collection(mnt, guest) / "now"
    now.mkdir()
    with (now / file).open("rb"):
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert text(now / "state") == "running"
    wait_for(lambda: not now.exists(), 10, "ended")
    assert not job_files()


def test_adopted_backup_is_watched_too(guest: Guest, mount) -> None:
    mnt = mount()
    (collection(mnt, guest) / "now").mkdir()
    kill(mnt)
    again = remount(mount, mnt, "idle-end=1")
    wait_for(lambda: not names(collection(again, guest)), 15, "ended")
    assert not guest.has_job() and not job_files()


def test_end_by_hand_as_ever(guest: Guest, mount) -> None:
    mnt = mount("qemu:///system", "idle-end=3600")
    now = collection(mnt, guest) / "now"
    now.mkdir()
    fsutil.command(now, "end")
    assert not now.exists() and not guest.has_job()
