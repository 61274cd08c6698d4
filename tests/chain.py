# SPDX-License-Identifier: LGPL-2.1-or-later
"""A chain of backups of one machine, and what somebody keeps of it.

The guests never run a single instruction: what "the guest" writes goes through the
QEMU that has its disk, by QEMU's own monitor.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest

from bed import MIB, Disk, Guest, Mount, connection, raises_errno, sh, wait_for
from fsutil import command, failures, last_failure

STATE = Path("/var/lib/vmsnapfs")
SIZE = 32 * MIB
SNAPSHOT = (libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA)


@pytest.fixture
def mnt(mount) -> Mount:
    return mount("qemu:///system", "checkpoint=auto")


class Chain:
    """One machine, its backups, and the copies that somebody keeps of them."""

    def __init__(self, guest: Guest, mnt: Mount, copies: Path) -> None:
        self.guest = guest
        self.copies = copies
        self.path = mnt.domains / guest.name
        self.images = {disk.target: self.guest.dir / f"{disk.target}.{disk.format}"
                       for disk in guest.disks}

    ### The machine

    def start(self) -> None:
        self.guest.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)

    def stop(self) -> None:
        self.guest.destroy()
        wait_for(self.guest.is_off, 10, "off")

    def restart(self) -> None:
        self.stop()
        self.start()

    def monitor(self, line: str, target: str = "vda") -> None:
        """One command of qemu-io on the device itself, as the guest would."""
        index = list(self.images).index(target)
        device = f"/machine/peripheral/virtio-disk{index}/virtio-backend"
        out = libvirt_qemu.qemuMonitorCommand(
            self.guest.domain, f'qemu-io -d {device} "{line}"',
            libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)
        assert out.strip() == "", out     # what it says goes to QEMU's own log

    def write(self, what: str, target: str = "vda") -> None:
        """ "-P 7 1M 64k" """
        self.monitor(f"write {what}", target)

    def write_off(self, what: str, image: Path, fmt: str = "qcow2") -> None:
        sh(["qemu-io", "-f", fmt, "-c", f"write {what}", str(image)])

    def edit(self, change: Callable[[ET.Element], None]) -> None:
        """Defines the machine, which is off, again with another XML."""
        root = self.guest.xml(inactive=True)
        change(root)
        connection().defineXML(ET.tostring(root, encoding="unicode"))

    def set_image(self, path: Path, target: str = "vda") -> None:
        def change(root: ET.Element) -> None:
            for disk in root.findall("devices/disk"):
                if disk.find("target").get("dev") == target:
                    disk.find("source").set("file", str(path))
                    for backing in disk.findall("backingStore"):
                        disk.remove(backing)
        self.edit(change)

    def snapshot(self, name: str) -> Path:
        """An external one, live, as any other tool would make it."""
        overlay = self.guest.dir / f"{name}.qcow2"
        self.guest.domain.snapshotCreateXML(
            f"<domainsnapshot><name>{name}</name><disks><disk name='vda' snapshot='external'>"
            f"<source file='{overlay}'/></disk></disks></domainsnapshot>", SNAPSHOT)
        return overlay

    def wait_block_job(self) -> None:
        wait_for(lambda: not self.guest.domain.blockJobInfo("vda"), 20, "block job over")

    ### Backups

    def copy(self, name: str) -> str:
        """Copies a backup that runs; Returns: what it starts from."""
        backup = self.path / "backups" / name
        since = (backup / "since").read_text().strip()
        kept = self.copies / name
        sh(["cp", "-rT", str(backup / "incremental"), str(kept)])
        for disk in (backup / "disks").iterdir():
            target = disk.stem
            whole = self.copies / "whole.raw"
            shutil.copyfile(disk, whole)
            sh(["qemu-img", "compare", "-f", "qcow2", "-F", "raw",
                str(kept / f"{target}.qcow2"), str(whole)])
        return since

    def backup(self, name: str, *options: str) -> str:
        """Makes one, copies it, compares the chain of the copies with the disk as it is."""
        if options:
            command(self.path, " ".join(["backup", name, *options]))
        else:
            (self.path / "backups" / name).mkdir()
        try:
            return self.copy(name)
        finally:
            (self.path / "backups" / name).rmdir()
            wait_for(lambda: not self.guest.has_job(), 40, "ended")

    def valid(self, name: str) -> str:
        return (self.path / "checkpoints" / name / "valid").read_text().strip()

    def assert_refused(self, name: str, reason: str) -> None:
        """Asked for by name it is EUCLEAN; else the backup is full, and says why."""
        with raises_errno(errno.EUCLEAN):
            command(self.path, f"backup never since={name}")
        failure = last_failure(self.path)
        assert failure.errno == "EUCLEAN" and re.search(reason, failure.text), failure
        assert not (self.path / "backups/never").exists()
        count = len(failures(self.path))
        assert self.backup("after") == "none"
        told = failures(self.path)[count:]
        assert any(f.errno == "EUCLEAN" and name in f.text for f in told), told

    def assert_goes_on(self, name: str, since: str) -> None:
        assert self.backup(name) == since

    def forget(self) -> None:
        """All our checkpoints go, as a user lets them go."""
        for known in self.guest.domain.listAllCheckpoints():
            if "by vmsnapfs" not in known.getXMLDesc():
                continue
            name = known.getName()
            checkpoint = self.path / "checkpoints" / name
            wait_for(checkpoint.exists, 5, f"{name} is shown")
            checkpoint.rmdir()


def forget_records(uuid: str) -> None:
    """Of a machine that is gone; its images are there, so it may come back."""
    for path in STATE.glob(f"*/checkpoints/{uuid}.*"):
        path.unlink()


def forget_taken_names(chain: Chain) -> None:
    """What has the name of one of ours goes, and our record of that with the next backup."""
    for known in chain.guest.domain.listAllCheckpoints():
        if "by vmsnapfs" not in known.getXMLDesc():
            known.delete()
            assert chain.backup("last") != "none"


def ask(chain: Chain, line: str) -> str:
    """The answer of a command, read back through the same open file."""
    fd = os.open(chain.path / "control", os.O_RDWR)
    try:
        os.write(fd, line.encode())
        return os.read(fd, 65536).decode()
    finally:
        os.close(fd)


MakeChain = Callable[..., Chain]


@pytest.fixture
def make_chain(mnt: Mount, off_guest, tmp_path: Path) -> Iterator[MakeChain]:
    chains: list[Chain] = []

    def make(*disks: Disk, since: str = "a") -> Chain:
        """A machine with some data and one backup that was taken."""
        disks = disks or (Disk(size=SIZE, fs=False),)
        guest = off_guest(*disks, agent=False)
        chain = Chain(guest, mnt, tmp_path)
        chains.append(chain)
        chain.start()
        for disk in disks:
            chain.write("-P 1 0 256k", disk.target)
            chain.write("-P 2 8M 1M", disk.target)
        assert chain.backup(since) == "none"
        return chain

    yield make
    for chain in chains:
        if not chain.guest.is_undefined():
            chain.forget()


@pytest.fixture
def chain(make_chain: MakeChain) -> Chain:
    return make_chain()
