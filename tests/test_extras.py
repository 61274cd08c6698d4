# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a machine needs besides its disks: nvram, tpm, kernel and initrd in a backup."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path

from bed import Guest, Mount, bed_dir, wait_for
from conftest import MakeGuest, MakeMount
from fsutil import NVRAM, TPM, add_firmware

def test_running(mnt: Mount, guest: Guest) -> None:
    boot = guest.xml().find("os")
    backup = mnt.domains / guest.name / "backups" / "now"
    backup.mkdir()
    names = os.listdir(backup)
    assert "kernel" in names and "initrd" in names
    assert "nvram" not in names and "tpm" not in names
    assert not (backup / "nvram").exists()
    for kind in ("kernel", "initrd"):
        original = Path(boot.find(kind).text).read_bytes()
        assert (backup / kind).stat().st_size == len(original)
        assert (backup / kind).read_bytes() == original
        assert stat.S_IMODE((backup / kind).stat().st_mode) == 0o640
    backup.rmdir()


def test_firmware(mnt: Mount, off_guest: MakeGuest) -> None:
    guest = off_guest()
    store, tpm = add_firmware(guest)
    backup = mnt.domains / guest.name / "backups" / "now"
    backup.mkdir()
    # What comes later is not in it.
    store.write_bytes(b"later")
    tpm.write_bytes(b"later")
    assert (backup / "nvram").read_bytes() == NVRAM
    assert (backup / "tpm").read_bytes() == TPM
    for kind in ("nvram", "tpm"):
        assert stat.S_IMODE((backup / kind).stat().st_mode) == 0o400
    subprocess.run(["cp", str(backup / "nvram"), str(bed_dir() / "tmp" / "copy")], check=True)
    assert (bed_dir() / "tmp" / "copy").read_bytes() == NVRAM
    (bed_dir() / "tmp" / "copy").unlink()
    backup.rmdir()


def test_missing_is_told(mnt: Mount, off_guest: MakeGuest) -> None:
    """The disks are worth a backup without it, but nobody is left in the dark."""
    guest = off_guest()
    for file in add_firmware(guest):
        file.unlink()
    backup = mnt.domains / guest.name / "backups" / "now"
    backup.mkdir()
    assert not (backup / "nvram").exists()
    events = (mnt.path / ".vmsnapfs" / "events").read_text()
    assert "without 'nvram' of the machine" in events
    assert "without 'tpm' of the machine" in events
    backup.rmdir()


def test_survive_a_crash(mount: MakeMount, guest: Guest) -> None:
    initrd = Path(guest.xml().find("os/initrd").text).read_bytes()
    first = mount()
    backup = Path("domains", guest.name, "backups", "now")
    (first.path / backup).mkdir()
    first.signal(signal.SIGKILL)
    first.process.wait()
    subprocess.run(["umount", "-l", str(first.path)], check=True)
    second = mount()
    wait_for((second.path / backup).exists, 10, "the backup is listed again")
    assert (second.path / backup / "initrd").read_bytes() == initrd
    (second.path / backup).rmdir()
