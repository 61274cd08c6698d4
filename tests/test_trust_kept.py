# SPDX-License-Identifier: LGPL-2.1-or-later
"""What does not break a chain, what a revert does to it, and how much of it is kept."""

from __future__ import annotations

import contextlib
import errno
import shutil
import xml.etree.ElementTree as ET

import libvirt

from bed import Disk, Mount, connection, raises_errno, sh, wait_for
from chain import SIZE, Chain, MakeChain, ask, chain, make_chain, mnt  # noqa: F401
from fsutil import command
from test_trust import bitmap_removed


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
