# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon ends, is killed, comes back: nothing is left, nothing of the guest is harmed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from bed import (VMSNAPFS, Guest, Mount, bed_dir, libvirtd, mount_points, raises_errno, sh,
                 wait_for)
from test_backup import collection, digest, text

RUN, STATE = Path("/run/vmsnapfs"), Path("/var/lib/vmsnapfs")


def job_files() -> list[Path]:
    """Sockets, scratch images and journal records."""
    return [p for top in (RUN, STATE) for p in top.rglob("*")
            if not p.is_dir() and p.name != "lock"]


def kill(mnt: Mount) -> None:
    mnt.signal(signal.SIGKILL)
    mnt.process.wait(10)


def remount(mount, dead: Mount, *options: str, env: dict[str, str] | None = None) -> Mount:
    """A new daemon on the mount point of a dead one, as a user would start it."""
    sh(["umount", "-l", str(dead.path)], check=False)
    return mount("qemu:///system", *options, env=env)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_backups_and_unmounts(guest: Guest, mount, number: int) -> None:
    mnt = mount()
    (collection(mnt, guest) / "now").mkdir()
    mnt.signal(number)
    assert mnt.process.wait(30) == 0
    assert not mnt.is_mounted()
    assert not guest.has_job() and not job_files()


def test_unmount_ends_backups(guest: Guest, mount) -> None:                        # row 13
    mnt = mount()
    now = collection(mnt, guest) / "now"
    now.mkdir()
    with (now / "disks/vda.raw").open("rb") as file:
        file.read(4096)
        busy = sh(["umount", str(mnt.path)], check=False)
        assert busy.returncode != 0 and "busy" in busy.stderr
        sh(["umount", "-l", str(mnt.path)])
        assert len(os.pread(file.fileno(), 4096, 8192)) == 4096
        assert guest.has_job()
    assert mnt.process.wait(30) == 0
    assert not guest.has_job() and not job_files()


def test_killed_daemon_gives_the_backup_back(guest: Guest, mount) -> None:         # rows 1, 2
    mnt = mount()
    now = collection(mnt, guest) / "now"
    now.mkdir()
    created, expected = text(now / "created"), digest(now / "disks/vda.raw")
    inode = now.stat().st_ino
    kill(mnt)
    with raises_errno(errno.ENOTCONN):
        os.listdir(mnt.path)
    assert guest.has_job()
    again = remount(mount, mnt)
    now = collection(again, guest) / "now"
    assert text(now / "state") == "running"
    assert text(now / "created") == created
    assert now.stat().st_ino == inode                                              # row 43
    assert digest(now / "disks/vda.raw") == expected
    now.rmdir()
    assert not guest.has_job() and not job_files()


def test_killed_daemon_and_stopped_machine(make_guest, mount) -> None:
    guest = make_guest()
    mnt = mount()
    (collection(mnt, guest) / "now").mkdir()
    kill(mnt)
    guest.destroy()
    again = remount(mount, mnt)
    assert not list(collection(again, guest).iterdir())
    assert not job_files()


def test_killed_daemon_and_off_machine(off_guest, mount) -> None:
    guest = off_guest()
    mnt = mount()
    now = collection(mnt, guest) / "now"
    now.mkdir()
    digest(now / "disks/vda.raw")
    kill(mnt)
    again = remount(mount, mnt)
    assert not list(collection(again, guest).iterdir())
    assert not job_files()
    guest.start()


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if not p.is_symlink())


def test_second_daemon_says_who_is_there(mnt: Mount) -> None:                      # row 6
    other = bed_dir() / "mnt" / "other"
    other.mkdir()
    done = subprocess.run([str(VMSNAPFS), "-f", "qemu:///system", str(other)], text=True,
                          capture_output=True, timeout=30)
    assert done.returncode == 1 and f"already served by pid {mnt.pid}" in done.stderr
    other.rmdir()


def test_dead_mount_is_cleaned_at_start(mount) -> None:                            # row 5
    mnt = mount()
    kill(mnt)
    done = sh([str(VMSNAPFS), "--recover", str(mnt.path)])
    assert done.returncode == 0
    assert str(mnt.path) not in mount_points()


def test_background_start_is_ready_when_it_returns(mount, tmp_path: Path) -> None:  # row 16
    point, pid_file = bed_dir() / "mnt" / "back", tmp_path / "pid"
    point.mkdir()
    sh([str(VMSNAPFS), f"--pid-file={pid_file}", "qemu:///system", str(point)], timeout=30)
    assert (point / "domains").is_dir()
    pid = int(pid_file.read_text())
    descriptors = [os.readlink(p) for p in Path(f"/proc/{pid}/fd").iterdir() if p.is_symlink()]
    assert descriptors.count("/dev/fuse") == 1                                     # row 15
    sh(["fusermount3", "-u", str(point)])
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), 30, "the daemon has ended")
    point.rmdir()


def test_libvirtd_stopped_and_started(guest: Guest, mnt: Mount) -> None:
    state, stats = mnt.domains / guest.name / "state", mnt.path / ".vmsnapfs/stats"
    assert text(state) == "running"
    libvirtd("stop")
    try:
        wait_for(lambda: "connected: no" in stats.read_text(), 10, "seen")
        assert text(state) == "running"
        assert "stale: yes" in stats.read_text()
        with raises_errno(errno.EHOSTUNREACH):
            (collection(mnt, guest) / "now").mkdir()
        with raises_errno(errno.EHOSTUNREACH):
            (mnt.domains / guest.name / "control").write_text("suspend\n")
    finally:
        libvirtd("start")
    wait_for(lambda: "connected: yes" in stats.read_text(), 15, "connected again")
    now = collection(mnt, guest) / "now"

    def made() -> bool:
        try:
            now.mkdir()
        except OSError:
            return False
        return True
    wait_for(made, 15, "a backup again")
    now.rmdir()


def test_libvirtd_hangs(guest: Guest, mount) -> None:                              # row 11
    mnt = mount("qemu:///system", "action-timeout=3")
    assert text(mnt.domains / guest.name / "state") == "running"
    pid = int(Path("/run/libvirt/bed-libvirtd.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        assert text(mnt.domains / guest.name / "state") == "running"
        with raises_errno(errno.ETIMEDOUT, errno.EHOSTUNREACH):
            (collection(mnt, guest) / "now").mkdir()
        wait_for(lambda: text(mnt.domains / guest.name / "state") == "running"
                 and "stale: yes" in (mnt.path / ".vmsnapfs/stats").read_text(), 5, "stale")
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: "stale: no" in (mnt.path / ".vmsnapfs/stats").read_text(), 30, "back")
    wait_for(lambda: not guest.has_job() and not job_files(), 30, "nothing begun is left")
