# SPDX-License-Identifier: LGPL-2.1-or-later
"""Chains that somebody breaks: refused or made full, never a wrong byte."""

from __future__ import annotations

import errno
import os
import signal
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import libvirt
import pytest

from bed import MIB, Disk, Mount, connection, raises_errno, sh, wait_for
from chain import (  # noqa: F401
    SIZE, Chain, MakeChain, ask, chain, forget_records, forget_taken_names, make_chain, mnt)
from fsutil import command, last_failure


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
