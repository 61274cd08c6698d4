# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines without an operating system: their disks are written by QEMU itself.

They start in a moment, so that a test can afford hundreds of starts, and nobody but
the test writes to their disks.
"""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest

from bed import MIB, Disk, Guest, Mount, connection, sh
from fsutil import command

BLOCK = 64 * 1024
BLOCKS = 16


def image_blocks(image: Path | str, fmt: str = "qcow2") -> list[int]:
    """The byte that each block of an image is full of; -1: of more than one."""
    raw = subprocess.run(
        ["qemu-img", "dd", "-U", "-f", fmt, "-O", "raw", f"bs={BLOCK}", f"count={BLOCKS}",
         f"if={image}", "of=/dev/stdout"], check=False, capture_output=True).stdout
    if len(raw) != BLOCK * BLOCKS:
        raw = subprocess.run(["bash", "-c", 'qemu-img convert -U -f "$0" -O raw "$1" "$2" && '
                              'cat "$2"; rm -f "$2"', fmt, str(image), f"{image}.read"],
                             check=True, capture_output=True).stdout[:BLOCK * BLOCKS]
    return raw_blocks(raw)


def raw_blocks(raw: bytes) -> list[int]:
    found = []
    for block in range(BLOCKS):
        part = raw[block * BLOCK:(block + 1) * BLOCK]
        found.append(part[0] if part == part[:1] * BLOCK else -1)
    return found


class Bare(Guest):
    """A machine with nothing but disks; each has BLOCKS blocks."""

    def __init__(self, name: str) -> None:
        super().__init__(name, agent=False, memory=16)

    def define(self, *disks: Disk) -> None:
        super().define(*(disks or (Disk(fs=False, size=MIB),)))
        xml = self.xml(inactive=True)
        boot = xml.find("os")
        for tag in ("kernel", "initrd", "cmdline"):
            boot.remove(boot.find(tag))
        connection().defineXML(ET.tostring(xml).decode())

    @property
    def targets(self) -> list[str]:
        return [disk.target for disk in self.disks]

    def start(self, wait: bool = True) -> None:
        self.domain.create()

    def io(self, target: str, command: str) -> None:
        """A command of qemu-io on the disk, of the running QEMU or of the image."""
        if not self.domain.isActive():
            path, fmt = self.top(target)
            sh(["qemu-io", "-f", fmt, "-c", command, path])
            return
        for disk in self.xml().findall("devices/disk"):
            if disk.find("target").get("dev") == target:
                alias = disk.find("alias").get("name")
        said = libvirt_qemu.qemuMonitorCommand(
            self.domain, f'qemu-io -d /machine/peripheral/{alias}/virtio-backend "{command}"',
            libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
        assert not said.strip(), said

    def write(self, block: int, value: int, target: str = "vda") -> None:
        self.io(target, f"write -P {value} {block * BLOCK} {BLOCK}")

    def top(self, target: str) -> tuple[str, str]:
        """The image of a disk and its format."""
        for disk in self.xml(inactive=not self.domain.isActive()).findall("devices/disk"):
            if disk.find("target").get("dev") == target:
                return disk.find("source").attrib["file"], disk.find("driver").attrib["type"]
        raise KeyError(target)

    def blocks(self, target: str = "vda") -> list[int]:
        if self.domain.isActive():
            self.io(target, "flush")
        return image_blocks(*self.top(target))

    def base(self, snapshot: str, target: str = "vda") -> tuple[str, str]:
        """The image that holds the state of a disk in an external snapshot."""
        xml = ET.fromstring(self.domain.snapshotLookupByName(snapshot).getXMLDesc(0))
        for disk in xml.findall("domain/devices/disk"):
            if disk.find("target").get("dev") == target:
                return disk.find("source").attrib["file"], disk.find("driver").attrib["type"]
        raise KeyError(target)

    def snapshot(self, name: str, *, internal: bool = False, memory: bool = False,
                 only: tuple[str, ...] = ()) -> None:
        """By libvirt itself, as virsh would."""
        kind = "internal" if internal else "external"
        root = ET.Element("domainsnapshot")
        ET.SubElement(root, "name").text = name
        flags = 0
        if memory and not internal:
            ET.SubElement(root, "memory", snapshot="external", file=str(self.dir / f"{name}.mem"))
        elif not internal:
            flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
        disks = ET.SubElement(root, "disks")
        for target in self.targets:
            ET.SubElement(disks, "disk", name=target,
                          snapshot="no" if only and target not in only else kind)
        self.domain.snapshotCreateXML(ET.tostring(root).decode(), flags)

    def current(self) -> str | None:
        try:
            return str(self.domain.snapshotCurrent().getName())
        except libvirt.libvirtError:
            return None

    def parent(self, name: str) -> str | None:
        try:
            return str(self.domain.snapshotLookupByName(name).getParent().getName())
        except libvirt.libvirtError:
            return None

    def files(self) -> set[str]:
        return {path.name for path in self.dir.iterdir()}


def blocks(**values: int) -> list[int]:
    """blocks(b0=1, b2=7): what the disk holds; zeroes elsewhere."""
    found = [0] * BLOCKS
    for name, value in values.items():
        found[int(name[1:])] = value
    return found


def snapshots(mnt: Mount, guest: Guest) -> Path:
    return mnt.domains / guest.name / "snapshots"


def revert(mnt: Mount, guest: Guest, name: str, *words: str) -> None:
    command(snapshots(mnt, guest) / name, " ".join(["revert", *words]))


@pytest.fixture
def bare(leftovers: None) -> Iterator[Bare]:
    """One disk; defined, off."""
    guest = Bare("bare1")
    guest.define()
    yield guest
    guest.undefine()


@pytest.fixture
def bare2(leftovers: None) -> Iterator[Bare]:
    """Two disks, vda qcow2 and vdb raw; defined, off."""
    guest = Bare("bare2")
    guest.define(Disk(fs=False, size=MIB), Disk("vdb", "raw", fs=False, size=MIB))
    yield guest
    guest.undefine()


@pytest.fixture
def pair(leftovers: None) -> Iterator[Bare]:
    """Two qcow2 disks; defined, off."""
    guest = Bare("pair")
    guest.define(Disk(fs=False, size=MIB), Disk("vdb", fs=False, size=MIB))
    yield guest
    guest.undefine()


def world(guest: Bare) -> dict[str, object]:
    """All that a failed revert must leave as it was."""
    texts = {s.getName(): s.getXMLDesc(0) for s in guest.domain.listAllSnapshots()}
    return {"state": guest.state, "blocks": guest.blocks(), "files": guest.files(),
            "snapshots": texts, "current": guest.current(), "top": guest.top("vda"),
            "xml": guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)}


def daemon(**env: str) -> Mount:
    """To be finished by its test: one test starts many."""
    mnt = Mount("qemu:///system", env=env)
    mnt.wait_mounted()
    return mnt
