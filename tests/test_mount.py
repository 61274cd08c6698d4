# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ways to start and to look: mount(8), fstab, --doctor, the supervisor of many hosts."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bed import VMSNAPFS, Guest, Mount, bed_dir, mount_points, sh, wait_for


@pytest.fixture
def point() -> Iterator[Path]:
    path = bed_dir() / "mnt" / "by hand"
    path.mkdir()
    yield path
    if str(path) in mount_points():
        sh(["umount", "-l", str(path)])
    path.rmdir()


@pytest.fixture
def in_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As installed: mount(8) looks in a PATH of its own. Only the bed sees it."""
    place = "/usr/local/sbin"
    sh(["mount", "-t", "tmpfs", "vmsnapfs-tests", place])
    (Path(place) / "vmsnapfs").symlink_to(VMSNAPFS)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    yield
    sh(["umount", place])


def daemons() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "comm").read_text().strip() == "vmsnapfs":
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def unmount(point: Path) -> None:
    sh(["umount", str(point)])
    wait_for(lambda: not daemons(), 30, "the daemon has ended")


def test_mount_type(point: Path, in_path: None, guest: Guest) -> None:
    sh(["mount", "-t", "fuse.vmsnapfs", "qemu:///system", str(point), "-o", "allow_other,noatime"])
    assert guest.name in os.listdir(point / "domains")
    (point / "domains" / guest.name / "backups" / "now").mkdir()
    (point / "domains" / guest.name / "backups" / "now").rmdir()
    unmount(point)


def test_fstab_line(point: Path, in_path: None, tmp_path: Path, guest: Guest) -> None:
    fstab = tmp_path / "fstab"
    escaped = str(point).replace(" ", "\\040")
    fstab.write_text(f"qemu:///system {escaped} fuse.vmsnapfs "
                     f"ro,noauto,nofail,x-systemd.automount,domains={guest.name}* 0 0\n")
    sh(["mount", "-T", str(fstab), str(point)])
    assert os.listdir(point / "domains") == [guest.name]
    with pytest.raises(OSError, match="Read-only"):
        (point / "domains" / guest.name / "backups" / "now").mkdir()
    unmount(point)


def read_ahead_of(path: Path) -> Path:
    device = path.stat().st_dev
    return Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")


def test_kernel_reads_ahead(mount: Callable[..., Mount]) -> None:
    """As much as one request can hold; where it may not be said, as much as the kernel likes."""
    setting = read_ahead_of(mount("qemu:///system").path)
    wait_for(lambda: setting.read_text() == "1024\n", 10, "read-ahead of 1 MiB")
    sh(["mount", "-t", "tmpfs", "vmsnapfs-tests", "/sys/class/bdi"])
    try:
        mnt = mount("qemu:///system", "-d", f"state-dir={bed_dir()}/state-ahead",
                    f"run-dir={bed_dir()}/run-ahead")
        wait_for(lambda: "read-ahead stays as it is" in mnt.log(), 10, "a word about it")
        assert "domains" in os.listdir(mnt.path)
    finally:
        sh(["umount", "/sys/class/bdi"])
    assert read_ahead_of(mnt.path).read_text() == "128\n"


def test_doctor_says_what_it_sees(guest: Guest) -> None:
    done = sh([str(VMSNAPFS), "--doctor", "qemu:///system"], check=False, timeout=60)
    print(done.stdout, done.stderr)
    for what in ("libvirt", "scratch", "guest files"):
        assert what in done.stdout
    assert "OK    guest files     read by an appliance with kernel" in done.stdout
    assert done.returncode in (0, 1)


def test_supervisor_brings_a_host_back(point: Path, in_path: None, tmp_path: Path,
                                       guest: Guest) -> None:
    config = tmp_path / "mountd.conf"
    config.write_text(f"[host here]\nuri=qemu:///system\nmountpoint={point}\noptions=ro\n")
    config.chmod(0o600)
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([str(VMSNAPFS.parent / "vmsnapfs-mountd"), "--config",
                                    str(config)], stdout=file, stderr=file)
    try:
        def serves() -> bool:
            try:
                return guest.name in os.listdir(point / "domains")
            except OSError:
                return False
        wait_for(serves, 20, "mounted")
        (first,) = daemons()
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: serves() and daemons() != [first], 20, "mounted again")
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
        print(log.read_text())
    assert code == 0
    assert str(point) not in mount_points() and not daemons()
