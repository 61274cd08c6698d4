# SPDX-License-Identifier: LGPL-2.1-or-later
"""Snapshots of real guests: their list, making them, their disks, what is refused."""

from __future__ import annotations

import errno
import os
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import libvirt
import pytest

from bed import Guest, Mount, raises_errno, sh, wait_for
from fsutil import HungLibvirtd, driver_uri, hung

__all__ = ["hung"]


def collection(mnt: Mount, guest: Guest) -> Path:
    return mnt.domains / guest.name / "snapshots"


def text(path: Path) -> str:
    return path.read_text().strip()


def virsh_create(guest: Guest, name: str, *, disk_only: bool = False) -> None:
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY if disk_only else 0
    guest.domain.snapshotCreateXML(
        f"<domainsnapshot><name>{name}</name></domainsnapshot>", flags)


def virsh_delete(guest: Guest, name: str) -> None:
    guest.domain.snapshotLookupByName(name).delete()


### The list

def test_those_of_other_programs_come_and_go(off_guest, mnt: Mount) -> None:
    guest = off_guest()
    snapshots = collection(mnt, guest)
    assert os.listdir(snapshots) == []
    for number in range(3):
        virsh_create(guest, f"s{number}")
        # By name at once, in the list within a second.
        assert text(snapshots / f"s{number}/state") == "shutoff"
        wait_for(lambda: f"s{number}" in os.listdir(snapshots), 1, "it is listed")
    wait_for(lambda: os.readlink(snapshots / "current") == "s2", 1, "current follows")
    assert sorted(os.listdir(snapshots)) == ["current", "s0", "s1", "s2"]
    virsh_delete(guest, "s1")
    wait_for(lambda: "s1" not in os.listdir(snapshots), 1, "it is not listed any more")
    with raises_errno(errno.ENOENT):
        (snapshots / "s1/state").stat()
    for name in ("s0", "s2"):
        virsh_delete(guest, name)
    wait_for(lambda: os.listdir(snapshots) == [], 1, "none is left")


def test_what_is_shown(off_guest, mnt: Mount) -> None:
    guest = off_guest()
    guest.domain.snapshotCreateXML("""<domainsnapshot><name>base &amp; 1</name>
        <description>before &lt;the&gt; upgrade</description></domainsnapshot>""", 0)
    virsh_create(guest, "next", disk_only=True)
    base, after = (collection(mnt, guest) / name for name in ("base & 1", "next"))
    assert text(base / "description") == "before <the> upgrade"
    assert text(base / "parent") == text(after / "description") == ""
    assert text(after / "parent") == "base & 1"
    assert text(after / "state") == "shutoff"
    xml = guest.domain.snapshotLookupByName("base & 1").getXMLDesc()
    assert (base / "snapshot.xml").read_text() == xml
    created = int(ET.fromstring(xml).findtext("creationTime"))
    assert base.stat().st_mtime == created
    assert text(base / "created") == time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(created))
    domain = ET.fromstring((base / "domain.xml").read_text())
    assert domain.tag == "domain" and domain.findtext("name") == guest.name
    assert os.getxattr(base, "user.vmsnapfs.memory") == b"none"
    assert os.getxattr(base, "user.vmsnapfs.uuid").decode() == guest.uuid
    # Sizes are real, so that every copier copies it.
    assert (base / "snapshot.xml").stat().st_size == len(xml.encode())


def test_another_of_the_same_name_is_another(off_guest, mnt: Mount) -> None:
    guest = off_guest()
    snapshots = collection(mnt, guest)
    virsh_create(guest, "again")
    first = (snapshots / "again").stat()
    assert (snapshots / "again").stat().st_ino == first.st_ino
    with (snapshots / "again/snapshot.xml").open() as before:
        virsh_delete(guest, "again")
        wait_for(lambda: time.time() > first.st_mtime + 1, 2, "another second")
        virsh_create(guest, "again")
        wait_for(lambda: (snapshots / "again").stat().st_ino != first.st_ino, 1, "another number")
        assert f"<creationTime>{int(first.st_mtime)}<" in before.read()
    assert (snapshots / "again").stat().st_mtime > first.st_mtime


def test_numbers_survive_a_remount(off_guest, mount) -> None:
    guest = off_guest()
    virsh_create(guest, "kept")
    first = Mount("qemu:///system")
    try:
        first.wait_mounted()
        number = (collection(first, guest) / "kept").stat().st_ino
    finally:
        first.finish()
    assert (collection(mount(), guest) / "kept").stat().st_ino == number


# A host that hangs is waited for 1 s, once; then what is known is shown.
def test_a_hanging_libvirtd_shows_what_was_known(off_guest, mnt: Mount,
                                                 hung: HungLibvirtd) -> None:
    guest = off_guest()
    virsh_create(guest, "known")
    snapshots = collection(mnt, guest)
    assert os.listdir(snapshots) == ["current", "known"]
    hung.hang()
    start = time.monotonic()
    wait_for(lambda: time.monotonic() > start + 0.6, 1, "what is known is old")
    assert os.listdir(snapshots) == ["current", "known"]
    assert time.monotonic() - start < 3
    hung.go_on()


def test_a_driver_without_snapshots_has_none(mount) -> None:
    mnt = mount(driver_uri("a"))
    assert os.listdir(mnt.domains / "a/snapshots") == []
    with raises_errno(errno.ENOENT):
        os.readlink(mnt.domains / "a/snapshots/current")


@pytest.mark.parametrize("name", ["a/b", ".hidden", "100%", "trailing "])
def test_names_are_spelt_as_everywhere(mount, name: str) -> None:
    mnt = mount(driver_uri("a", snapshots=[name]))
    [shown] = set(os.listdir(mnt.domains / "a/snapshots")) - {"current"}
    assert os.readlink(mnt.domains / "a/snapshots/current") == shown
    assert "/" not in shown and not shown.startswith(".") and not shown.endswith(" ")
    xml = ET.fromstring((mnt.domains / "a/snapshots" / shown / "snapshot.xml").read_text())
    assert xml.findtext("name") == name


def test_walkers_change_nothing(guest: Guest, mnt: Mount) -> None:
    before = sh(["virsh", "snapshot-list", guest.name]).stdout
    sh(["find", str(collection(mnt, guest)), "-ls"])
    assert sh(["virsh", "snapshot-list", guest.name]).stdout == before
