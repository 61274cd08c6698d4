# SPDX-License-Identifier: LGPL-2.1-or-later
"""Backups of machines that are off: from their images, under QEMU's image lock (row 70)."""

from __future__ import annotations

import errno
import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from bed import MIB, Disk, Guest, Mount, check_ext4, raises_errno, sh, wait_for
from test_backup import collection, compare, digest, text


def use_image(guest: Guest, image: Path) -> None:
    """Has the machine's first disk be another image."""
    xml = guest.xml(inactive=True)
    xml.find("devices/disk/source").set("file", str(image))
    guest.domain.connect().defineXML(ET.tostring(xml).decode())


def qemu_nbds() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "comm").read_text().strip() == "qemu-nbd":
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def compress(guest: Guest) -> None:
    """Has qemu-nbd be needed for the machine's first disk: what is plain is read without."""
    image = guest.disk_path("vda")
    packed = image.with_name("packed.qcow2")
    sh(["qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", str(image), str(packed)])
    packed.replace(image)


def test_off_machine_is_read_from_its_images(off_guest, mnt: Mount, tmp_path: Path) -> None:
    guest = off_guest(Disk(), Disk("vdb", "raw", size=100 * MIB + 512))
    now = collection(mnt, guest) / "now"
    now.mkdir()
    assert text(now / "consistency") == "offline"
    assert text(now / "state") == "running"
    assert (now / "backup.xml").read_text() == ""
    assert (now / "disks/vdb.raw").stat().st_size == 100 * MIB + 512
    assert (now / "disks/vda.raw").stat().st_blocks > 0
    sh(["find", str(now), "-ls"])
    assert not qemu_nbds(), "walking starts nothing"
    for target, fmt in (("vda", "qcow2"), ("vdb", "raw")):
        copy = tmp_path / f"{target}.raw"
        sh(["cp", "--sparse=auto", str(now / f"disks/{target}.raw"), str(copy)])
        sh(["qemu-img", "compare", "-U", "-f", fmt, "-F", "raw",
            str(guest.disk_path(target)), str(copy)])
        check_ext4(copy)
    assert not qemu_nbds(), "plain images are read from their files"
    now.rmdir()


def test_what_is_compressed_is_read_through_qemu_nbd(off_guest, mnt: Mount,
                                                     tmp_path: Path) -> None:
    guest = off_guest()
    compress(guest)
    now = collection(mnt, guest) / "now"
    now.mkdir()
    sh(["find", str(now), "-ls"])
    assert not qemu_nbds(), "walking starts nothing"
    sh(["cp", str(now / "disks/vda.raw"), str(tmp_path / "vda.raw")])
    compare(guest.disk_path("vda"), "qcow2", tmp_path / "vda.raw")
    assert len(qemu_nbds()) == 1
    now.rmdir()
    assert not qemu_nbds()


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_off_machine_cannot_start_under_a_backup(off_guest, mnt: Mount, fmt: str) -> None:
    guest = off_guest(Disk(format=fmt))
    now = collection(mnt, guest) / "now"
    now.mkdir()
    with pytest.raises(libvirt.libvirtError, match="lock"):
        guest.domain.create()
    assert "backups/now" in (mnt.domains / guest.name / "job").read_text()
    now.rmdir()
    guest.start()


def test_image_open_for_writing_is_refused(off_guest, mnt: Mount) -> None:
    first = off_guest()
    second = off_guest()
    use_image(second, first.disk_path("vda"))
    first.start()
    with raises_errno(errno.EBUSY):
        (collection(mnt, second) / "now").mkdir()
    assert "open for writing" in (mnt.domains / second.name / "error").read_text()


def test_managed_save_is_crash(make_guest, mnt: Mount) -> None:
    guest = make_guest()
    guest.domain.managedSave()
    wait_for(guest.is_off, 30, "saved")
    now = collection(mnt, guest) / "now"
    now.mkdir()
    assert text(now / "consistency") == "crash"
    assert (now / "disks/vda.raw").read_bytes()[:1] is not None
    now.rmdir()


def test_chain_of_images(off_guest, mnt: Mount, tmp_path: Path) -> None:
    guest = off_guest()
    base = guest.disk_path("vda")
    top = base
    for level in range(4):
        overlay = base.with_name(f"level {level}, 'it's'.qcow2")
        sh(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(top), "-F", "qcow2", str(overlay)])
        sh(["qemu-io", "-f", "qcow2", "-c", f"write -P {level + 1} {level}M 1M", str(overlay)])
        top = overlay
    use_image(guest, top)
    now = collection(mnt, guest) / "now"
    now.mkdir()
    copy = tmp_path / "copy.raw"
    shutil.copyfile(now / "disks/vda.raw", copy)
    now.rmdir()
    compare(top, "qcow2", copy)


def overlay_on(guest: Guest, backing: str) -> Path:
    """An image whose header names that backing file, which qemu-img need not open."""
    overlay = guest.disk_path("vda").with_name("overlay.qcow2")
    sh(["qemu-img", "create", "-q", "-f", "qcow2", str(overlay), "256M"])
    sh(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", backing, "-F", "raw", str(overlay)])
    return overlay


@pytest.mark.parametrize("backing", ['json:{"driver":"null-co"}', "nbd://localhost/x"])
def test_backing_of_another_kind(off_guest, mnt: Mount, backing: str) -> None:      # row 109
    guest = off_guest()
    use_image(guest, overlay_on(guest, backing))
    with raises_errno(errno.EOPNOTSUPP):
        (collection(mnt, guest) / "now").mkdir()


def test_backing_without_a_format_is_not_probed(off_guest, mnt: Mount) -> None:     # row 108
    guest = off_guest()
    overlay = overlay_on(guest, "/etc/hostname")
    image = overlay.read_bytes()
    assert image.count(b"\xe2\x79\x2a\xca") == 1
    # The extension with the format becomes one that nobody knows.
    overlay.write_bytes(image.replace(b"\xe2\x79\x2a\xca", b"\x12\x34\x56\x78"))
    use_image(guest, overlay)
    with raises_errno(errno.EOPNOTSUPP):
        (collection(mnt, guest) / "now").mkdir()
    assert "format" in (mnt.domains / guest.name / "error").read_text()


def test_server_of_an_off_machine_dies(off_guest, mnt: Mount) -> None:  # row 50
    guest = off_guest()
    compress(guest)
    now = collection(mnt, guest) / "now"
    now.mkdir()
    path = now / "disks/vda.raw"
    expected = digest(path)
    with path.open("rb", buffering=0) as file:
        assert len(os.pread(file.fileno(), 4096, 0)) == 4096
        (pid,) = qemu_nbds()
        os.kill(pid, 9)
        wait_for(lambda: pid not in qemu_nbds(), 5, "the server is dead")
    # The kernel has the pages; a new node has none, so this goes to a new server.
    direct = sh(f"dd if={path} bs=1M iflag=direct status=none | sha256sum").stdout.split()[0]
    assert direct == expected
    now.rmdir()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    backing = tmp_path / "device"
    with backing.open("wb") as file:
        file.truncate(16 * MIB)
    device = sh(["losetup", "--show", "-f", str(backing)]).stdout.strip()
    yield Path(device)
    sh(["losetup", "-d", device])


# Each QEMU has a /dev of its own, so a lock on the node would keep nobody off.
@pytest.mark.parametrize("below", [False, True], ids=["top", "base"])
def test_block_device_cannot_be_locked(off_guest, mnt: Mount, loop: Path, below: bool) -> None:
    guest = off_guest()
    xml = guest.xml(inactive=True)
    disk = xml.find("devices/disk")
    if below:
        top = guest.dir / "top.qcow2"
        sh(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(loop), str(top)])
        disk.find("source").set("file", str(top))
    else:
        disk.set("type", "block")
        disk.find("driver").set("type", "raw")
        disk.remove(disk.find("source"))
        ET.SubElement(disk, "source", dev=str(loop))
    guest.domain.connect().defineXML(ET.tostring(xml).decode())
    now = collection(mnt, guest) / "now"
    if below:
        now.mkdir()
        assert len((now / "disks/vda.raw").read_bytes()) == 16 * MIB
        now.rmdir()
        return
    with raises_errno(errno.EOPNOTSUPP):
        now.mkdir()
    error = (mnt.domains / guest.name / "error").read_text()
    assert f"the block device '{loop}', which cannot be locked" in error
    assert "offline=paused" in error
