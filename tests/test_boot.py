# SPDX-License-Identifier: LGPL-2.1-or-later
"""boot.xml: a throw-away machine straight from a backup, while the original runs on."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

import fsutil
from bed import REPO, Disk, Guest, Mount, connection, raises_errno, sh, wait_for
from conftest import MakeGuest, MakeMount
from fsutil import add_firmware

BOOT_TEST = str(REPO / "contrib" / "boot-test")


@pytest.fixture
def shared(mount: MakeMount) -> Mount:
    """A mount whose disks QEMU's user can read."""
    return mount("qemu:///system", "allow_other", "data-gid=libvirt-qemu")


@pytest.fixture
def booted() -> Iterator[list[str]]:
    """UUIDs of throw-away machines that may be left."""
    made: list[str] = []
    yield made
    for domain in connection().listAllDomains():
        if domain.UUIDString() in made:
            domain.destroy()


def no_console(xml: str) -> str:
    """The bed's consoles are files; a copy must not have the original's."""
    assert "serial" in xml and ".serial" not in xml
    return xml


def sources(xml: str) -> dict[str, str]:
    return {disk.find("target").get("dev"): disk.find("source").get("file")
            for disk in ET.fromstring(xml).findall("devices/disk")
            if disk.find("source") is not None}


def test_boots_beside_the_original(shared: Mount, make_guest: MakeGuest,
                                   booted: list[str]) -> None:
    guest = make_guest(Disk("vda"), Disk("vdb", "raw"), writer=True)
    guest.run("echo before >/data2/word; sync")
    backup = shared.domains / guest.name / "backups" / "now"
    backup.mkdir()
    guest.run("echo after >/data2/word; sync")
    xml = no_console((backup / "boot.xml").read_text())
    copy = connection().createXML(xml)
    booted.append(copy.UUIDString())
    twin = Guest(copy.name())
    twin.wait_agent()
    assert re.fullmatch(rf"{guest.name}-boot-[0-9a-f]{{8}}", twin.name)
    assert twin.run("cat /data2/word") == "before\n"
    # Its writes are its own.
    twin.run("echo twin >/data2/word; sync")
    assert guest.run("cat /data2/word") == "after\n"
    assert guest.is_running()
    # Opened again, it is the same machine, and its images are left alone.
    before = {p: os.stat(p).st_ino for p in sources(xml).values()}
    assert (backup / "boot.xml").read_text() == xml
    assert {p: os.stat(p).st_ino for p in before} == before
    # It reads the backup.
    with raises_errno(errno.EBUSY):
        backup.rmdir()
    twin.destroy()
    booted.clear()
    backup.rmdir()
    assert not any(Path(path).exists() for path in before)


def test_boot_test(shared: Mount, guest: Guest) -> None:
    backup = shared.domains / guest.name / "backups" / "now"
    backup.mkdir()
    done = sh([BOOT_TEST, "-t", "100", str(backup)], timeout=150)
    assert re.fullmatch(rf"{backup}: came up \(agent answered after \d+ s\)\n", done.stdout)
    assert not [d for d in connection().listAllDomains() if "-boot-" in d.name()]
    backup.rmdir()


def test_boot_test_says_no(shared: Mount, make_guest: MakeGuest) -> None:
    """A machine whose agent never answers: it did not come up, and is gone."""
    guest = make_guest(agent=False)
    backup = shared.domains / guest.name / "backups" / "now"
    backup.mkdir()
    done = subprocess.run([BOOT_TEST, "-t", "2", str(backup)], capture_output=True, text=True,
                          check=False, timeout=60)
    assert done.returncode == 1
    assert "DID NOT COME UP: its agent does not answer after 2 s" in done.stdout
    assert not [d for d in connection().listAllDomains() if "-boot-" in d.name()]
    backup.rmdir()


def test_off_machine_with_firmware(shared: Mount, off_guest: MakeGuest) -> None:
    guest = off_guest()
    _, original = add_firmware(guest)
    shutil.chown(original, "tss", "tss")
    backup = shared.domains / guest.name / "backups" / "now"
    backup.mkdir()
    root = ET.fromstring((backup / "boot.xml").read_text())
    store = Path(root.find("os/nvram").text)
    assert store.read_bytes() == fsutil.NVRAM
    assert store != guest.dir / "nvram of it.fd"
    assert root.find("uuid").text != guest.uuid
    # Where libvirt looks for the state of that machine's TPM.
    state = original.parent.parent.with_name(root.find("uuid").text) / "tpm2" / original.name
    assert state.read_bytes() == fsutil.TPM
    for path, mode, owner in ((state, 0o600, "tss"), (state.parent, 0o700, "tss"),
                              (state.parent.parent, 0o711, "root")):
        assert (stat.S_IMODE(path.stat().st_mode), path.owner()) == (mode, owner)
    backup.rmdir()
    assert not store.exists()
    assert not state.parent.parent.exists()
    assert original.read_bytes() == fsutil.TPM


def test_walkers_make_no_images(shared: Mount, guest: Guest) -> None:
    backup = shared.domains / guest.name / "backups" / "now"
    backup.mkdir()
    assert "boot.xml" not in os.listdir(backup)
    sh(["find", str(backup), "-ls"])
    scratch = Path("/var/lib/vmsnapfs")
    assert not [p for p in scratch.rglob("boot-*")]
    assert (backup / "boot.xml").read_text()
    assert [p for p in scratch.rglob("boot-*")]
    backup.rmdir()
    wait_for(lambda: not [p for p in scratch.rglob("boot-*")], 5, "no image is left")


def test_failed_backup_boots_nothing(shared: Mount, make_guest: MakeGuest) -> None:
    guest = make_guest()
    backup = shared.domains / guest.name / "backups" / "now"
    backup.mkdir()
    guest.destroy()
    wait_for(lambda: (backup / "state").read_text().startswith("failed"), 10, "failed")
    with raises_errno(errno.EIO):
        (backup / "boot.xml").read_text()
    backup.rmdir()
