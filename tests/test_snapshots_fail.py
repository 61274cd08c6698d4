# SPDX-License-Identifier: LGPL-2.1-or-later
"""Snapshots that are refused, given up, or whose daemon dies."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

import bed
import fsutil
from bed import MIB, Disk, Guest, Mount, raises_errno, sh, wait_for, within
from conftest import MakeGuest, MakeMount
from fsutil import HungLibvirtd, command, hung, last_failure
from test_interrupt import HANDLE, WRITE
from test_save import StoppedWriter, migration, writer

from test_snapshots import (  # noqa: F401
    collection, machine, make, records, refused, text)

LINE = "snapshot a memory=external"


### What is refused, and nothing is left of it

REFUSALS = [
    ("snapshot a memory=external quiesce=try", errno.EINVAL, "do not go together"),
    ("snapshot a memory=internal quiesce=require", errno.EINVAL, "do not go together"),
    ("snapshot a live", errno.EINVAL, "live goes with memory=external"),
    ("snapshot a dead", errno.EINVAL, "the only word behind the name is live"),
    ("snapshot a memory=internal disk=external", errno.EINVAL, "kept inside the images"),
    ("snapshot a memory=external disk=internal", errno.EINVAL, "goes with disk=external"),
    ("snapshot a disk=internal only=vda", errno.EINVAL, "takes in all disks"),
    ("snapshot a memory=some", errno.EINVAL, "memory is none, internal or external"),
    ("snapshot a disk=none", errno.EINVAL, "disk is internal or external"),
    ("snapshot a quiesce=maybe", errno.EINVAL, "quiesce is try, require or off"),
    ("snapshot a only=", errno.EINVAL, "only= names no disk"),
    ("snapshot a only=vdz", errno.EINVAL, "no disk 'vdz'"),
    ("snapshot a memory=external", errno.EINVAL, "the machine is off"),
    ("snapshot a disk=internal", errno.EOPNOTSUPP, "disk 'vdb' can be made: only a qcow2 image"),
    ("snapshot a only=sda", errno.EOPNOTSUPP, "disk 'sda' cannot be in a snapshot: removable"),
    ("snapshot a only=vdc", errno.EOPNOTSUPP, "disk 'vdc' can be made: it is a block device"),
    ("snapshot a only=vdd", errno.EOPNOTSUPP, "disk 'vdd' can be made: it is no file of this host"),
    ("snapshot a only=sdb", errno.EOPNOTSUPP, "disk 'sdb' can be made: it is a SCSI LUN"),
    ("snapshot a", errno.EOPNOTSUPP, "leave it out with only="),
    ("snapshot current", errno.EINVAL, "links of the tree"),
    ("snapshot .hidden", errno.EINVAL, ""),
    ("snapshot old", errno.EEXIST, "the snapshot 'old' exists"),
]


def test_refusals(machine, mnt: Mount) -> None:
    """A machine with a qcow2 and a raw image, a block device, a CD, and a snapshot."""
    guest = machine(Disk("vda"), Disk("vdb", "raw"))
    for xml in ("<disk type='block' device='disk'><driver name='qemu' type='raw'/>"
                "<source dev='/dev/loop-none'/><target dev='vdc' bus='virtio'/></disk>",
                "<disk type='network' device='disk'><driver name='qemu' type='raw'/>"
                "<source protocol='nbd' name='export'><host name='localhost'/></source>"
                "<target dev='vdd' bus='virtio'/></disk>",
                "<disk type='block' device='lun'><driver name='qemu' type='raw'/>"
                "<source dev='/dev/loop-none'/><target dev='sdb' bus='scsi'/></disk>",
                f"<disk type='file' device='cdrom'><source file='{guest.dir}/vdb.raw'/>"
                "<target dev='sda' bus='scsi'/><readonly/></disk>"):
        guest.domain.attachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    guest.domain.snapshotCreateXML(
        "<domainsnapshot><name>old</name><disks>"
        + "".join(f"<disk name='{target}' snapshot='no'/>"
                  for target in ("vdb", "vdc", "vdd", "sdb")) + "</disks></domainsnapshot>",
        libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
    for line, number, sentence in REFUSALS:
        refused(mnt, guest, line, number, sentence)


def test_pflash_and_internal(machine, mnt: Mount) -> None:
    guest = machine()
    xml = guest.domain.XMLDesc(0)
    code = guest.dir / "code.fd"
    code.write_bytes(b"")
    bed.connection().defineXML(re.sub(
        r"<kernel>.*</cmdline>", f"<loader readonly='yes' type='pflash'>{code}</loader>"
        f"<nvram>{guest.dir}/vars.fd</nvram>", xml, flags=re.DOTALL))
    refused(mnt, guest, "snapshot a disk=internal", errno.EOPNOTSUPP, "pflash")
    make(mnt, guest, "a")


def test_managed_save_is_in_the_way(machine, mnt: Mount) -> None:
    guest = machine(on=True)
    guest.domain.managedSave()
    refused(mnt, guest, "snapshot a", errno.EBUSY, "managedsave-remove")
    refused(mnt, guest, "snapshot a disk=internal", errno.EBUSY, "start it first")


def test_our_backup_is_in_the_way(guest: Guest, mnt: Mount) -> None:
    backup = mnt.domains / guest.name / "backups/now"
    backup.mkdir()
    with within(5, "the refusal"):
        refused(mnt, guest, "snapshot a", errno.EBUSY, "backup 'now' is running since")
    backup.rmdir()


def test_jobs_of_others_are_in_the_way(machine, mnt: Mount) -> None:
    guest = machine(on=True)
    shutil.chown(guest.dir, bed.QEMU_USER)
    guest.domain.backupBegin("<domainbackup mode='pull'><server transport='unix' "
                             f"socket='{guest.dir}/s'/></domainbackup>", None)
    with within(5, "the refusal"):
        refused(mnt, guest, "snapshot a", errno.EBUSY, "a job of another program runs")
    guest.domain.abortJob()
    wait_for(lambda: not guest.has_job(), 10, "the backup ended")
    guest.domain.blockCopy("vda", f"<disk type='file'><source file='{guest.dir}/copy'/>"
                           "<driver type='qcow2'/></disk>", flags=libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
    refused(mnt, guest, "snapshot a", errno.EBUSY, "a block job runs on disk 'vda'")
    guest.domain.blockJobAbort("vda")


def test_a_frozen_guest(guest: Guest, mnt: Mount) -> None:
    command(mnt.domains / guest.name, "freeze")
    refused(mnt, guest, "snapshot a memory=external", errno.EBUSY, "thaw it first")
    command(mnt.domains / guest.name, "thaw")


@pytest.fixture
def small_room(machine) -> Iterator[Callable[[int], Guest]]:
    """small_room(bytes): a running machine whose images leave that much on their disk."""
    rooms: list[Path] = []

    def make_small(free: int) -> Guest:
        guest = machine(on=False)
        image = (guest.dir / "vda.qcow2").read_bytes()
        sh(f"mount -t tmpfs -o size={len(image) + free + MIB} none {guest.dir}")
        rooms.append(guest.dir)
        (guest.dir / "vda.qcow2").write_bytes(image)
        with (guest.dir / "filler").open("wb") as filler:
            space = os.statvfs(guest.dir)
            filler.write(bytes(max(space.f_bavail * space.f_frsize - free, 0)))
        guest.start()
        return guest

    yield make_small
    for room in rooms:
        sh(["umount", "-l", str(room)])


@pytest.mark.parametrize("line, free", [("snapshot a", MIB // 2),
                                        ("snapshot a memory=external", 16 * MIB)])
def test_no_room(small_room, mnt: Mount, line: str, free: int) -> None:
    guest = small_room(free)
    refused(mnt, guest, line, errno.ENOSPC, "the snapshot needs")
    assert guest.is_healthy()
    guest.destroy()


def test_quiesce_required_and_no_agent(machine, mnt: Mount) -> None:
    guest = machine(agent=False, on=True)
    refused(mnt, guest, "snapshot a quiesce=require", errno.EHOSTDOWN, "no guest agent")
    guest.suspend()
    refused(mnt, guest, "snapshot a quiesce=require", errno.EHOSTDOWN, "the machine is paused")


### Callers that go away, and a daemon that does

def test_a_cancelled_memory_snapshot_leaves_nothing(machine, mnt: Mount,
                                                    writer: StoppedWriter) -> None:
    guest = machine(on=True)
    domain = mnt.domains / guest.name
    files = set(guest.dir.iterdir())
    caller = fsutil.Caller(fsutil.WRITE, WRITE.replace("backup x', 8", f"{LINE}', {len(LINE)}"),
                           domain / "control", prepare=HANDLE)
    writer.stop()
    wait_for(lambda: "percent: " in text(domain / "job"), 60, "progress")
    job = dict(line.split(": ", 1) for line in text(domain / "job").splitlines())
    assert (job["kind"], job["object"]) == ("snapshot", "snapshots/a")
    assert 0 < int(job["bytes"]) <= int(job["bytes-total"]) and 0 < float(job["percent"]) <= 100
    assert os.listdir(collection(mnt, guest)) == []
    with within(1, "the interrupt"):             # 120 ms for the undoing, and python's end
        os.kill(caller.pid, signal.SIGINT)
        assert caller.errno(30) == errno.EINTR
    wait_for(lambda: migration(guest) == "cancelling", 60, "aborted")
    writer.go_on()
    wait_for(lambda: text(domain / "job") == "", 60, "the action ended")
    assert last_failure(domain).errno == "ECANCELED"
    assert set(guest.dir.iterdir()) == files and not guest.snapshots()
    assert guest.is_running() and guest.disk_path("vda").name == "vda.qcow2"
    assert not records()
    make(mnt, guest, "a memory=external")


def test_a_cancelled_mkdir_leaves_nothing(machine, mnt: Mount, hung: HungLibvirtd) -> None:
    guest = machine()
    snapshots = collection(mnt, guest)
    assert os.listdir(snapshots) == []
    files = set(guest.dir.iterdir())
    hung.hang()
    caller = fsutil.mkdir(snapshots / "a")
    caller.wait_blocked()
    os.kill(caller.pid, signal.SIGTERM)
    caller.process.communicate(timeout=10)
    hung.go_on()
    wait_for(lambda: text(mnt.domains / guest.name / "job") == "", 30, "the action ended")
    assert not guest.snapshots() and set(guest.dir.iterdir()) == files and not records()


POINTS = [f"snapshot-create:{step}:{when}" for step in ("record", "hold", "create", "finish")
          for when in ("before", "after")]
UNDO = [f"snapshot-create:{step}:undone" for step in ("create", "hold", "record")]
RUNNING = [
    ("snapshot-create:frozen:after", "s"),
    ("snapshot-create:create:after", "s memory=external"),
    ("snapshot-create:record:after", "s disk=internal"),
]
CRASHES = {*POINTS, *UNDO, *(point for point, _ in RUNNING)}


def crash_and_come_back(mount: MakeMount, guest: Guest, point: str, line: str) -> None:
    """Killed at that point, the next daemon finds the snapshot whole, or no trace of it."""
    files = set(guest.dir.iterdir())
    env = {"VMSNAPFS_CRASH_AT": point}
    if point in UNDO:
        env["VMSNAPFS_FAIL_AT"] = "snapshot-create:create:before"
    dead = mount("qemu:///system", env=env)
    with raises_errno(errno.ENOTCONN, errno.ECONNABORTED):
        make(dead, guest, line)
    dead.expected_exit = dead.process.wait(10)
    assert dead.expected_exit == -signal.SIGKILL
    sh(["umount", "-l", str(dead.path)], check=False)
    mnt = mount()
    wait_for(lambda: not list(Path("/var/lib/vmsnapfs").glob("*/snapshots/*")), 20, "settled")
    name = line.split()[0]
    assert guest.snapshots() in ([], [name])
    if guest.snapshots():
        assert text(collection(mnt, guest) / name / "state")
        assert (collection(mnt, guest) / name).stat().st_uid == 0
        refused(mnt, guest, f"snapshot {name}", errno.EEXIST, "exists")
        assert stat.S_IMODE(guest.disk_path("vda").stat().st_mode) & 0o077 in (
            0, 0o044 if "internal" in line else 0)
    else:
        assert set(guest.dir.iterdir()) == files
        make(mnt, guest, line)
    assert guest.is_off() or guest.is_healthy()
    guest.undefine()
    wait_for(lambda: not records(), 5, "the records are gone")


@pytest.mark.parametrize("point", POINTS + UNDO)
def test_killed_while_off(off_guest: MakeGuest, mount: MakeMount, point: str) -> None:
    crash_and_come_back(mount, off_guest(Disk("vda"), Disk("vdb")), point, "s")


@pytest.mark.parametrize("point, line", RUNNING)
def test_killed_while_running(make_guest: MakeGuest, mount: MakeMount, point: str,
                              line: str) -> None:
    crash_and_come_back(mount, make_guest(), point, line)
