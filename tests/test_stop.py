# SPDX-License-Identifier: LGPL-2.1-or-later
"""The end of the daemon: ordered where the host answers, bounded where it hangs."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from pathlib import Path

import libvirt

import fsutil
from bed import Guest, Mount, mount_points, patient, raises_errno, sh, wait_for, within
from fsutil import HungLibvirtd, hung
from test_backup import collection, digest, text
from test_offline import compress, qemu_nbds
from test_recovery import job_files, names

__all__ = ["hung"]

JOURNAL = Path("/var/lib/vmsnapfs")
BOUND = 15


def stop(mnt: Mount) -> float:
    """Asks for the end; when it did."""
    mnt.signal(signal.SIGTERM)
    return time.monotonic()


def ends_by(mnt: Mount, begin: float, seconds: float = BOUND) -> None:
    assert mnt.process.wait(patient(seconds) + 10) == 0
    assert time.monotonic() - begin < patient(seconds)
    assert not mnt.is_mounted()


def records() -> list[Path]:
    return list(JOURNAL.rglob("*.json"))


def is_refusing(mnt: Mount) -> bool:
    try:
        os.stat(mnt.domains / "no such machine")
    except OSError as error:
        return error.errno == errno.EIO
    return False


def test_unmount_with_a_hung_host(guest: Guest, mount, hung: HungLibvirtd) -> None:
    mnt = mount()
    (collection(mnt, guest) / "now").mkdir()
    hung.hang()
    begin = time.monotonic()
    sh(["fusermount3", "-u", str(mnt.path)])
    ends_by(mnt, begin)
    hung.go_on()
    again = mount("qemu:///system", "recover=end")
    wait_for(lambda: not guest.has_job() and not job_files(), 10, "ended by the next start")
    assert names(collection(again, guest)) == []


def test_nobody_waits_for_the_end(guest: Guest, mount, hung: HungLibvirtd) -> None:
    mnt = mount()
    now = collection(mnt, guest) / "now"
    now.mkdir()
    expected = digest(now / "disks/vda.raw")
    with (now / "full/vda.qcow2").open("rb") as file:
        last_page = os.fstat(file.fileno()).st_size - 4096
        hung.hang()
        waiting = fsutil.write(mnt.domains / guest.name / "control", "suspend")
        waiting.wait_blocked()
        begin = stop(mnt)
        assert waiting.errno(4) in (errno.EIO, errno.ECANCELED)
        assert time.monotonic() - begin < patient(3)
        wait_for(lambda: is_refusing(mnt), 2, "refused")
        for call in (lambda: os.listdir(mnt.path), lambda: os.mkdir(now.parent / "late"),
                     lambda: os.open(now / "disks/vda.raw", os.O_RDONLY),
                     lambda: os.pread(file.fileno(), 4096, last_page),
                     lambda: (mnt.path / ".vmsnapfs/stats").read_text()):
            with within(0.5, "the refusal"), raises_errno(errno.EIO):
                call()
        assert mnt.process.poll() is None
    ends_by(mnt, begin)
    hung.go_on()
    assert guest.has_job() and len(records()) == 1
    again = mount()
    now = collection(again, guest) / "now"
    assert text(now / "state") == "running" and digest(now / "disks/vda.raw") == expected
    now.rmdir()
    assert not guest.has_job() and not job_files()
    wait_for(lambda: guest.is_running(), 5, "the command was not done later")


def test_follower_of_an_idle_mount_ends_at_once(mount, hung: HungLibvirtd) -> None:
    mnt = mount()
    follower = fsutil.Caller(fsutil.READ, "open(sys.argv[1], 'rb', buffering=0).readall()",
                             mnt.path / ".vmsnapfs/events.follow")
    follower.wait_blocked()
    hung.hang()
    begin = stop(mnt)
    assert follower.errno(3) in (0, errno.EIO)
    ends_by(mnt, begin)
    hung.go_on()
    assert not job_files()


# What is ours alone does not wait for the host.
def test_off_machine_is_free_after_the_end(off_guest, guest: Guest, mount,
                                           hung: HungLibvirtd) -> None:
    off = off_guest()
    compress(off)
    mnt = mount()
    now = collection(mnt, off) / "now"
    now.mkdir()
    digest(now / "disks/vda.raw")
    (collection(mnt, guest) / "live").mkdir()
    assert len(qemu_nbds()) == 1
    hung.hang()
    ends_by(mnt, stop(mnt))
    assert not qemu_nbds()
    assert len(records()) == 1
    hung.go_on()
    off.start(wait=False)
    again = mount("qemu:///system", "recover=end")
    wait_for(lambda: not guest.has_job() and not job_files(), 10, "ended")
    assert names(collection(again, off)) == []


def test_frozen_guest_is_thawed_when_the_host_is_back(guest: Guest, mount,
                                                      hung: HungLibvirtd) -> None:
    mnt = mount()
    fsutil.command(mnt.domains / guest.name, "freeze timeout=60")
    assert guest.command("guest-fsfreeze-status") == "frozen"
    hung.hang()
    ends_by(mnt, stop(mnt))
    hung.go_on()

    def thawed() -> bool:
        with contextlib.suppress(libvirt.libvirtError):
            return guest.command("guest-fsfreeze-status", timeout=3) == "thawed"
        return False
    wait_for(thawed, 10, "thawed by the watchdog")
    mount()
    wait_for(lambda: not job_files(), 10, "no mark is left")


# Not given up: a host that comes back in time ends the backup in order.
def test_short_hang_is_waited_for(guest: Guest, mount, hung: HungLibvirtd) -> None:
    mnt = mount()
    (collection(mnt, guest) / "now").mkdir()
    hung.hang()
    begin = stop(mnt)
    wait_for(lambda: is_refusing(mnt), 3, "refused")
    hung.go_on()
    ends_by(mnt, begin)
    assert not guest.has_job() and not job_files()
    assert str(mnt.path) not in mount_points()
