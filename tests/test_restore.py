# SPDX-License-Identifier: LGPL-2.1-or-later
"""contrib/restore: a machine from a folder of copies, and nothing ever overwritten."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from bed import REPO, Disk, Guest, Mount, bed_dir, connection, sh
from conftest import MakeGuest

RESTORE = str(REPO / "contrib" / "restore")
WORDS = "written before the backup"


@pytest.fixture
def folder() -> Iterator[Path]:
    path = bed_dir() / "copies"
    path.mkdir()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def images() -> Iterator[Path]:
    path = bed_dir() / "images" / "restored"
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def restored() -> Iterator[list[str]]:
    """Names of machines to be undefined after the test."""
    names: list[str] = []
    yield names
    for name in names:
        with contextlib.suppress(libvirt.libvirtError):
            domain = connection().lookupByName(name)
            if domain.isActive():
                domain.destroy()
            domain.undefine()


def copy_backup(mnt: Mount, guest: Guest, into: Path, *, images: str = "full") -> None:
    backup = mnt.domains / guest.name / "backups" / "today"
    backup.mkdir()
    try:
        shutil.copytree(backup / images, into)
        shutil.copy(backup / "domain.xml", into / "domain.xml")
    finally:
        backup.rmdir()


def restore(folder: Path, images: Path, *options: str) -> str:
    done = sh([RESTORE, "--images", str(images), *options, str(folder)])
    return done.stdout


def refused(folder: Path, images: Path, *options: str) -> str:
    done = sh([RESTORE, "--images", str(images), *options, str(folder)], check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr


def digest(guest: Guest, path: str) -> str:
    return guest.run(f"sha256sum {path}").split()[0]


def test_new_name(mnt: Mount, make_guest: MakeGuest, folder: Path, images: Path,
                  restored: list[str]) -> None:
    guest = make_guest(Disk("vda"), Disk("vdb", "raw"))
    guest.run(f"echo '{WORDS}' >/data/words; head -c 3M /dev/urandom >/data2/big; sync")
    big = digest(guest, "/data2/big")
    copy_backup(mnt, guest, folder / "today")
    out = restore(folder / "today", images, "--name=again")
    restored.append("again")
    assert out == "again is defined; start it with: virsh start again\n"
    again = Guest("again")
    assert again.uuid != guest.uuid
    # Both would write their consoles into one file.
    guest.destroy()
    assert {p.name for p in images.iterdir()} == {"again-vda.qcow2", "again-vdb.qcow2"}
    again.start()
    assert again.run("cat /data/words") == WORDS + "\n"
    assert digest(again, "/data2/big") == big
    again.destroy()


def test_old_name(mnt: Mount, make_guest: MakeGuest, folder: Path, images: Path,
                  restored: list[str]) -> None:
    guest = make_guest()
    guest.run(f"echo '{WORDS}' >/data/words; sync")
    identity = guest.uuid
    copy_backup(mnt, guest, folder / "today", images="disks")
    assert f"a machine '{guest.name}' exists" in refused(folder / "today", images)
    assert not images.exists()
    guest.destroy()
    guest.domain.undefine()
    restore(folder / "today", images)
    restored.append(guest.name)
    again = Guest(guest.name)
    assert again.uuid == identity
    again.start()
    assert again.run("cat /data/words") == WORDS + "\n"
    again.destroy()


def chain(folder: Path, guest: Guest, days: int) -> str:
    """Links as `cp -rT incremental` leaves them; returns the digest of the last day."""
    below: Path | None = None
    for day in range(days):
        place = folder / f"day{day}"
        place.mkdir()
        image = place / "vda.qcow2"
        backing = ["-F", "qcow2", "-b", f"../{below.parent.name}/vda.qcow2"] if below else []
        sh(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(image), "64M"])
        sh(["qemu-io", "-f", "qcow2", "-c", f"write -P {day + 1} {day}M 3M", str(image)])
        (place / "domain.xml").write_text(guest.domain.XMLDesc())
        below = image
    return raw_digest(below)


def raw_digest(image: Path | None) -> str:
    assert image
    raw = image.with_suffix(".flat")
    sh(["qemu-img", "convert", "-O", "raw", str(image), str(raw)])
    text = hashlib.sha256(raw.read_bytes()).hexdigest()
    raw.unlink()
    return text


@pytest.mark.parametrize("keep", [False, True], ids=["one image", "keep the chain"])
def test_chain(off_guest: MakeGuest, folder: Path, images: Path, restored: list[str],
               keep: bool) -> None:
    guest = off_guest()
    wanted = chain(folder, guest, 4)
    restore(folder / "day3", images, "--name=again", *(["--keep-chain"] if keep else []))
    restored.append("again")
    # Nothing of the copies is needed any more.
    shutil.rmtree(folder / "day0")
    assert raw_digest(images / "again-vda.qcow2") == wanted
    assert len(list(images.iterdir())) == (4 if keep else 1)
    sh(["qemu-img", "check", str(images / "again-vda.qcow2")])


def test_nothing_is_overwritten(off_guest: MakeGuest, folder: Path, images: Path) -> None:
    guest = off_guest()
    chain(folder, guest, 1)
    images.mkdir()
    image = images / "again-vda.qcow2"
    image.write_text("somebody's")
    assert "exists and is not overwritten" in refused(folder / "day0", images, "--name=again")
    assert image.read_text() == "somebody's"
    assert [p.name for p in images.iterdir()] == [image.name]


def edit(path: Path, change: str) -> None:
    """Puts an element that libvirt refuses into the devices."""
    root = ET.parse(path).getroot()
    ET.SubElement(root.find("devices"), change)
    path.write_bytes(ET.tostring(root))


def test_failure_takes_all_back(off_guest: MakeGuest, folder: Path, images: Path) -> None:
    guest = off_guest()
    chain(folder, guest, 1)
    edit(folder / "day0" / "domain.xml", "nonsense")
    assert "virsh" in refused(folder / "day0", images, "--name=again")
    assert not images.exists()
    assert "again" not in {d.name() for d in connection().listAllDomains()}


def test_missing_image(off_guest: MakeGuest, folder: Path, images: Path,
                       restored: list[str]) -> None:
    guest = off_guest(Disk("vda"), Disk("vdb"))
    chain(folder, guest, 1)
    assert "no image of disk 'vdb'" in refused(folder / "day0", images, "--name=again")
    restore(folder / "day0", images, "--name=again", "--without-missing")
    restored.append("again")
    xml = ET.fromstring(connection().lookupByName("again").XMLDesc())
    assert [t.get("dev") for t in xml.findall("devices/disk/target")] == ["vda"]


@pytest.mark.parametrize("backing, words", [
    ("/etc/passwd", "no copy beside it"),
    ("nbd://localhost/x", "no copy beside it"),
    ("../../outside/vda.qcow2", "no copy beside it"),
    ("../day7/vda.qcow2", "is not there"),
])
def test_foreign_chain(off_guest: MakeGuest, folder: Path, images: Path, backing: str,
                       words: str) -> None:
    guest = off_guest()
    chain(folder, guest, 2)
    sh(["qemu-img", "rebase", "-u", "-F", "raw", "-b", backing,
        str(folder / "day1" / "vda.qcow2")])
    assert words in refused(folder / "day1", images, "--name=again")
    assert not images.exists()


def test_bad_name(folder: Path, images: Path) -> None:
    done = sh([RESTORE, "--name=a/b", str(folder)], check=False)
    assert done.returncode == 2
    assert "no name for a machine" in done.stderr


def test_no_folder(folder: Path, images: Path) -> None:
    assert "domain.xml" in refused(folder / "nothing", images)


