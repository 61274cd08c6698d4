# SPDX-License-Identifier: LGPL-2.1-or-later
"""Snapshots deleted and committed: lines and branches, running and off, failing and dying."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

import fsutil
from bare import (  # noqa: F401
    BLOCK, BLOCKS, Bare, bare, bare2, blocks, daemon, image_blocks, raw_blocks, revert,
    snapshots, world)
from bed import MIB, Disk, Mount, bed_dir, connection, raises_errno, sh, wait_for, within
from fsutil import command, last_failure

OFF, RUNNING = libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_RUNNING
RECORDS = Path("/var/lib/vmsnapfs")


def chain(guest: Bare, count: int = 5) -> dict[str, dict[str, list[int]]]:
    """Snapshots s0, s1, ... of a running machine; what the disks held at each."""
    state = {}
    for i in range(count):
        for number, target in enumerate(guest.targets):
            guest.write(i, i + 1 + number * 10, target)
        guest.snapshot(f"s{i}", memory=i % 2 == 1)
        state[f"s{i}"] = {t: guest.blocks(t) for t in guest.targets}
    for target in guest.targets:
        guest.write(9, 99, target)
    return state


def check(guest: Bare, state: dict[str, dict[str, list[int]]],
          now: dict[str, list[int]]) -> None:
    """The machine and all snapshots that are left hold what they held."""
    assert set(guest.snapshots()) == set(state)
    for target in guest.targets:
        assert guest.blocks(target) == now[target], target
    for name, expected in state.items():
        for target in guest.targets:
            assert image_blocks(*guest.base(name, target)) == expected[target], (name, target)


def needed(guest: Bare) -> set[str]:
    """The files that the machine and its snapshots stand on, and nothing else."""
    tops = [guest.top(t)[0] for t in guest.targets]
    tops += [guest.base(n, t)[0] for n in guest.snapshots() for t in guest.targets]
    found = {f for f in guest.files() if f.endswith(".mem") and f[:-4] in guest.snapshots()}
    while tops:
        path = Path(tops.pop())
        found.add(path.name)
        if path.suffix != ".raw":
            info = sh(["qemu-img", "info", "-U", str(path)]).stdout
            tops += [line.split(": ", 1)[1].split(" (actual")[0] for line in info.splitlines()
                     if line.startswith("backing file:")]
    return found


@pytest.fixture(autouse=True)
def no_records_before(leftovers: None) -> None:
    for kind in ("reverts", "deletes", "trees"):
        for path in RECORDS.glob(f"*/{kind}/*.json"):
            path.unlink()


def no_records() -> bool:
    return not [p for kind in ("reverts", "deletes", "trees")
                for p in RECORDS.glob(f"*/{kind}/*.json")]


def job(mnt: Mount, guest: Bare) -> dict[str, str]:
    text = (mnt.domains / guest.name / "job").read_text()
    return dict(line.split(": ", 1) for line in text.splitlines())


### One line

@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("verb", ["rmdir", "delete", "commit"])
def test_line_of_five(bare2: Bare, mnt: Mount, verb: str, active: bool) -> None:  # noqa: F811
    bare2.start()
    state = chain(bare2)
    now = {t: bare2.blocks(t) for t in bare2.targets}
    if not active:
        bare2.destroy()
    here = snapshots(mnt, bare2)
    for name in ("s2", "s4", "s0", "s1", "s3"):
        if verb == "rmdir":
            (here / name).rmdir()
        else:
            command(here / name, verb)
        wait_for(lambda: not job(mnt, bare2), 30, "over")
        del state[name]
        assert bare2.state == (RUNNING if active else OFF)
        check(bare2, state, now)
        assert bare2.files() == needed(bare2), name
        assert not (here / name).exists()
    assert bare2.files() == {"vda.qcow2", "vdb.raw"}
    if not active:
        bare2.start()
        assert bare2.blocks() == now["vda"]
    assert no_records()


@pytest.mark.parametrize("active", [True, False])
def test_internal(bare: Bare, mnt: Mount, active: bool) -> None:  # noqa: F811
    bare.start()
    for i in range(3):
        bare.write(i, i + 1)
        bare.snapshot(f"s{i}", internal=True, memory=True)
    now = bare.blocks()
    if not active:
        bare.destroy()
    for name in ("s1", "s0", "s2"):
        (snapshots(mnt, bare) / name).rmdir()
        wait_for(lambda: not job(mnt, bare), 30, "over")
        assert name not in bare.snapshots()
    assert bare.blocks() == now
    assert "Snapshot list" not in sh(["qemu-img", "snapshot", "-U", "-l",
                                      bare.top("vda")[0]]).stdout


@pytest.mark.parametrize("active", [True, False])
def test_children(bare: Bare, mnt: Mount, active: bool) -> None:  # noqa: F811
    bare.start()
    state = chain(bare)
    now = bare.blocks()
    if not active:
        bare.destroy()
    command(snapshots(mnt, bare) / "s1", "delete children")
    check(bare, {"s0": state["s0"]}, {"vda": now})
    assert bare.files() == needed(bare)


def test_metadata(bare: Bare, mnt: Mount) -> None:  # noqa: F811
    bare.start()
    chain(bare, 3)
    files, now = bare.files(), bare.blocks()
    command(snapshots(mnt, bare) / "s1", "delete metadata")
    assert bare.snapshots() == ["s0", "s2"]
    assert bare.parent("s2") == "s0"
    assert (bare.files(), bare.blocks()) == (files, now)


def test_bitmaps_stay_right_when_off(bare: Bare, mnt: Mount) -> None:  # noqa: F811
    """Of a machine that is off, by a paused start: the checkpoint still is a base."""
    bare.start()
    bare.domain.checkpointCreateXML("<domaincheckpoint><name>c</name></domaincheckpoint>")
    bare.write(0, 1)
    bare.snapshot("s")
    bare.write(1, 2)
    bare.destroy()
    (snapshots(mnt, bare) / "s").rmdir()
    wait_for(lambda: not job(mnt, bare), 30, "over")
    assert bare.is_off()
    bare.start()
    socket = bed_dir() / "tmp/sock"
    bare.domain.backupBegin(
        "<domainbackup mode='pull'><incremental>c</incremental>"
        f"<server transport='unix' socket='{socket}'/>"
        "<disks><disk name='vda' type='file' exportname='vda' exportbitmap='c'>"
        f"<scratch file='{socket}.scratch'/></disk></disks></domainbackup>", None)
    dirty = sh(f"nbdinfo --map=qemu:dirty-bitmap:c 'nbd+unix:///vda?socket={socket}'").stdout
    bare.domain.abortJob()
    socket.unlink(missing_ok=True)
    ranges = [[int(word) for word in line.split()[:3]] for line in dirty.splitlines()]
    assert [r for r in ranges if r[2] == 1] == [[0, 2 * 65536, 1]]


def test_children_on_an_image_of_no_snapshot(bare: Bare, mnt: Mount) -> None:  # noqa: F811
    """The image that several branches stood on goes with the last of them."""
    bare.start()
    bare.snapshot("a")
    bare.snapshot("b")
    revert(mnt, bare, "b", "running", "keep=k1")
    revert(mnt, bare, "b", "running", "keep=k2")
    command(snapshots(mnt, bare) / "b", "delete")
    revert(mnt, bare, "a", "running")
    bare.write(1, 1)
    command(snapshots(mnt, bare) / "a", "delete children")
    assert bare.snapshots() == []
    assert bare.files() == needed(bare)
    assert bare.blocks() == blocks(b1=1)


### Branches

@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("order", ["bsdalc", "sabcdl", "dcbals"])
def test_branches_in_any_order(bare2: Bare, mnt: Mount, order: str,  # noqa: F811
                               active: bool) -> None:
    """s - a - b and s - c - d and s - l: what is left always holds what it held."""
    bare2.start()
    state = {}

    def snap(name: str, block: int) -> None:
        for number, target in enumerate(bare2.targets):
            bare2.write(block, block + 1 + 10 * number, target)
        bare2.snapshot(name)
        state[name] = {t: bare2.blocks(t) for t in bare2.targets}

    snap("s", 0)
    snap("a", 1)
    snap("b", 2)
    revert(mnt, bare2, "s", "running")
    snap("c", 3)
    snap("d", 4)
    bare2.write(5, 50)
    revert(mnt, bare2, "s", "running", "keep=l")
    state["l"] = state["d"] | {"vda": [*state["d"]["vda"][:5], 50, *state["d"]["vda"][6:]]}
    bare2.write(6, 60)
    now = {t: bare2.blocks(t) for t in bare2.targets}
    if not active:
        bare2.destroy()
    for name in order:
        (snapshots(mnt, bare2) / name).rmdir()
        wait_for(lambda: not job(mnt, bare2), 30, f"{name} deleted")
        memory = [f for f in bare2.files() if f.startswith("vda.l-mem")]
        assert bool(memory) == ("l" in bare2.snapshots())
        del state[name]
        check(bare2, state, now)
        assert bare2.files() - set(memory) == needed(bare2), name
        for left in bare2.snapshots():
            parent = bare2.parent(left)
            assert parent is None or parent in state
    bare2.write(7, 70)
    if not active:
        bare2.start()
    assert bare2.blocks()[7] == 70
    assert no_records()


def test_back_to_what_is_left(bare: Bare, mnt: Mount) -> None:  # noqa: F811
    """After deletions in a tree with branches each snapshot can be gone back to."""
    bare.start()
    state = chain(bare, 4)
    revert(mnt, bare, "s1", "running")
    bare.write(5, 5)
    bare.snapshot("t1")
    state["t1"] = {"vda": bare.blocks()}
    (snapshots(mnt, bare) / "s2").rmdir()
    (snapshots(mnt, bare) / "s1").rmdir()
    for name in ("s3", "t1", "s0", "s3"):
        revert(mnt, bare, name, "running")
        assert bare.blocks() == state[name]["vda"], name
        bare.write(15, 1)
    for name in ("t1", "s3", "s0"):
        command(snapshots(mnt, bare) / name, "delete")
    assert bare.files() == {"vda.qcow2"}
    assert no_records()


### Refusals

def refused(mnt: Mount, guest: Bare, name: str, number: int, sentence: str,
            line: str = "delete") -> None:
    before = world(guest)
    with raises_errno(number):
        command(snapshots(mnt, guest) / name, line)
    assert sentence in last_failure(snapshots(mnt, guest) / name).text
    assert world(guest) == before


def test_words(bare: Bare, mnt: Mount) -> None:  # noqa: F811
    bare.snapshot("s")
    refused(mnt, bare, "s", errno.EINVAL, "'all' is no word of 'delete'", "delete all")


def test_internal_in_what_goes(bare: Bare, mnt: Mount) -> None:  # noqa: F811
    """libvirt would lose it."""
    bare.start()
    bare.snapshot("outer")
    bare.snapshot("inner", internal=True, memory=True)
    refused(mnt, bare, "outer", errno.EOPNOTSUPP, "the internal snapshot 'inner' is in")
    refused(mnt, bare, "inner", errno.EINVAL, "there is nothing to commit", "commit")
    (snapshots(mnt, bare) / "inner").rmdir()
    (snapshots(mnt, bare) / "outer").rmdir()


def test_internal_below(bare: Bare, mnt: Mount) -> None:  # noqa: F811
    bare.start()
    bare.snapshot("inner", internal=True, memory=True)
    bare.snapshot("outer")
    refused(mnt, bare, "inner", errno.EBUSY, "below other images; shut it down first")
    bare.destroy()
    (snapshots(mnt, bare) / "inner").rmdir()
    assert bare.snapshots() == ["outer"]
    assert "inner" not in sh(["qemu-img", "snapshot", "-l", bare.base("outer")[0]]).stdout


def test_clone_stands_on_it(bare: Bare, mnt: Mount) -> None:  # noqa: F811
    """Another machine's disk is an overlay on the image that would be written to."""
    bare.start()
    bare.snapshot("s")
    clone = bare.dir / "clone.qcow2"
    sh(["qemu-img", "create", "-q", "-f", "qcow2", "-b", bare.base("s")[0], "-F", "qcow2",
        str(clone)])
    other = connection().defineXML(
        f"<domain type='qemu'><name>clone</name><memory>1024</memory><os><type>hvm</type></os>"
        f"<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
        f"<source file='{clone}'/><target dev='vda'/></disk></devices></domain>")
    try:
        refused(mnt, bare, "s", errno.EBUSY, "the domain 'clone' uses")
        refused(mnt, bare, "s", errno.EBUSY, "the domain 'clone' uses", "commit")
    finally:
        other.undefine()


def test_commit_needs_one_branch(bare: Bare, mnt: Mount) -> None:  # noqa: F811
    bare.start()
    chain(bare, 3)
    revert(mnt, bare, "s0", "running")
    refused(mnt, bare, "s0", errno.EINVAL, "does not go on from the snapshot 's0' alone", "commit")
    refused(mnt, bare, "s2", errno.EINVAL, "does not go on from", "commit")


def test_backup_in_the_way(bare: Bare, mnt: Mount) -> None:  # noqa: F811
    bare.start()
    bare.snapshot("s")
    backup = mnt.domains / bare.name / "backups/b"
    backup.mkdir()
    with within(5, "the refusals"):
        refused(mnt, bare, "s", errno.EBUSY, "backup 'b' is running")
        with raises_errno(errno.EBUSY):
            (snapshots(mnt, bare) / "s").rmdir()
    backup.rmdir()


### Slow merges

@pytest.fixture
def slow(leftovers: None) -> Iterator[Bare]:
    """A merge of this one takes some seconds: each megabyte is throttled."""
    guest = Bare("slow1")
    guest.define(Disk(fs=False, size=256 * MIB))
    guest.start()
    guest.snapshot("s")
    # An overlay that libvirt does not know is not its to merge; nobody can slow libvirt down.
    xml = ET.fromstring(guest.domain.snapshotLookupByName("s").getXMLDesc(0))
    xml.find("disks/disk/source").set("file", str(guest.dir / "vda.other"))
    guest.domain.snapshotCreateXML(ET.tostring(xml).decode(),
                                   libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
                                   | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT)
    for megabyte in range(0, 256, 16):
        guest.io("vda", f"write -P 5 {megabyte}M 12M")
    yield guest
    guest.undefine()


@contextlib.contextmanager
def throttled(guest: Bare) -> Iterator[None]:
    """All block jobs of the domain have a speed limit as soon as they are there."""
    over = threading.Event()

    def limit() -> None:
        domain = connection().lookupByName(guest.name)
        while not over.is_set():
            with contextlib.suppress(libvirt.libvirtError):
                domain.blockJobSetSpeed(
                    "vda", 4 * MIB, libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES)
            time.sleep(0.002)

    thread = threading.Thread(target=limit)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(libvirt.libvirtError):
            guest.domain.blockJobSetSpeed("vda", 0)


def test_commit_shows_progress_and_can_be_cancelled(slow: Bare, mnt: Mount) -> None:
    here = snapshots(mnt, slow) / "s"
    before = slow.top("vda")
    with throttled(slow):
        caller = fsutil.write(here / "control", "commit")
        wait_for(lambda: int(job(mnt, slow).get("bytes", 0)) > 0, 20, "progress")
        shown = job(mnt, slow)
        assert (shown["kind"], shown["object"]) == ("commit", "snapshots/s")
        assert int(shown["bytes-total"]) >= 32 * MIB
        assert 0 <= float(shown["percent"]) <= 100
        caller.process.send_signal(signal.SIGTERM)
        wait_for(caller.is_over, 10, "the caller is let go")
        wait_for(lambda: not job(mnt, slow), 20, "the job is over")
    assert slow.top("vda") == before
    assert slow.is_running()
    assert slow.domain.blockJobInfo("vda") in ({}, None)
    with raises_errno(errno.EUCLEAN):
        revert(mnt, slow, "s")
    assert "its deletion began and did not end" in last_failure(here).text
    here.rmdir()
    wait_for(lambda: not slow.snapshots(), 20, "deleted")
    assert Path(slow.top("vda")[0]).name == "vda.qcow2"
    assert no_records()


def test_rmdir_returns_and_hides(slow: Bare, mnt: Mount) -> None:
    here = snapshots(mnt, slow) / "s"
    with throttled(slow):
        started = time.monotonic()
        with within(4, "rmdir"):
            here.rmdir()
        assert time.monotonic() - started > 1.5
        assert "s" not in os.listdir(here.parent)
        assert job(mnt, slow)
        with raises_errno(errno.EBUSY):
            command(mnt.domains / slow.name, "backup b")
    wait_for(lambda: not slow.snapshots(), 30, "deleted")
    wait_for(lambda: not job(mnt, slow), 10, "over")
    assert not here.exists()


def test_guest_that_keeps_writing(slow: Bare, mnt: Mount) -> None:
    values = []
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            slow.write(3, len(values) % 250 + 1)
            values.append(len(values) % 250 + 1)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        wait_for(lambda: len(values) > 5, 10, "writes")
        command(snapshots(mnt, slow) / "s", "commit")
    finally:
        over.set()
        thread.join()
    assert Path(slow.top("vda")[0]).name == "vda.qcow2"
    assert slow.blocks()[3] == values[-1]


### Readers

def read_disk(path: Path) -> list[int]:
    return raw_blocks(path.read_bytes()[:BLOCK * BLOCKS])


def delete_when_unread(snapshot: Path) -> None:
    """What serves a reader ends some seconds after it, and a close is told a moment later."""
    said = (f"is open in process {os.getpid()}; close it", "read through this mount")

    def deleted() -> bool:
        try:
            command(snapshot, "delete")
        except OSError as error:
            assert error.errno == errno.EBUSY
            assert any(text in last_failure(snapshot).text for text in said)
            return False
        return True

    wait_for(deleted, 60, "nobody reads")


@pytest.mark.parametrize("active", [True, False])
def test_readers_are_not_shown_what_is_written(bare: Bare, mnt: Mount,  # noqa: F811
                                               active: bool) -> None:
    bare.start()
    state = chain(bare, 4)
    now = bare.blocks()
    if not active:
        bare.destroy()
    here = snapshots(mnt, bare)
    for name, expected in state.items():
        assert read_disk(here / f"{name}/disks/vda.raw") == expected["vda"]
    with (here / "s1/disks/vda.raw").open("rb") as file:
        assert raw_blocks(file.read(BLOCK * BLOCKS)) == state["s1"]["vda"]
        for line in ("delete", "commit"):
            refused(mnt, bare, "s1", errno.EBUSY, f"in process {os.getpid()}; close it", line)
        with raises_errno(errno.EBUSY):
            (here / "s1").rmdir()
        assert bare.snapshots() == ["s0", "s1", "s2", "s3"]
        # The state of s2 is in an image above.
        delete_when_unread(here / "s2")
        del state["s2"]
        file.seek(0)
        assert raw_blocks(file.read(BLOCK * BLOCKS)) == state["s1"]["vda"]
    assert read_disk(here / "s0/disks/vda.raw") == state["s0"]["vda"]
    delete_when_unread(here / "s1")
    del state["s1"]
    check(bare, state, {"vda": now})
    for name, expected in state.items():
        assert read_disk(here / f"{name}/disks/vda.raw") == expected["vda"]


def test_readers_of_an_internal_one(bare: Bare, mnt: Mount) -> None:  # noqa: F811
    bare.start()
    bare.write(0, 1)
    bare.snapshot("s", internal=True, memory=True)
    bare.snapshot("t", internal=True, memory=True)
    here = snapshots(mnt, bare)
    with (here / "s/disks/vda.raw").open("rb") as file:
        assert raw_blocks(file.read(BLOCK * BLOCKS)) == blocks(b0=1)
        refused(mnt, bare, "s", errno.EBUSY, f"in process {os.getpid()}; close it")
        refused(mnt, bare, "t", errno.EBUSY, "is being read through this mount")
        bare.write(0, 2)
        file.seek(0)
        assert raw_blocks(file.read(BLOCK * BLOCKS)) == blocks(b0=1)
    delete_when_unread(here / "s")
    delete_when_unread(here / "t")
    assert bare.snapshots() == []


@contextlib.contextmanager
def locked(image: str) -> Iterator[None]:
    """Another program reads the image: nobody may write to it."""
    socket = bed_dir() / "tmp/reader"
    with subprocess.Popen(["qemu-nbd", "-r", "-t", "-e", "9", "-f", "qcow2", "-k", str(socket),
                           image]) as server:
        try:
            wait_for(socket.exists, 20, "the other reader")
            yield
        finally:
            server.terminate()
            server.wait(20)
            socket.unlink(missing_ok=True)


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("verb", ["delete", "commit"])
@pytest.mark.parametrize("target", ["vda", "vdb"])
def test_readers_that_are_not_ours(bare2: Bare, mnt: Mount, target: str, verb: str,  # noqa: F811
                                   active: bool) -> None:
    """The first disk cannot be merged: nothing was done.  The second: half of it was."""
    bare2.start()
    state = chain(bare2, 3)
    now = {t: bare2.blocks(t) for t in bare2.targets}
    if not active:
        bare2.destroy()
    here = snapshots(mnt, bare2)
    with locked(bare2.base("s1", target)[0]):
        with raises_errno(errno.EIO, errno.EBUSY):
            command(here / "s1", verb)
        assert bare2.state == (RUNNING if active else OFF)
        assert bare2.snapshots() == ["s0", "s1", "s2"]
    assert {t: bare2.blocks(t) for t in bare2.targets} == now
    if target == "vda":
        assert no_records()
        assert {t: read_disk(here / f"s1/disks/{t}.raw") for t in bare2.targets} == state["s1"]
        check(bare2, state, now)
    else:
        assert "can only be deleted now" in last_failure(here / "s1").text
        # Nor is it begun anew by what happens to the machine.
        for change, state_now in [("suspend", "paused"), ("resume", "running")][:2 * active]:
            getattr(bare2.domain, change)()
            wait_for(lambda s=state_now: (here.parent / "state").read_text() == f"{s}\n", 10,
                     change)
        with raises_errno(errno.EUCLEAN):
            revert(mnt, bare2, "s1")
    delete_when_unread(here / "s1")
    del state["s1"]
    check(bare2, state, now)
    assert bare2.files() == needed(bare2)
    assert no_records()


### Failures

# What was done can be taken back; cannot, and the next start goes on; is over.
WHOLE = ["delete:record:before", "delete:record:after", "delete:hold:before",
         "delete:hold:after", "delete:merge:before", "delete:libvirt:before"]
BEGUN = ["delete:merge:after", "delete:forget:before"]
OVER = ["delete:forget:after", "delete:libvirt:after"]


@pytest.mark.parametrize("active", [True, False])
def test_steps_fail(bare2: Bare, active: bool) -> None:  # noqa: F811
    for point in WHOLE + BEGUN + OVER:
        bare2.undefine()
        bare2.define(*bare2.disks)
        bare2.start()
        state = chain(bare2, 3)
        now = {t: bare2.blocks(t) for t in bare2.targets}
        if not active:
            bare2.destroy()
        mnt = daemon(VMSNAPFS_FAIL_AT=point)
        here = snapshots(mnt, bare2) / "s1"
        with raises_errno(errno.EIO):
            command(here, "delete" if "libvirt" in point else "commit")
        assert point in last_failure(mnt.domains / bare2.name).text
        assert bare2.state == (RUNNING if active else OFF), point
        assert {t: bare2.blocks(t) for t in bare2.targets} == now, point
        assert bare2.snapshots() == (["s0", "s2"] if point in OVER else ["s0", "s1", "s2"]), point
        if point in WHOLE:
            check(bare2, state, now)
            assert no_records(), point
            assert {t: read_disk(here / f"disks/{t}.raw") for t in bare2.targets} == state["s1"]
        elif point in BEGUN:
            assert "can only be deleted now" in last_failure(here).text
            with raises_errno(errno.EUCLEAN):
                revert(mnt, bare2, "s1")
            with raises_errno(errno.EUCLEAN):
                read_disk(here / "disks/vda.raw")
        else:
            wait_for(no_records, 60, f"what is left goes by itself: {point}")
        mnt.finish()
        again = daemon()
        if point in WHOLE:
            delete_when_unread(snapshots(again, bare2) / "s1")
        wait_for(lambda: "s1" not in bare2.snapshots() and no_records(), 60, f"over: {point}")
        del state["s1"]
        check(bare2, state, now)
        assert bare2.files() == needed(bare2), point
        assert bare2.state == (RUNNING if active else OFF), point
        again.finish()


POINTS = ["delete:libvirt:after", "delete:hold:after", "merge:job:after", "merge:pivot:before", "merge:pivot:after",
          "delete:merge:after", "delete:switch:before", "delete:switch:after",
          "delete:forget:before", "delete:forget:after"]
CRASHES = set(POINTS)


@pytest.mark.parametrize("branch", [True, False])
@pytest.mark.parametrize("active", [True, False])
def test_each_step_crashes(bare2: Bare, active: bool, branch: bool) -> None:  # noqa: F811
    """The next start finishes it."""
    for point in POINTS:
        native = point == "delete:libvirt:after"
        if branch and (native or point.startswith(("merge:", "delete:hold"))):
            continue
        bare2.undefine()
        bare2.define(*bare2.disks)
        bare2.start()
        state = chain(bare2, 3)
        now = {t: bare2.blocks(t) for t in bare2.targets}
        name = "s2" if "pivot" in point else "s1"
        if branch:
            first = daemon()
            revert(first, bare2, "s0", "running")
            now = {t: bare2.blocks(t) for t in bare2.targets}
            first.finish()
        if not active:
            bare2.destroy()
        mnt = daemon(VMSNAPFS_CRASH_AT=point)
        mnt.expected_exit = -signal.SIGKILL
        with raises_errno(errno.ENOTCONN, errno.ECONNABORTED):
            command(snapshots(mnt, bare2) / name, "delete" if branch or native else "commit")
        mnt.process.wait(10)
        mnt.finish()
        again = daemon()
        wait_for(lambda n=name: n not in bare2.snapshots() and no_records(), 60,
                 f"finished: {point}")
        wait_for(lambda: bare2.state == (RUNNING if active else OFF), 20, f"as before: {point}")
        del state[name]
        check(bare2, state, now)
        assert bare2.files() == needed(bare2), point
        again.finish()
