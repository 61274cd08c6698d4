# SPDX-License-Identifier: LGPL-2.1-or-later
"""Snapshots of real guests: their list, making them, their disks."""

from __future__ import annotations

import collections
import errno
import json
import os
import re
import shlex
import signal
import stat
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

import bed
import fsutil
from bed import Disk, Guest, Mount, raises_errno, sh, wait_for, within
from conftest import MakeGuest, MakeMount
from fsutil import HungLibvirtd, command, driver_uri, hung, last_failure
from test_offline import compress
from test_save import writer

__all__ = ["hung", "writer"]


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


def test_there_is_nothing_in_one_that_is_gone(off_guest, mnt: Mount) -> None:
    """Whoever is in it still; the kernel would keep what he finds, and nobody could see it."""
    guest = off_guest()
    snapshots = collection(mnt, guest)
    virsh_create(guest, "s")
    here = os.open(snapshots / "s", os.O_PATH | os.O_DIRECTORY)
    try:
        os.stat("state", dir_fd=here)
        virsh_delete(guest, "s")
        wait_for(lambda: not (snapshots / "s").exists(), 2, "gone")
        with raises_errno(errno.ENOENT):
            os.stat("parent", dir_fd=here)
    finally:
        os.close(here)


def test_parents_and_current_follow_other_programs(off_guest, mnt: Mount) -> None:
    guest = off_guest()
    snapshots = collection(mnt, guest)
    for number in range(4):
        virsh_create(guest, f"s{number}")
    wait_for(lambda: text(snapshots / "s3/parent") == "s2", 2, "its parent")
    numbers = {name: (snapshots / name).stat().st_ino for name in os.listdir(snapshots)}
    virsh_delete(guest, "s2")
    wait_for(lambda: text(snapshots / "s3/parent") == "s1", 2, "its parent's parent")
    assert sorted(os.listdir(snapshots)) == ["current", "s0", "s1", "s3"]
    for name in ("s2", "s2/state", "s2/control"):
        with raises_errno(errno.ENOENT):
            (snapshots / name).lstat()
    guest.domain.revertToSnapshot(guest.domain.snapshotLookupByName("s0"))
    wait_for(lambda: os.readlink(snapshots / "current") == "s0", 2, "current follows a revert")
    virsh_create(guest, "s4")
    wait_for(lambda: os.path.lexists(snapshots / "s4"), 2, "a new branch")
    assert text(snapshots / "s4/parent") == "s0"
    guest.domain.snapshotLookupByName("s1").delete(
        libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_CHILDREN)
    wait_for(lambda: sorted(os.listdir(snapshots)) == ["current", "s0", "s4"], 2, "both went")
    # Whatever else changed, each is known by its number; so is one that is gone.
    assert (snapshots / "s0").stat().st_ino == numbers["s0"]
    assert (snapshots / "s4").stat().st_ino not in numbers.values()


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
    with within(3, "the list"):
        assert os.listdir(snapshots) == ["current", "known"]
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


### Making one

def records() -> list[Path]:
    return [path for kind in ("owners", "snapshots")
            for path in Path("/var/lib/vmsnapfs").glob(f"*/{kind}/*")]


@pytest.fixture
def machine(mnt: Mount, off_guest: MakeGuest) -> Iterator[Callable[..., Guest]]:
    """machine(*disks, on=False): a guest of the test's own, forgotten before its mount ends."""
    made: list[Guest] = []

    def make(*disks: Disk, on: bool = False, **options: bool | int) -> Guest:
        guest = off_guest(*disks, **options)
        made.append(guest)
        if on:
            guest.start()
        return guest

    yield make
    for guest in made:
        guest.undefine()
    wait_for(lambda: not records(), 5, "their records are gone")


def backing(image: Path) -> Path:
    info = json.loads(sh(["qemu-img", "info", "-U", "--output=json", str(image)]).stdout)
    return Path(info["full-backing-filename"])


def snapshot_names(guest: Guest) -> set[str]:
    return set(guest.snapshots())


def make(mnt: Mount, guest: Guest, line: str) -> Path:
    command(mnt.domains / guest.name, f"snapshot {line}")
    return collection(mnt, guest) / line.split()[0]


def refused(mnt: Mount, guest: Guest, line: str, number: int, sentence: str) -> None:
    """The command fails with that errno and sentence, and nothing is left of it."""
    files, names = set(guest.dir.iterdir()), snapshot_names(guest)
    with raises_errno(number):
        command(mnt.domains / guest.name, line)
    failure = last_failure(mnt.domains / guest.name)
    assert getattr(errno, failure.errno) == number and sentence in failure.text
    assert set(guest.dir.iterdir()) == files and snapshot_names(guest) == names
    assert not list(Path("/var/lib/vmsnapfs").glob("*/snapshots/*"))


# state of the machine, options, state and memory of the snapshot, where its disks are
MATRIX = [
    ("off", "", "shutoff", "none", "external"),
    ("off", "disk=internal", "shutoff", "none", "internal"),
    ("running", "", "disk-snapshot", "none", "external"),
    ("running", "quiesce=off", "disk-snapshot", "none", "external"),
    ("running", "memory=external", "running", "external", "external"),
    ("running", "live memory=external", "running", "external", "external"),
    ("running", "disk=internal", "running", "internal", "internal"),
    ("running", "memory=internal", "running", "internal", "internal"),
    ("paused", "", "disk-snapshot", "none", "external"),
    ("paused", "memory=external", "paused", "external", "external"),
    ("paused", "memory=internal", "paused", "internal", "internal"),
]


def test_every_kind(leftovers: None) -> None:
    """One test for all of the matrix: each snapshot stands on the one before."""
    guests = {name: Guest(f"matrix-{name}") for name in ("off", "running")}
    mnt = Mount("qemu:///system")
    try:
        mnt.wait_mounted()
        for guest in guests.values():
            guest.define(Disk("vda"), Disk("vdb"))
        guests["running"].start()
        for number, row in enumerate(MATRIX):
            check_kind(mnt, guests["off" if row[0] == "off" else "running"], f"s{number}", *row)
    finally:
        for guest in guests.values():
            guest.undefine()
        wait_for(lambda: not records(), 5, "their records are gone")
        mnt.finish()


def check_kind(mnt: Mount, guest: Guest, name: str, state: str, options: str,
               kept: str, memory: str, disks: str) -> None:
    before = {target: guest.disk_path(target) for target in ("vda", "vdb")}
    if state == "paused":
        guest.suspend()
    snapshot = make(mnt, guest, f"{name} {options}")
    if state == "paused":
        assert guest.state == libvirt.VIR_DOMAIN_PAUSED
        guest.resume()
    assert (state == "off") == guest.is_off()
    assert (text(snapshot / "state"), os.getxattr(snapshot, "user.vmsnapfs.memory").decode()) \
        == (kept, memory)
    assert os.readlink(snapshot.parent / "current") == name
    xml = ET.fromstring((snapshot / "snapshot.xml").read_text())
    assert {d.get("snapshot") for d in xml.findall("disks/disk")} == {disks}
    for target, path in before.items():
        now = guest.disk_path(target)
        if disks == "internal":
            assert now == path
            continue
        assert now == guest.dir / f"{target}.{name}.qcow2" and backing(now) == path
        assert stat.S_IMODE(now.stat().st_mode) == 0o600
    if memory == "external":
        path = Path(xml.find("memory").attrib["file"])
        assert path == guest.dir / f"vda.{name}.memory" and path.stat().st_size > 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("on", [False, True])
def test_mkdir(machine, mnt: Mount, on: bool) -> None:
    guest = machine(on=on)
    snapshot = collection(mnt, guest) / "before upgrade, 100 & more"
    before = time.time()
    snapshot.mkdir()
    assert snapshot.is_dir() and snapshot.stat().st_uid == 0
    assert int(before) <= snapshot.stat().st_mtime <= time.time()
    assert snapshot_names(guest) == {snapshot.name}
    assert guest.disk_path("vda").name == "vda.before%20upgrade%2C%20100%20%26%20more.qcow2"
    consistency = os.getxattr(snapshot, "user.vmsnapfs.consistency").decode()
    assert consistency == ("filesystem" if on else "offline")
    if on:
        assert guest.command("guest-fsfreeze-status") == "thawed"
        assert int(os.getxattr(snapshot, "user.vmsnapfs.frozen_ms")) > 0
    with raises_errno(errno.EEXIST):
        snapshot.mkdir()


def test_names_of_files_do_not_grow_and_overwrite_nothing(machine, mnt: Mount) -> None:
    guest = machine(Disk("vda"), Disk("vdb", "raw"))
    taken = guest.dir / "vda.two.qcow2"
    taken.write_text("not to be lost")
    (guest.dir / "vdb.qcow2").symlink_to(guest.dir / "vdb.raw")
    for name in ("one", "two", "n" * 200):
        make(mnt, guest, name)
    assert taken.read_text() == "not to be lost"
    long = guest.disk_path("vda")
    assert re.fullmatch(r"vda-1\.[0-9a-f]{16}\.qcow2", long.name)
    assert backing(long).name == "vda-1.two.qcow2"
    assert backing(backing(long)).name == "vda.one.qcow2"
    assert guest.disk_path("vdb").name.startswith("vdb.")
    guest.start()


@pytest.mark.parametrize("description", ["before <the> 'upgrade' & more", "äöü", ""])
def test_description_and_some_disks(machine, mnt: Mount, description: str) -> None:
    guest = machine(Disk("vda"), Disk("vdb"))
    snapshot = make(mnt, guest, f"part only=vdb description={shlex.quote(description)}")
    assert text(snapshot / "description") == description
    assert guest.disk_path("vda").name == "vda.qcow2"
    assert guest.disk_path("vdb").name == "vdb.part.qcow2"


def test_off_with_a_checkpoint(machine, mnt: Mount) -> None:
    """libvirt refuses it; started paused, the guest never runs."""
    guest = machine(on=True)
    guest.domain.checkpointCreateXML("<domaincheckpoint><name>c</name></domaincheckpoint>", 0)
    guest.shutdown()
    before = guest.dir / "vda.qcow2"
    refused(mnt, guest, "snapshot a disk=internal", errno.EOPNOTSUPP, "has checkpoints")
    snapshot = make(mnt, guest, "a")
    assert guest.is_off() and text(snapshot / "state") == "disk-snapshot"
    assert backing(guest.disk_path("vda")) == before
    assert os.getxattr(snapshot, "user.vmsnapfs.consistency") == b"offline"
    assert guest.checkpoints() == ["c"]
    guest.start()


### Reading

def servers(mnt: Mount) -> list[int]:
    return [pid for pid in fsutil.descendants(mnt.pid)
            if Path(f"/proc/{pid}/comm").read_text() == "qemu-nbd\n"]


def descriptors(mnt: Mount) -> collections.Counter[str]:
    """What the daemon has open; sockets, say, are all alike."""
    return fsutil.kinds(Path(f"/proc/{mnt.pid}/fd").iterdir(), os.readlink)


def mark(image: Path, tmp_path: Path) -> str:
    """What the file /mark of the ext4 on that disk says, read by cp."""
    copy = tmp_path / "copy.raw"
    sh(["cp", "--sparse=auto", str(image), str(copy)])
    return bed.read_ext4(copy, "/mark").strip()


CHAIN = {"s1": "", "s2": "disk=internal", "s3": "memory=external", "s4": "memory=internal",
         "s5": "quiesce=require"}


def test_disks_are_as_they_were(machine, mnt: Mount, tmp_path: Path) -> None:
    """A chain of five, external and internal, read while the machine runs and when it is off."""
    guest = machine(Disk("vda"), Disk("vdb"), on=True)
    snapshots = collection(mnt, guest)
    for name, options in CHAIN.items():
        guest.run(f"echo {name} > /data/mark; sync")
        make(mnt, guest, f"{name} {options}")
    guest.run("echo now > /data/mark; sync")
    sh(["find", str(snapshots), "-ls"])
    assert not servers(mnt)
    for name in CHAIN:
        assert sorted(os.listdir(snapshots / name / "disks")) == ["vda.raw", "vdb.raw"]
        assert mark(snapshots / name / "disks/vda.raw", tmp_path) == name
    memory = snapshots / "s3/memory"
    for _ in range(2):
        assert memory.read_bytes() == (guest.dir / "vda.s3.memory").read_bytes()
        # Else it would keep its space when somebody else removes it.
        wait_for(lambda: not [kind for kind in descriptors(mnt) if "vda.s3.memory" in kind], 20,
                 "nobody reads it, and it is closed")
    assert not (snapshots / "s1/memory").exists()
    for name in ("s3", "s4"):
        full = snapshots / name / "full/vda.qcow2"
        sh(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(full),
            str(snapshots / name / "disks/vda.raw")])
        assert json.loads((snapshots / name / "maps/vda.json").read_text())[0]["start"] == 0
    assert guest.run("cat /data/mark").strip() == "now"
    # A server ends some seconds after the last reader; the next reader starts another.
    assert servers(mnt)
    wait_for(lambda: not servers(mnt), 20, "the servers ended")
    guest.destroy()
    for name in CHAIN:
        assert mark(snapshots / name / "disks/vda.raw", tmp_path) == name


def test_a_walk_keeps_nothing_open(machine, mnt: Mount) -> None:
    """The kernel may know for hours what it once looked up, of snapshots that are gone too."""
    guest = machine(Disk("vda"), Disk("vdb"))
    for name in CHAIN:
        make(mnt, guest, name)
    snapshots = collection(mnt, guest)
    (snapshots / "s1/disks/vda.raw").stat()        # the first one makes what all share
    before = descriptors(mnt)
    sh(["find", str(snapshots), "-ls"])
    wait_for(lambda: not descriptors(mnt) - before, 20, "closed")


def is_writable(image: Path) -> bool:
    """Whether QEMU's lock lets somebody write."""
    done = sh(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 512", str(image)], check=False)
    assert done.returncode == 0 or "lock" in done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("on", [True, False])
def test_external_ones_are_read_straight(machine, mnt: Mount, tmp_path: Path, on: bool) -> None:
    """No server is started; the image is locked while a file is open, and not afterwards."""
    guest = machine(on=on)
    here = make(mnt, guest, "s")
    image, copy = guest.dir / "vda.qcow2", tmp_path / "copy.raw"
    for path, kind in (here / "disks/vda.raw", "raw"), (here / "full/vda.qcow2", "qcow2"):
        with path.open("rb") as file:
            sh(["cp", str(path), str(copy)])
            assert not is_writable(image), "as long as somebody has it open"
            if on:
                with pytest.raises(libvirt.libvirtError, match="lock"):
                    guest.domain.blockCommit(
                        "vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
            sh(["qemu-img", "compare", "-U", "-f", "qcow2", "-F", kind, str(image), str(copy)])
            assert file.read(4096) == copy.read_bytes()[:4096]
        # The next reader opens it again; when a file is closed the kernel tells us later.
        assert path.read_bytes() == copy.read_bytes()
        assert not servers(mnt)
    json.loads((here / "maps/vda.json").read_text())
    if not on:
        wait_for(lambda: is_writable(image), 20, "nobody has it any more")


def test_what_is_compressed_in_a_snapshot(machine, mnt: Mount, tmp_path: Path) -> None:
    guest = machine()
    compress(guest)
    path = make(mnt, guest, "s") / "disks/vda.raw"
    sh(["cp", str(path), str(tmp_path / "copy.raw")])
    assert servers(mnt)
    sh(["qemu-img", "compare", "-U", "-f", "qcow2", "-F", "raw", str(guest.dir / "vda.qcow2"),
        str(tmp_path / "copy.raw")])
    wait_for(lambda: not servers(mnt), 20, "the server ended")
    with path.open("rb") as file:
        # The pages of the copy are still there, and need no server.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.read(4096)
        assert servers(mnt)


def test_a_machine_that_is_off(machine, mnt: Mount, tmp_path: Path) -> None:
    guest = machine(Disk("vda"), Disk("vdb", "raw"))
    image = guest.dir / "vdb.raw"
    make(mnt, guest, "s")
    copy = collection(mnt, guest) / "s/disks/vdb.raw"
    assert copy.read_bytes() == image.read_bytes()
    assert copy.stat().st_size == image.stat().st_size
    # Whoever reads keeps writers out; nobody else.
    guest.start()
    assert guest.disk_path("vdb").name == "vdb.s.qcow2"


def test_an_image_that_was_written_to_is_not_shown(machine, mnt: Mount) -> None:
    """Somebody commits the overlay and leaves the snapshot behind."""
    guest = machine(on=True)
    virsh_create(guest, "stale", disk_only=True)
    sh(["virsh", "blockcommit", guest.name, "vda", "--active", "--pivot", "--wait"])
    image = collection(mnt, guest) / "stale/disks/vda.raw"
    with raises_errno(errno.EUCLEAN):
        image.stat()
    with raises_errno(errno.EUCLEAN):
        image.open("rb")
    assert "the machine writes to its image" in last_failure(mnt.domains / guest.name).text


def test_a_killed_daemon_leaves_no_server(off_guest: MakeGuest, mount: MakeMount) -> None:
    guest = off_guest()
    compress(guest)
    virsh_create(guest, "s", disk_only=True)
    dead = mount()
    with (collection(dead, guest) / "s/disks/vda.raw").open("rb") as file:
        file.read(4096)
        pids = servers(dead)
        assert pids
        dead.signal(signal.SIGKILL)
        dead.process.wait(10)
    wait_for(lambda: all(fsutil.process_state(pid) in "ZX" for pid in pids), 10, "they died")
    sh(["umount", "-l", str(dead.path)], check=False)
    mount()
    wait_for(lambda: not [p for p in Path("/run/vmsnapfs").iterdir() if p.is_dir()], 5,
             "its directory is gone")
