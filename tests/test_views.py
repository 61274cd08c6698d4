# SPDX-License-Identifier: LGPL-2.1-or-later
"""The computed views of a disk: its allocation map, and the disk as a qcow2."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import json
import os
import random
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bed import MIB, Disk, Guest, Mount, check_ext4, raises_errno, sh, wait_for
from conftest import session_guests
from test_backup import collection, digest, text
from test_offline import compress, qemu_nbds

# vda has a file system; vdb is raw, no multiple of a cluster; vdc has small clusters; vdd is
# empty; vde is smaller than a cluster; vdf is full.
DISKS = (Disk(), Disk("vdb", "raw", size=512 * MIB - 512, fs=False),
         Disk("vdc", fs=False, cluster_size=4096), Disk("vdd", fs=False),
         Disk("vde", "raw", size=10240, fs=False), Disk("vdf", "raw", size=8 * MIB, fs=False))
TARGETS = [disk.target for disk in DISKS]


def fill(guest: Guest) -> None:
    """Data, zeroes that were written, and holes, on the disks without a file system."""
    sh(["qemu-io", "-f", "raw", "-c", "write -P 17 0 64k", "-c", "write -P 18 1M 3M",
        "-c", "write -z 8M 1M", "-c", "write -P 19 9M 4k", "-c", "write -P 20 511M 1000448",
        "-c", "discard 2M 512k", str(guest.disk_path("vdb"))])
    sh(["qemu-io", "-f", "qcow2", "-c", "write -P 21 0 1k", "-c", "write -z 20M 1M",
        "-c", "write -P 22 50M 200k", "-c", "write -P 23 255M 1M", str(guest.disk_path("vdc"))])
    guest.disk_path("vde").write_bytes(random.Random(1).randbytes(10240))
    guest.disk_path("vdf").write_bytes(random.Random(2).randbytes(8 * MIB))


@pytest.fixture(scope="module", params=["live", "off"])
def views_guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    guest = Guest(f"views-{request.param}")
    guest.define(*DISKS)
    fill(guest)
    if request.param == "live":
        session_guests.append(guest)
        guest.start()
        guest.suspend()                 # so that its maps stand still
    yield guest
    if guest in session_guests:
        session_guests.remove(guest)
    guest.undefine()


@pytest.fixture
def backup(views_guest: Guest, mnt: Mount) -> Iterator[Path]:
    path = collection(mnt, views_guest) / "now"
    path.mkdir()
    yield path
    if path.exists():
        (path / "control").write_text("end force\n")
        wait_for(lambda: not path.exists(), 30, "ended")


### Maps

def listens(socket: Path) -> bool:
    """Whether a connection would be taken: the name is there a moment earlier."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return any(line.endswith(f" {socket}") and line.split()[3] == "00010000" for line in lines)


@contextlib.contextmanager
def export_of(backup: Path, guest: Guest, disk: Disk, tmp_path: Path) -> Iterator[str]:
    """An NBD export of the disk: libvirt's, or that of a qemu-nbd over its image."""
    description = (backup / "backup.xml").read_text()
    if description:
        server = ET.fromstring(description).find("server")
        assert server is not None
        yield f"nbd+unix:///{disk.target}?socket={server.attrib['socket']}"
        return
    socket = tmp_path / "s"
    process = subprocess.Popen(["qemu-nbd", "-r", "-t", "-k", str(socket), "-f", disk.format,
                                str(guest.disk_path(disk.target))])
    wait_for(lambda: listens(socket), 60, "qemu-nbd listens")
    try:
        yield f"nbd+unix:///?socket={socket}"
    finally:
        process.kill()
        process.wait()


def entries(backup: Path, target: str) -> list[dict[str, Any]]:
    found = json.loads((backup / f"maps/{target}.json").read_text())
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("disk", DISKS, ids=TARGETS)
def test_map_is_that_of_the_export(backup: Path, views_guest: Guest, disk: Disk,
                                   tmp_path: Path) -> None:
    found = entries(backup, disk.target)
    with export_of(backup, views_guest, disk, tmp_path) as uri:
        out = sh(["qemu-img", "map", "--output=json", "-f", "raw", uri])
    assert found == json.loads(out.stdout)
    assert sum(entry["length"] for entry in found) == disk.size


def test_map_tells_data_and_holes(backup: Path) -> None:
    kinds = {(entry["data"], entry["zero"]) for target in TARGETS
             for entry in entries(backup, target)}
    assert {(True, False), (False, True)} <= kinds
    assert len(entries(backup, "vdb")) > 5


def test_map_has_its_size_and_cannot_be_written(backup: Path) -> None:
    path = backup / "maps/vdb.json"
    assert path.stat().st_size == len(path.read_bytes()) > 100
    assert path.read_text() == path.read_text()
    with raises_errno(errno.EROFS):
        path.write_text("x")


def test_map_finds_what_seek_finds(backup: Path) -> None:
    descriptor = os.open(backup / "disks/vdb.raw", os.O_RDONLY)
    for entry in entries(backup, "vdb"):
        whence = os.SEEK_HOLE if entry["zero"] else os.SEEK_DATA
        assert os.lseek(descriptor, entry["start"], whence) == entry["start"]
    os.close(descriptor)


### The qcow2 view

@pytest.mark.parametrize("disk", DISKS, ids=TARGETS)
def test_full_is_a_sound_image_of_the_disk(backup: Path, disk: Disk, tmp_path: Path) -> None:
    view, raw = backup / f"full/{disk.target}.qcow2", backup / f"disks/{disk.target}.raw"
    size = view.stat().st_size
    copy = tmp_path / "copy.qcow2"
    sh(["cp", str(view), str(copy)])
    assert copy.stat().st_size == size == view.stat().st_size
    assert size < raw.stat().st_blocks * 512 + 64 * 1024 * 64
    for image in (view, copy):
        report = sh(["qemu-img", "check", "--output=json", "-f", "qcow2", str(image)]).stdout
        assert json.loads(report)["check-errors"] == 0 and "leaks" not in report
        assert json.loads(report)["image-end-offset"] == size
    sh(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(view), str(raw)])
    sh(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(copy), str(raw)])
    info = json.loads(sh(["qemu-img", "info", "--output=json", str(view)]).stdout)
    assert info["virtual-size"] == disk.size
    assert info["format-specific"]["data"]["compat"] == "1.1"
    assert "backing-filename" not in info


def test_full_has_only_what_has_data(backup: Path) -> None:
    assert (backup / "full/vdd.qcow2").stat().st_size == 4 * 65536
    assert (backup / "full/vde.qcow2").stat().st_size == 6 * 65536
    assert (backup / "full/vdf.qcow2").stat().st_size == 8 * MIB + 5 * 65536
    assert (backup / "full/vdb.qcow2").stat().st_size < 6 * MIB


@pytest.mark.parametrize("tool", ["cat", "cp --sparse=always", "rsync -S", "tar -S", "dd",
                                  "shutil", "dd direct"])
def test_tools_copy_the_view(backup: Path, tmp_path: Path, tool: str) -> None:
    view, copy = backup / "full/vdb.qcow2", tmp_path / "vdb.qcow2"
    commands = {
        "cat": f"cat {view} > {copy}",
        "cp --sparse=always": f"cp --sparse=always {view} {copy}",
        "rsync -S": f"rsync -S {view} {copy}",
        "tar -S": f"tar -C {view.parent} -S -cf - {view.name} | tar -C {tmp_path} -xf -",
        "dd": f"dd if={view} of={copy} bs=1M conv=sparse status=none",
        "dd direct": f"dd if={view} of={copy} bs=300k iflag=direct status=none",
    }
    if tool == "shutil":
        shutil.copyfile(view, copy)
    else:
        sh(commands[tool])
    assert copy.stat().st_size == view.stat().st_size
    assert filecmp.cmp(copy, view, shallow=False)
    sh(["qemu-img", "check", "-f", "qcow2", str(copy)])
    sh(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(copy),
        str(backup / "disks/vdb.raw")])


READER = """
import os, random, sys
rng = random.Random(int(sys.argv[3]))
view, copy = (os.open(path, os.O_RDONLY) for path in sys.argv[1:3])
size = os.fstat(copy).st_size
for _ in range(3000):
    offset = rng.randrange(size)
    length = rng.choice((1, 512, 4096, 65536, 262144, rng.randrange(1, 1 << 20)))
    assert os.pread(view, length, offset) == os.pread(copy, length, offset), (offset, length)
"""


def test_random_reads_by_several(backup: Path, tmp_path: Path) -> None:
    for target in ("vda", "vdb"):
        view, copy = backup / f"full/{target}.qcow2", tmp_path / f"{target}.qcow2"
        shutil.copyfile(view, copy)
        readers = [subprocess.Popen([sys.executable, "-c", READER, str(view), str(copy), str(i)])
                   for i in range(4)]
        assert [reader.wait(120) for reader in readers] == [0] * 4


def test_full_is_a_disk_and_a_backing_file(backup: Path, tmp_path: Path) -> None:
    view, raw = backup / "full/vda.qcow2", backup / "disks/vda.raw"
    converted, overlay = tmp_path / "vda.raw", tmp_path / "overlay.qcow2"
    sh(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(view), str(converted)])
    assert digest(converted) == digest(raw)
    check_ext4(converted)
    sh(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(view), "-F", "qcow2", str(overlay)])
    sh(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(overlay), str(raw)])
    sh(["qemu-io", "-f", "qcow2", "-c", "write -P 99 1M 1M", "-c", "read -P 99 1M 1M",
        str(overlay)])
    with raises_errno(errno.EROFS):
        view.open("r+b")


def test_a_reader_of_the_view_holds_the_backup(backup: Path) -> None:
    with (backup / "full/vda.qcow2").open("rb") as file:
        assert file.read(4) == b"QFI\xfb"
        with raises_errno(errno.EBUSY):
            backup.rmdir()
        assert str(os.getpid()) in (backup / "error").read_text()
    backup.rmdir()
    assert not qemu_nbds()


### Walking

def test_views_open_by_name_and_walking_starts_nothing(off_guest, mnt: Mount) -> None:
    guest = off_guest()
    compress(guest)
    for view, name in (("maps", "vda.json"), ("full", "vda.qcow2")):
        now = collection(mnt, guest) / "now"
        now.mkdir()
        assert view not in os.listdir(now)
        sh(["find", str(now), "-ls"])
        assert os.listdir(now / view) == [name]
        assert not qemu_nbds()
        assert (now / view / name).stat().st_size > 0
        assert not qemu_nbds(), "the tables say where the data is"
        assert (now / view / name).read_bytes()
        assert len(qemu_nbds()) == (view == "full")
        now.rmdir()
        assert not qemu_nbds()


### The end

def test_views_of_an_ended_backup_are_eio(backup: Path) -> None:
    view, late = backup / "full/vda.qcow2", backup / "full/vdb.qcow2"
    late_fd = os.open(late.parent, os.O_RDONLY | os.O_DIRECTORY)
    with view.open("rb") as file, (backup / "maps/vdb.json").open("rb") as map_file:
        file.read(4096)
        (backup / "control").write_text("end force\n")
        wait_for(lambda: not backup.exists(), 30, "ended")
        forget_pages(file.fileno())
        with raises_errno(errno.EIO):
            os.pread(file.fileno(), 4096, view_data_offset(file.fileno()))
        assert map_file.read().startswith(b"[{")            # a text is taken at open
    with raises_errno(errno.EIO, errno.ENOENT):
        os.open(late.name, os.O_RDONLY, dir_fd=late_fd)
    os.close(late_fd)


def forget_pages(descriptor: int) -> None:
    """What the kernel has read ahead stays right, and readable."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def view_data_offset(descriptor: int) -> int:
    return os.fstat(descriptor).st_size - 65536


def test_machine_stops_under_a_reader_of_the_view(make_guest, mnt: Mount) -> None:
    guest = make_guest()
    now = collection(mnt, guest) / "now"
    now.mkdir()
    with (now / "full/vda.qcow2").open("rb") as file:
        assert len(file.read(4096)) == 4096
        guest.destroy()
        wait_for(lambda: text(now / "state").startswith("failed"), 20, "failed")
        forget_pages(file.fileno())
        with raises_errno(errno.EIO):
            os.pread(file.fileno(), 4096, view_data_offset(file.fileno()))
    with raises_errno(errno.EIO):
        (now / "maps/vda.json").read_text()
    now.rmdir()
