# SPDX-License-Identifier: LGPL-2.1-or-later
"""Chains that somebody breaks: refused or made full, never a wrong byte.

The guests of this file never run a single instruction: what "the guest" writes goes
through the QEMU that has its disk, by QEMU's own monitor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
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


### What breaks a chain

def bitmap_removed(chain: Chain) -> None:
    chain.stop()
    sh(["qemu-img", "bitmap", "--remove", str(chain.images["vda"]), "a"])
    chain.write_off("-P 3 1M 64k", chain.images["vda"])
    chain.start()


def bitmap_disabled(chain: Chain) -> None:
    chain.stop()
    sh(["qemu-img", "bitmap", "--disable", str(chain.images["vda"]), "a"])
    chain.start()
    chain.write("-P 3 1M 64k")


def bitmap_disabled_for_a_while(chain: Chain) -> None:
    """Nothing in the image tells it any more."""
    chain.stop()
    sh(["qemu-img", "bitmap", "--disable", str(chain.images["vda"]), "a"])
    chain.write_off("-P 3 8M 1M", chain.images["vda"])
    sh(["qemu-img", "bitmap", "--enable", str(chain.images["vda"]), "a"])
    chain.start()


def bitmap_cleared(chain: Chain) -> None:
    chain.write("-P 3 8M 1M")
    chain.stop()
    sh(["qemu-img", "bitmap", "--clear", str(chain.images["vda"]), "a"])
    chain.start()


def bitmap_made_again(chain: Chain) -> None:
    chain.write("-P 3 8M 1M")
    chain.stop()
    sh(["qemu-img", "bitmap", "--remove", str(chain.images["vda"]), "a"])
    sh(["qemu-img", "bitmap", "--add", str(chain.images["vda"]), "a"])
    chain.start()


def qemu_killed(chain: Chain) -> None:
    chain.write("-P 3 1M 64k")
    os.kill(chain.guest.qemu_pid(), signal.SIGKILL)
    wait_for(chain.guest.is_off, 20, "off")
    chain.start()


def image_replaced(chain: Chain) -> None:
    """By its own content, as a restore of a backup does."""
    chain.stop()
    image = chain.images["vda"]
    other = image.with_suffix(".other")
    sh(["qemu-img", "convert", "-O", "qcow2", str(image), str(other)])
    chain.write_off("-P 3 1M 64k", other)
    other.rename(image)
    chain.start()


def image_restored_with_its_bitmaps(chain: Chain) -> None:
    """Another file that is the same to the byte."""
    chain.stop()
    image = chain.images["vda"]
    sh(["cp", "-p", "--sparse=auto", str(image), str(image) + ".then"])
    chain.start()
    chain.write("-P 3 1M 64k")
    chain.stop()
    Path(str(image) + ".then").rename(image)
    chain.start()


def image_copied_while_it_ran(chain: Chain) -> None:
    """A crash-consistent copy, put back into the same file: a storage snapshot does that."""
    chain.restart()
    image = chain.images["vda"]
    then = image.with_suffix(".then")
    chain.write("-P 3 1M 64k")
    chain.monitor("flush")
    sh(["cp", "--sparse=always", str(image), str(then)])
    chain.write("-P 4 8M 1M")
    chain.stop()
    sh(f"cat '{then}' > '{image}'")
    chain.start()


def written_by_a_program_without_bitmaps(chain: Chain) -> None:
    """It clears the bit that says that they are right: what is in them stays."""
    chain.stop()
    chain.write_off("-P 3 1M 64k", chain.images["vda"])
    with chain.images["vda"].open("r+b") as file:
        file.seek(88)
        autoclear = int.from_bytes(file.read(8), "big")
        assert autoclear & 1
        file.seek(88)
        file.write((autoclear & ~1).to_bytes(8, "big"))
    chain.start()


def shrunk_and_grown_live(chain: Chain) -> None:
    """The same size, and a clean bitmap: only what was the last data is not there."""
    chain.guest.domain.blockResize("vda", 8 * MIB // 1024)
    chain.guest.domain.blockResize("vda", SIZE // 1024)


def shrunk_and_grown_off(chain: Chain) -> None:
    chain.stop()
    image = str(chain.images["vda"])
    sh(["qemu-img", "resize", "-f", "qcow2", "--shrink", image, str(8 * MIB + 512 * 1024)])
    sh(["qemu-img", "resize", "-f", "qcow2", image, str(SIZE)])
    chain.start()
    chain.write("-P 3 1M 64k")


def bitmap_of_an_overlay_removed(chain: Chain) -> None:
    """A gap: the image below still has it."""
    overlay = chain.snapshot("one")
    chain.write("-P 3 1M 64k")
    chain.stop()
    sh(["qemu-img", "bitmap", "--remove", str(overlay), "a"])
    chain.start()


def resized_live(chain: Chain) -> None:
    chain.guest.domain.blockResize("vda", (SIZE + 16 * MIB) // 1024)
    chain.write(f"-P 3 {SIZE} 64k")


def resized_off(chain: Chain) -> None:
    chain.stop()
    sh(["qemu-img", "resize", "-f", "qcow2", str(chain.images["vda"]), str(SIZE + 16 * MIB)])
    chain.start()


def overlay_made_by_qemu_img(chain: Chain) -> None:
    chain.stop()
    overlay = chain.guest.dir / "overlay.qcow2"
    sh(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2",
        "-b", str(chain.images["vda"]), str(overlay)])
    chain.set_image(overlay)
    chain.start()
    chain.write("-P 3 1M 64k")


def external_revert_by_hand(chain: Chain) -> None:
    chain.snapshot("one")
    chain.write("-P 3 1M 64k")
    chain.stop()
    overlay = chain.guest.dir / "again.qcow2"
    sh(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2",
        "-b", str(chain.images["vda"]), str(overlay)])
    chain.set_image(overlay)
    chain.start()


def pulled(chain: Chain) -> None:
    """libvirt says that the bitmap is good; what was discarded is in none."""
    chain.monitor("discard 8M 1M")
    chain.snapshot("one")
    chain.guest.domain.blockPull("vda", 0, 0)
    chain.wait_block_job()


def bitmap_of_an_overlay_disabled_for_a_while(chain: Chain) -> None:
    overlay = chain.snapshot("one")
    chain.stop()
    sh(["qemu-img", "bitmap", "--disable", str(overlay), "a"])
    chain.write_off("-P 3 20M 1M", overlay)
    sh(["qemu-img", "bitmap", "--enable", str(overlay), "a"])
    chain.start()


def copied_to_another_image(chain: Chain) -> None:
    domain = chain.guest.domain
    domain.blockCopy("vda", f"<disk type='file'><source file='{chain.guest.dir}/copy.qcow2'/>"
                            "<driver type='qcow2'/></disk>", {},
                     libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)

    def pivoted() -> bool:
        try:
            domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        except libvirt.libvirtError as error:
            assert error.get_error_code() == libvirt.VIR_ERR_BLOCK_COPY_ACTIVE, error
            return False
        return True
    wait_for(pivoted, 20, "pivoted")


def checkpoint_deleted(chain: Chain) -> None:
    chain.guest.domain.checkpointLookupByName("a").delete(0)
    chain.write("-P 3 1M 64k")


def checkpoint_made_again_by_another_program(chain: Chain) -> None:
    """libvirt and QEMU have nothing to say against that one; our copy is of another day."""
    chain.write("-P 3 1M 64k")
    chain.guest.domain.checkpointLookupByName("a").delete(0)
    chain.guest.domain.checkpointCreateXML(
        "<domaincheckpoint><name>a</name><description>theirs</description></domaincheckpoint>")


def committed_without_bitmaps(chain: Chain) -> None:
    """The overlay of a later day merged by qemu-img: its bitmaps are gone."""
    overlay = chain.snapshot("one")
    chain.forget()
    assert chain.backup("a") == "none"
    chain.write("-P 3 1M 64k")
    chain.stop()
    sh(["qemu-img", "commit", "-q", "-f", "qcow2", str(overlay)])
    chain.set_image(chain.images["vda"])
    chain.start()


SABOTAGES = {
    bitmap_removed: "bitmap 'a'",
    bitmap_disabled: "bitmap 'a'",
    bitmap_disabled_for_a_while: "nothing changed there",
    bitmap_cleared: "nothing changed there",
    bitmap_made_again: "nothing changed there",
    qemu_killed: "bitmap 'a'",
    image_replaced: "none of its images",
    image_restored_with_its_bitmaps: "none of its images",
    image_copied_while_it_ran: "bitmap 'a'",
    written_by_a_program_without_bitmaps: "bitmap 'a'",
    shrunk_and_grown_live: "nothing changed there",
    shrunk_and_grown_off: "nothing changed there",
    bitmap_of_an_overlay_removed: "bitmap 'a'",
    resized_live: "resized",
    resized_off: "resized",
    overlay_made_by_qemu_img: "bitmap 'a'",
    external_revert_by_hand: "bitmap 'a'",
    pulled: "none of its images",
    bitmap_of_an_overlay_disabled_for_a_while: "image made since",
    copied_to_another_image: "none of its images",
    checkpoint_deleted: "another program deleted it",
    checkpoint_made_again_by_another_program: "deleted it, and made one of its name",
    committed_without_bitmaps: "bitmap 'a'",
}


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda f: f.__name__)
def test_broken_chain_is_refused(chain: Chain, sabotage: Callable[[Chain], None]) -> None:
    sabotage(chain)
    chain.assert_refused("a", SABOTAGES[sabotage])
    # And the new chain is as good as any.
    chain.write("-P 9 2M 64k")
    chain.assert_goes_on("later", "after")
    forget_taken_names(chain)


def test_what_took_the_name_of_ours_is_left_alone(chain: Chain) -> None:
    checkpoint_made_again_by_another_program(chain)
    for refused in ((chain.path / "checkpoints/a").rmdir,
                    lambda: command(chain.path / "checkpoints/a", "delete metadata")):
        with raises_errno(errno.EPERM):
            refused()
        assert "made by another program" in last_failure(chain.path).text
    with raises_errno(errno.EEXIST):
        (chain.path / "backups/a").mkdir()
    assert chain.backup("b") == "none"
    assert chain.backup("a", "checkpoint=c") == "b"
    ask(chain, "prune keep-last=1")
    theirs = chain.guest.domain.checkpointLookupByName("a")
    assert "<description>theirs</description>" in theirs.getXMLDesc()
    assert chain.guest.checkpoints() == ["a", "c"]
    theirs.delete()


def test_valid_says_why(chain: Chain) -> None:
    assert chain.valid("a") == "yes"
    chain.restart()
    qemu_killed(chain)
    wait_for(lambda: "bitmap 'a'" in chain.valid("a"), 5, "seen")
    chain.stop()
    wait_for(lambda: "bitmap 'a' is inconsistent" in chain.valid("a"), 5, "seen")


def test_content_convicts_at_the_next_increment(chain: Chain) -> None:
    """Before that nothing can tell; afterwards `valid` remembers."""
    bitmap_cleared(chain)
    assert chain.valid("a") == "yes"
    chain.assert_refused("a", "nothing changed there")
    wait_for(lambda: "nothing changed there" in chain.valid("a"), 5, "remembered")
    (chain.path / "checkpoints/a").rmdir()


def test_rollback_of_the_storage_to_an_older_checkpoint_of_that_name(chain: Chain) -> None:
    """The same file, the same name, a sound bitmap: of another day."""
    image = chain.images["vda"]
    chain.stop()
    then = image.with_suffix(".then")
    sh(["cp", "--sparse=always", str(image), str(then)])
    (chain.path / "checkpoints/a").rmdir()
    chain.start()
    chain.write("-P 3 8M 1M")
    assert chain.backup("b", "checkpoint=a") == "none"
    chain.stop()
    sh(f"cat '{then}' > '{image}'")
    chain.start()
    assert chain.valid("a") == "yes"
    chain.assert_refused("a", "nothing changed there")


def test_rollback_of_the_storage_to_between_two_checkpoints(chain: Chain) -> None:
    """What stands in the bitmap of the older one is right, with the disk that came back."""
    image = chain.images["vda"]
    chain.write("-P 3 1M 64k")
    chain.stop()
    then = image.with_suffix(".then")
    sh(["cp", "--sparse=always", str(image), str(then)])
    chain.start()
    chain.write("-P 4 8M 1M")
    assert chain.backup("b") == "a"
    chain.write("-P 5 12M 1M")
    chain.stop()
    sh(f"cat '{then}' > '{image}'")
    chain.start()
    with raises_errno(errno.EUCLEAN):
        command(chain.path, "backup never since=b")
    chain.write("-P 6 16M 1M")
    chain.assert_goes_on("c", "a")


def test_backing_file_with_bitmaps_written_by_another_tool(chain: Chain) -> None:
    """Recorded in the bitmaps of older checkpoints, which are there; newer ones are not."""
    chain.write("-P 3 1M 64k")
    chain.assert_goes_on("b", "a")
    chain.snapshot("one")
    chain.write("-P 4 2M 64k")
    chain.assert_goes_on("c", "b")
    chain.restart()
    chain.write("-P 5 3M 64k")
    chain.assert_goes_on("d", "c")
    # A checkpoint that is deleted changes that file, too.
    (chain.path / "checkpoints/a").rmdir()
    chain.write("-P 6 4M 64k")
    chain.assert_goes_on("e", "d")
    chain.stop()
    chain.write_off("-P 7 20M 64k", chain.images["vda"])
    chain.start()
    for name in ("c", "d", "e"):
        with raises_errno(errno.EUCLEAN):
            command(chain.path, f"backup never since={name}")
        assert "vda.qcow2' was written to" in last_failure(chain.path).text
    chain.assert_goes_on("f", "b")


def test_raw_backing_file_written_by_another_tool(make_chain: MakeChain, mnt: Mount,
                                                  off_guest, tmp_path: Path) -> None:
    guest = off_guest(Disk(size=SIZE, fs=False), agent=False)
    chain = Chain(guest, mnt, tmp_path)
    image, base = chain.images["vda"], guest.dir / "base.raw"
    sh(["qemu-img", "create", "-q", "-f", "raw", str(base), str(SIZE)])
    chain.write_off("-P 5 4M 1M", base, "raw")
    sh(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base), str(image)])
    chain.start()
    assert chain.backup("a") == "none"
    chain.restart()
    assert chain.backup("b") == "a"
    chain.stop()
    chain.write_off("-P 6 20M 64k", base, "raw")
    chain.start()
    chain.assert_refused("b", "backing file '.*base.raw' was written to")
    chain.forget()


def test_another_backing_file(mnt: Mount, off_guest, tmp_path: Path) -> None:
    guest = off_guest(Disk(size=SIZE, fs=False), agent=False)
    chain = Chain(guest, mnt, tmp_path)
    image, base = chain.images["vda"], guest.dir / "base.raw"
    other = guest.dir / "other.raw"
    sh(["qemu-img", "create", "-q", "-f", "raw", str(base), str(SIZE)])
    sh(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base), str(image)])
    chain.start()
    assert chain.backup("a") == "none"
    chain.stop()
    sh(["qemu-img", "create", "-q", "-f", "raw", str(other), str(SIZE)])
    chain.write_off("-P 6 20M 64k", other, "raw")
    sh(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", str(other), str(image)])
    chain.start()
    chain.assert_refused("a", "backing file '.*base.raw' is gone")
    chain.forget()


def test_disks_swapped(make_chain: MakeChain) -> None:
    chain = make_chain(Disk("vda", size=SIZE, fs=False), Disk("vdb", size=SIZE, fs=False))
    chain.write("-P 3 1M 64k", "vdb")
    chain.stop()
    one, two = chain.images["vda"], chain.images["vdb"]
    chain.set_image(two, "vda")
    chain.set_image(one, "vdb")
    chain.start()
    chain.assert_refused("a", "none of its images")


def test_another_machine_of_the_same_name(chain: Chain) -> None:
    """The same disk with its bitmaps, and another UUID."""
    chain.stop()
    root = chain.guest.xml(inactive=True)
    old = root.find("uuid").text
    chain.guest.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    root.find("uuid").text = "11111111-2222-3333-4444-" + old[-12:]
    connection().defineXML(ET.tostring(root, encoding="unicode"))
    wait_for(lambda: (chain.path / "uuid").read_text().strip() != old, 10, "seen")
    chain.start()
    chain.write("-P 3 1M 64k")
    with raises_errno(errno.ENOENT):
        command(chain.path, "backup never since=a")
    assert chain.backup("other", "checkpoint=other") == "none"
    chain.forget()
    forget_records(old)


### What does not break it

def test_shutdown_and_start(chain: Chain) -> None:
    chain.write("-P 3 1M 64k")
    chain.restart()
    chain.write("-P 4 2M 64k")
    chain.assert_goes_on("b", "a")


def test_write_of_qemu_io_while_off_is_recorded(chain: Chain) -> None:
    chain.stop()
    chain.write_off("-P 3 1M 64k", chain.images["vda"])
    chain.start()
    chain.assert_goes_on("b", "a")


def test_internal_snapshot_by_qemu_img(chain: Chain) -> None:
    """Made it does no harm; back to it QEMU does not go while there are bitmaps."""
    image = str(chain.images["vda"])
    chain.stop()
    sh(["qemu-img", "snapshot", "-c", "then", image])
    chain.write_off("-P 3 8M 1M", chain.images["vda"])
    done = sh(["qemu-img", "snapshot", "-a", "then", image], check=False)
    assert done.returncode != 0 and "active dirty bitmaps" in done.stderr
    chain.start()
    chain.assert_goes_on("b", "a")
    chain.stop()
    sh(["qemu-img", "snapshot", "-d", "then", image])
    chain.start()
    chain.assert_goes_on("c", "b")


def test_internal_revert_by_virsh(chain: Chain) -> None:
    """QEMU refuses and dies; libvirt calls it the machine's revert."""
    chain.guest.domain.snapshotCreateXML(
        "<domainsnapshot><name>then</name><memory snapshot='internal'/></domainsnapshot>", 0)
    chain.write("-P 3 8M 1M")
    with contextlib.suppress(libvirt.libvirtError):
        chain.guest.domain.revertToSnapshot(
            chain.guest.domain.snapshotLookupByName("then"),
            libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_FORCE | libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED)
    wait_for(chain.guest.is_off, 20, "off")
    chain.guest.domain.snapshotLookupByName("then").delete(
        libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
    chain.start()
    assert chain.backup("b") in ("a", "none")        # and right, as backup() has compared


def test_managed_save(chain: Chain) -> None:
    chain.write("-P 3 1M 64k")
    chain.guest.domain.managedSave()
    wait_for(chain.guest.is_off, 20, "off")
    chain.write_off("-P 4 2M 64k", chain.images["vda"])
    chain.start()
    chain.write("-P 5 3M 64k")
    chain.assert_goes_on("b", "a")


def test_snapshots_made_and_merged_between_increments(chain: Chain) -> None:
    domain = chain.guest.domain
    chain.write("-P 3 1M 64k")
    overlay = chain.snapshot("one")
    chain.write("-P 4 2M 64k")
    chain.assert_goes_on("b", "a")
    chain.write("-P 5 3M 64k")
    chain.snapshot("two")
    chain.write("-P 6 4M 64k")
    chain.assert_goes_on("c", "b")
    chain.write("-P 7 5M 64k")
    # The middle one into the first, then the last one.
    domain.blockCommit("vda", str(chain.images["vda"]), str(overlay), 0, 0)
    chain.wait_block_job()
    chain.assert_goes_on("d", "c")
    chain.write("-P 8 6M 64k")
    domain.blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)

    def pivoted() -> bool:
        info = domain.blockJobInfo("vda")
        if info and info["cur"] == info["end"]:
            try:
                domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
                return True
            except libvirt.libvirtError:
                return False
        return False
    wait_for(pivoted, 20, "pivoted")
    chain.wait_block_job()
    chain.assert_goes_on("e", "d")
    chain.restart()
    chain.write("-P 9 7M 64k")
    chain.assert_goes_on("f", "e")


def test_pull_of_the_middle(chain: Chain) -> None:
    """What is copied up is recorded by QEMU."""
    chain.monitor("discard 8M 256k")
    chain.snapshot("one")
    chain.write("-P 3 16M 1M")
    chain.monitor("discard 8704k 256k")
    chain.snapshot("two")
    chain.guest.domain.blockRebase("vda", str(chain.images["vda"]), 0, 0)
    chain.wait_block_job()
    chain.assert_goes_on("b", "a")


def test_disk_unplugged_and_another_one_plugged(make_chain: MakeChain) -> None:
    chain = make_chain(Disk("vda", size=SIZE, fs=False), Disk("vdb", size=SIZE, fs=False))
    domain = chain.guest.domain
    vdb = [disk for disk in chain.guest.xml().findall("devices/disk")
           if disk.find("target").get("dev") == "vdb"][0]
    live = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
    chain.write("-P 3 1M 64k")
    chain.write("-P 3 1M 64k", "vdb")
    chain.stop()
    domain.detachDeviceFlags(ET.tostring(vdb, encoding="unicode"),
                             libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    chain.start()
    # What is left of the checkpoint is enough, or all of it is not.
    assert chain.backup("b") in ("a", "none")
    chain.write("-P 4 2M 64k")
    other = chain.guest.dir / "other.qcow2"
    sh(["qemu-img", "create", "-q", "-f", "qcow2", str(other), str(SIZE)])
    chain.write_off("-P 5 3M 64k", other)
    shutil.chown(other, "libvirt-qemu", "libvirt-qemu")
    vdb.find("source").set("file", str(other))
    for name in ("alias", "backingStore"):
        for element in vdb.findall(name):
            vdb.remove(element)
    vdb.find("source").attrib.pop("index", None)
    domain.attachDeviceFlags(ET.tostring(vdb, encoding="unicode"), live)
    assert chain.backup("c") in ("b", "none")


def test_undefined_and_defined_again(chain: Chain) -> None:
    """libvirt has forgotten them; the bitmaps are still there, and so are the records."""
    chain.write("-P 3 1M 64k")
    chain.assert_goes_on("b", "a")
    chain.write("-P 4 2M 64k")
    chain.stop()
    text = chain.guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    chain.guest.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
    connection().defineXML(text)
    chain.start()
    assert chain.guest.checkpoints() == []
    chain.assert_goes_on("c", "b")
    assert chain.guest.checkpoints() == ["a", "b", "c"]


def test_metadata_forgotten_by_another_tool(chain: Chain) -> None:
    chain.write("-P 3 1M 64k")
    chain.guest.domain.checkpointLookupByName("a").delete(
        libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    chain.assert_goes_on("b", "a")


def test_full_never_fails_for_a_broken_checkpoint(chain: Chain) -> None:
    chain.write("-P 3 1M 64k")
    chain.assert_goes_on("b", "a")
    bitmap_removed(chain)
    chain.assert_goes_on("c", "b")
    (chain.path / "checkpoints/a").rmdir()
    assert chain.guest.checkpoints() == ["b", "c"]


### Going back

def test_revert_of_ours_breaks_what_there_is(chain: Chain) -> None:
    command(chain.path, "snapshot then memory=none disk=external")
    chain.write("-P 3 1M 64k")
    assert chain.backup("b") == "a"
    command(chain.path / "snapshots/then", "revert paused")
    for name in ("a", "b"):
        chain.assert_refused(name, "reverted to snapshot 'then'")
    chain.guest.domain.snapshotLookupByName("then").delete(
        libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)


### Retention

def ask(chain: Chain, line: str) -> str:
    """The answer of a command, read back through the same open file."""
    fd = os.open(chain.path / "control", os.O_RDWR)
    try:
        os.write(fd, line.encode())
        return os.read(fd, 65536).decode()
    finally:
        os.close(fd)


def test_keep_checkpoints(make_chain: MakeChain, mnt: Mount, mount) -> None:
    chain = make_chain()
    mnt.unmount()
    mnt.process.wait(30)
    chain.path = mount("qemu:///system", "checkpoint=auto,keep-checkpoints=3").domains / (
        chain.guest.name)
    for since, name in ("ab", "bc", "cd", "de"):
        chain.write(f"-P {ord(name)} {ord(name)}k 64k")
        assert chain.backup(name) == since
    assert chain.guest.checkpoints() == ["c", "d", "e"]
    # The base of another chain is not counted among these.
    assert chain.backup("x", "chain=other") == "none"
    assert chain.guest.checkpoints() == ["c", "d", "e", "x"]
    chain.write("-P 3 1M 64k")
    assert chain.backup("f") == "e"
    assert chain.guest.checkpoints() == ["d", "e", "f", "x"]


def test_prune(chain: Chain) -> None:
    chain.write("-P 3 1M 64k")
    chain.assert_goes_on("b", "a")
    chain.write("-P 4 2M 64k")
    chain.assert_goes_on("c", "b")
    foreign = chain.guest.domain.checkpointCreateXML(
        "<domaincheckpoint><name>theirs</name></domaincheckpoint>", 0)
    expected = ("remove a (chain default)\nremove b (chain default)\n"
                "keep c (chain default): last, the base of the next increment\n")
    assert ask(chain, "prune keep-last=1 dry-run") == "dry run: nothing is removed\n" + expected
    assert chain.guest.checkpoints() == ["a", "b", "c", "theirs"]
    assert ask(chain, "prune keep-last=1 chain=other") == "ok\n"
    for bad in ("prune", "prune keep-last=0", "prune keep-last=x", "prune keep-last=1 now"):
        with raises_errno(errno.EINVAL):
            command(chain.path, bad)
    assert ask(chain, "prune keep-last=1") == expected
    assert chain.guest.checkpoints() == ["c", "theirs"]
    chain.write("-P 5 3M 64k")
    chain.assert_goes_on("d", "c")
    foreign.delete(0)


def test_prune_waits_for_nobody(chain: Chain) -> None:
    (chain.path / "backups/now").mkdir()
    with raises_errno(errno.EBUSY):
        command(chain.path, "prune keep-last=1")
    assert "keep a" in ask(chain, "prune keep-last=1 dry-run")
    (chain.path / "backups/now").rmdir()
