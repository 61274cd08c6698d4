# SPDX-License-Identifier: LGPL-2.1-or-later
"""Back to a snapshot: what is refused, and every way in which it can fail."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from bare import Bare, bare, blocks, daemon, revert, snapshots, world  # noqa: F401
from bed import MIB, Guest, Mount, raises_errno, sh, wait_for
from fsutil import command, last_failure


RUNNING, PAUSED, OFF = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED,
                        libvirt.VIR_DOMAIN_SHUTOFF)
STEPS = ["record", "images", "define", "current", "stop", "keep", "start", "stand"]


### Refusals: nothing is touched

def refused(mnt: Mount, guest: Guest, name: str, number: int, sentence: str, *words: str) -> None:
    state, xml = guest.state, guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    pid = guest.qemu_pid()
    with raises_errno(number):
        revert(mnt, guest, name, *words)
    assert sentence in last_failure(snapshots(mnt, guest) / name).text
    assert sentence in last_failure(mnt.domains / guest.name).text
    assert (guest.state, guest.qemu_pid()) == (state, pid)
    assert guest.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) == xml


def test_words(bare: Bare, mnt: Mount) -> None:
    bare.snapshot("s")
    refused(mnt, bare, "s", errno.EINVAL, "'quickly' is no word of 'revert'", "quickly")
    refused(mnt, bare, "s", errno.EINVAL, "'off' is no word", "running", "off")
    refused(mnt, bare, "s", errno.EINVAL, "links of the tree and no names", "keep=current")


def test_internal_with_checkpoint(bare: Bare, mnt: Mount) -> None:
    """libvirt would kill the machine."""
    bare.start()
    bare.snapshot("s", internal=True, memory=True)
    bare.domain.checkpointCreateXML("<domaincheckpoint><name>c</name></domaincheckpoint>")
    refused(mnt, bare, "s", errno.EBUSY, "1 checkpoint(s)")
    refused(mnt, bare, "s", errno.EBUSY, "1 checkpoint(s)", "force")
    bare.domain.checkpointLookupByName("c").delete()
    revert(mnt, bare, "s")


def test_internal_under_external(bare: Bare, mnt: Mount) -> None:
    bare.start()
    bare.snapshot("inner", internal=True, memory=True)
    bare.snapshot("outer")
    refused(mnt, bare, "inner", errno.EOPNOTSUPP, "external snapshots (outer) stand")


def test_external_with_checkpoint(bare: Bare, mnt: Mount) -> None:
    """Allowed; the checkpoint is of no use after it, and libvirt says so."""
    bare.start()
    bare.domain.checkpointCreateXML("<domaincheckpoint><name>c</name></domaincheckpoint>")
    bare.snapshot("s")
    bare.write(0, 1)
    revert(mnt, bare, "s", "running")
    assert bare.blocks() == blocks()
    with pytest.raises(libvirt.libvirtError) as caught:
        bare.domain.backupBegin(
            "<domainbackup mode='pull'><incremental>c</incremental>"
            f"<server transport='unix' socket='{bare.dir}/sock'/></domainbackup>", None)
    assert caught.value.get_error_code() == 109


@pytest.mark.parametrize("words", [(), ("running",), ("keep=left",)])
@pytest.mark.parametrize("was", ["running", "off"])
def test_external_of_an_off_machine_with_checkpoint(
        bare: Bare, mnt: Mount, was: str, words: tuple[str, ...]) -> None:
    """libvirt 9.0 takes no snapshot's XML for such a machine."""
    bare.start()
    bare.domain.checkpointCreateXML("<domaincheckpoint><name>c</name></domaincheckpoint>")
    bare.write(0, 1)
    bare.snapshot("s")
    bare.write(0, 2)
    if was == "off":
        bare.destroy()
    for _ in range(2):
        revert(mnt, bare, "s", *words)
        assert bare.state == (RUNNING if "running" in words else OFF)
        assert bare.blocks() == blocks(b0=1)
        assert bare.current() == "s"
        if "keep=left" in words:
            revert(mnt, bare, "left")
            assert bare.blocks() == blocks(b0=2)
            break
    assert bare.domain.checkpointLookupByName("c")
    # libvirt, which would write the old overlay down, must not be in the way of ours.
    if bare.domain.isActive():
        bare.destroy()
    os.rmdir(snapshots(mnt, bare) / "s")
    wait_for(lambda: "s" not in os.listdir(snapshots(mnt, bare)) and not (
        mnt.domains / bare.name / "job").read_text(), 30, "it is deleted")
    bare.start()
    assert bare.blocks() == blocks(b0=2 if "keep=left" in words else 1)


def test_backup_in_the_way(bare: Bare, mnt: Mount) -> None:
    bare.start()
    bare.snapshot("s")
    backup = mnt.domains / bare.name / "backups/b"
    backup.mkdir()
    refused(mnt, bare, "s", errno.EBUSY, "backup 'b' is running")
    backup.rmdir()


def test_foreign_block_job(bare: Bare, mnt: Mount) -> None:
    bare.start()
    bare.snapshot("s")
    copy = bare.dir / "copy"
    bare.domain.blockCopy("vda", f"<disk type='file'><source file='{copy}'/>"
                          "<driver type='qcow2'/></disk>", None,
                          libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
    refused(mnt, bare, "s", errno.EBUSY, "a block job runs on disk 'vda'")
    bare.domain.blockJobAbort("vda", 0)


def test_other_disks(bare: Bare, mnt: Mount) -> None:
    bare.snapshot("s")
    image = bare.dir / "more.qcow2"
    sh(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M"])
    bare.domain.attachDeviceFlags(
        f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
        f"<source file='{image}'/><target dev='vdc' bus='virtio'/></disk>",
        libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    refused(mnt, bare, "s", errno.EINVAL, "disk 'vdc' was added after the snapshot")
    revert(mnt, bare, "s", "force")
    assert image.exists()
    with pytest.raises(KeyError):
        bare.top("vdc")


def test_runs_on_the_snapshot_itself(bare: Bare, mnt: Mount) -> None:
    bare.snapshot("s")
    xml = bare.xml(inactive=True)
    disk = xml.find("devices/disk")
    disk.find("source").set("file", bare.base("s")[0])
    for backing in disk.findall("backingStore"):
        disk.remove(backing)
    bare.domain.connect().defineXML(ET.tostring(xml).decode())
    refused(mnt, bare, "s", errno.EINVAL, "which held the snapshot 's' and has changed since")


@pytest.mark.parametrize("internal", [False, True])
def test_managed_save(bare: Bare, mnt: Mount, internal: bool) -> None:
    """Its memory belongs to disks that are not there any more after the revert."""
    bare.start()
    bare.snapshot("s", internal=internal, memory=internal)
    bare.write(0, 1)
    bare.domain.managedSave()
    refused(mnt, bare, "s", errno.EBUSY, "has a managed save image")
    revert(mnt, bare, "s", "off", "force")
    assert not bare.domain.hasManagedSaveImage()
    bare.start()
    assert bare.blocks() == blocks()


@contextlib.contextmanager
def small_room(bare: Bare, free: int) -> Iterator[None]:
    """The images are on a file system of their own that has so many bytes left."""
    kept = {path.name: path.read_bytes() for path in bare.dir.iterdir()}
    sh(["mount", "-t", "tmpfs", "-o", "size=64M", "none", str(bare.dir)])
    try:
        for name, content in kept.items():
            (bare.dir / name).write_bytes(content)
        with (bare.dir / "filler").open("wb") as filler:
            space = os.statvfs(bare.dir)
            filler.write(bytes(space.f_bavail * space.f_frsize - free))
        yield
    finally:
        if bare.domain.isActive():
            bare.destroy()
        sh(["umount", "-l", str(bare.dir)])


def test_no_room_for_what_is_left(bare: Bare, mnt: Mount) -> None:
    bare.write(0, 1)
    with small_room(bare, 8 * MIB):
        bare.snapshot("s")
        bare.start()
        before = world(bare)
        refused(mnt, bare, "s", errno.ENOSPC, "the memory of the running domain is kept in",
                "keep=left")
        assert world(bare) == before


def test_no_room_for_an_overlay(bare: Bare, mnt: Mount) -> None:
    bare.write(0, 1)
    with small_room(bare, 8 * MIB):
        bare.snapshot("s")
        before = world(bare)
        space = os.statvfs(bare.dir)
        filler = bare.dir / "filler"
        with filler.open("ab") as file:
            file.write(bytes(space.f_bavail * space.f_frsize))
        refused(mnt, bare, "s", errno.ENOSPC, "")
        os.truncate(filler, 0)
        assert world(bare) == before
        revert(mnt, bare, "s")
        assert bare.blocks() == blocks(b0=1)


def test_missing_image(bare: Bare, mnt: Mount) -> None:
    bare.start()
    bare.write(0, 1)
    bare.snapshot("s")
    bare.snapshot("t")
    revert(mnt, bare, "s", "running")
    Path(bare.base("t")[0]).unlink()
    refused(mnt, bare, "t", errno.EIO, "cannot be read")


### Failures: the machine is as it was

def prepare(bare: Bare, active: bool, checkpoint: bool = False) -> None:
    bare.start()
    if checkpoint:
        bare.domain.checkpointCreateXML("<domaincheckpoint><name>c</name></domaincheckpoint>")
    bare.write(0, 1)
    bare.snapshot("s", memory=True)
    bare.write(0, 2)
    bare.snapshot("t")
    bare.write(1, 3)
    if not active:
        bare.destroy()


def records() -> list[Path]:
    return list(Path("/var/lib/vmsnapfs").glob("*/reverts/*.json"))


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("active", [True, False])
def test_each_step_fails(bare: Bare, active: bool, checkpoint: bool) -> None:
    prepare(bare, active, checkpoint)
    before = world(bare)
    for step in STEPS:
        for when in ("before", "after"):
            if (step, when) == ("stand", "after"):
                continue
            mnt = daemon(VMSNAPFS_FAIL_AT=f"revert:{step}:{when}")
            with raises_errno(errno.EIO):
                revert(mnt, bare, "s", "keep=left")
            assert f"revert:{step}:{when}" in last_failure(snapshots(mnt, bare) / "s").text
            assert world(bare) == before, f"{step} {when}"
            assert not records(), f"{step} {when}"
            mnt.finish()
    assert bare.blocks() == blocks(b0=2, b1=3)


POINTS = [f"revert:{step}:{when}" for step in ("distrust", *STEPS)
          for when in ("before", "after")]
POINTS.insert(POINTS.index("revert:stop:before") + 1, "revert:stop:recorded")
POINTS.append("revert:settle:after")
UNDO = [f"revert:{step}:undone" for step in ("start", "keep", "stop", "current", "define",
                                             "images", "record")]
NATIVE = [f"revert-native:{step}:{when}" for step in ("keep", "distrust", "revert")
          for when in ("before", "after")]
NATIVE_UNDO = "revert-native:keep:undone"
CRASHES = {*POINTS, *UNDO, *NATIVE, NATIVE_UNDO}


@pytest.mark.parametrize("active, words", [(True, ("keep=left",)), (True, ("off",)),
                                           (False, ("keep=left",))])
def test_each_step_crashes(bare: Bare, active: bool, words: tuple[str, ...]) -> None:
    """The next start takes it back, or finishes it where the new state stands."""
    prepare(bare, active)
    before = world(bare)
    for point in POINTS:
        if point == "revert:stop:recorded" and not active:
            continue
        mnt = daemon(VMSNAPFS_CRASH_AT=point)
        mnt.expected_exit = -signal.SIGKILL
        with raises_errno(errno.ENOTCONN, errno.ECONNABORTED):
            revert(mnt, bare, "s", *words)
        mnt.process.wait(10)
        mnt.finish()
        again = daemon()
        wait_for(lambda: not records(), 30, f"settled: {point}")
        finished = bare.current() == "s"
        late = point.split(":")[1] in ("stand", "settle") or point == "revert:start:after"
        if "off" in words:
            late = late or point.split(":")[1] in ("keep", "start") or point == "revert:stop:after"
        else:
            assert finished == late, point
        if finished:
            assert bare.blocks() == blocks(b0=1), point
            assert bare.state == (OFF if "off" in words else RUNNING), point
            if "off" in words:
                revert(again, bare, "t", *(["running"] if active else []))
                bare.write(1, 3)
            else:
                revert(again, bare, "left")
                bare.domain.snapshotLookupByName("left").delete(
                    libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)
                (bare.dir / "vda.left-mem1").unlink(missing_ok=True)
            assert bare.blocks() == blocks(b0=2, b1=3), point
            before = world(bare)
        else:
            assert world(bare) == before, point
        again.finish()


def crash(bare: Bare, words: tuple[str, ...], **env: str) -> Mount:
    """A daemon dies of a revert to s; the next one."""
    mnt = daemon(**env)
    mnt.expected_exit = -signal.SIGKILL
    with raises_errno(errno.ENOTCONN, errno.ECONNABORTED):
        revert(mnt, bare, "s", *words)
    mnt.process.wait(10)
    mnt.finish()
    again = daemon()
    wait_for(lambda: not records(), 30, f"settled: {env}")
    return again


@pytest.mark.parametrize("active", [True, False])
def test_each_undo_crashes(bare: Bare, active: bool) -> None:
    """The next start takes back what is left of it."""
    prepare(bare, active)
    before = world(bare)
    for point in UNDO:
        again = crash(bare, ("keep=left",), VMSNAPFS_CRASH_AT=point,
                      VMSNAPFS_FAIL_AT="revert:stand:before")
        assert world(bare) == before, point
        again.finish()
    assert bare.blocks() == blocks(b0=2, b1=3)


@pytest.mark.parametrize("point, finished", [
    ("revert:stop:after", False), ("revert:keep:before", False), ("revert:keep:after", True),
    ("revert:start:before", True), ("revert:start:after", True)])
def test_crash_loses_nothing_that_was_to_be_kept(bare: Bare, point: str, finished: bool) -> None:
    """A machine that is off stands as it was wished, and what it left may be no snapshot yet."""
    prepare(bare, True)
    before = world(bare)
    again = crash(bare, ("off", "keep=left"), VMSNAPFS_CRASH_AT=point)
    if finished:
        assert bare.state == OFF and bare.blocks() == blocks(b0=1)
        revert(again, bare, "left")
        assert bare.state == RUNNING and bare.blocks() == blocks(b0=2, b1=3)
    else:
        assert world(bare) == before
    again.finish()


@pytest.mark.parametrize("active", [True, False])
def test_each_native_step_crashes(bare: Bare, active: bool) -> None:
    """libvirt goes on without us: it is back, or as it was; what was kept stays."""
    state = RUNNING if active else OFF
    if active:
        bare.start()
    bare.write(0, 1)
    bare.snapshot("s", internal=True, memory=active)
    bare.write(0, 2)
    for point in (*NATIVE, NATIVE_UNDO):
        fail = {"VMSNAPFS_FAIL_AT": "revert-native:revert:before"} if point == NATIVE_UNDO else {}
        again = crash(bare, ("keep=left",), VMSNAPFS_CRASH_AT=point, **fail)
        finished = point == "revert-native:revert:after"
        kept = point not in ("revert-native:keep:before", NATIVE_UNDO)
        assert bare.snapshots() == (["left", "s"] if kept else ["s"]), point
        assert bare.blocks() == (blocks(b0=1) if finished else blocks(b0=2)), point
        assert bare.state == state, point
        if kept:
            revert(again, bare, "left")
            assert bare.blocks() == blocks(b0=2) and bare.state == state, point
            command(snapshots(again, bare) / "left", "delete")
        again.finish()


def crashed(bare: Bare, point: str) -> None:
    mnt = daemon(VMSNAPFS_CRASH_AT=point)
    mnt.expected_exit = -signal.SIGKILL
    with raises_errno(errno.ENOTCONN, errno.ECONNABORTED):
        revert(mnt, bare, "s")
    mnt.process.wait(10)
    mnt.finish()
    assert records()


def recovered() -> None:
    mnt = daemon()
    wait_for(lambda: not records(), 30, "settled")
    mnt.finish()


def test_what_was_built_on_a_crashed_revert_stays(bare: Bare) -> None:
    prepare(bare, False)
    crashed(bare, "revert:define:after")
    bare.start()
    bare.snapshot("on-it")
    bare.write(4, 4)
    recovered()
    assert bare.blocks() == blocks(b0=1, b4=4)
    bare.destroy()
    bare.start()
    assert bare.blocks() == blocks(b0=1, b4=4)


def test_what_was_defined_after_a_crashed_revert_stays(bare: Bare) -> None:
    prepare(bare, False)
    old = bare.xml(inactive=True)
    crashed(bare, "revert:images:after")
    ET.SubElement(old, "title").text = "changed since"
    bare.domain.connect().defineXML(ET.tostring(old).decode())
    recovered()
    assert bare.xml(inactive=True).findtext("title") == "changed since"
    assert bare.blocks() == blocks(b0=2, b1=3)


def test_start_fails(bare: Bare, mnt: Mount) -> None:
    """The memory file has a good head and is cut: only QEMU finds out, after the save."""
    prepare(bare, True)
    memory = bare.dir / "s.mem"
    os.truncate(memory, memory.stat().st_size // 2)
    before = world(bare)
    with raises_errno(errno.EIO):
        revert(mnt, bare, "s")
    assert "memory of the snapshot cannot be restored" in last_failure(
        snapshots(mnt, bare) / "s").text
    assert world(bare) == before
    memory.write_bytes(b"nothing")
    refused(mnt, bare, "s", errno.EIO, "the memory of the snapshot 's' cannot be restored")
    revert(mnt, bare, "s", "off")
    assert bare.blocks() == blocks(b0=1)


def test_paused_stays_paused_after_a_failure(bare: Bare, mount) -> None:
    prepare(bare, True)
    bare.suspend()
    before = world(bare)
    mnt = mount(env={"VMSNAPFS_FAIL_AT": "revert:start:after"})
    with raises_errno(errno.EIO):
        revert(mnt, bare, "s")
    assert world(bare) == before
    assert bare.state == PAUSED
