# SPDX-License-Identifier: LGPL-2.1-or-later
"""Block jobs on real machines: copy, pull, commit; the bytes, the abort, the restart."""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

import bed
import fsutil
from bed import MIB, Disk, Guest, Mount, bed_dir, libvirtd, raises_errno, sh, wait_for
from fsutil import last_failure
from test_backup import collection, text
from test_recovery import job_files, kill, remount

QEMU_URI = "qemu:///system"
NO_METADATA = (libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
               | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA)


def domain(mnt: Mount, guest: Guest) -> Path:
    return mnt.domains / guest.name


def chain(guest: Guest, inactive: bool = False) -> list[str]:
    level = guest.xml(inactive).find("devices/disk")
    found = []
    while level is not None and level.find("source") is not None:
        found.append(level.find("source").get("file"))
        level = level.find("backingStore")
    return found


def overlay(guest: Guest, suffix: str) -> str:
    """A new overlay on the disk, that no snapshot knows of."""
    guest.domain.snapshotCreateXML(
        f"<domainsnapshot><name>{suffix}</name></domainsnapshot>", NO_METADATA)
    return chain(guest)[0]


def write_file(guest: Guest, name: str, mib: int = 4) -> str:
    guest.run(f"dd if=/dev/urandom of=/data/{name} bs=1M count={mib}; sync")
    return sha(guest, name)


def sha(guest: Guest, name: str) -> str:
    return guest.run(f"sha256sum < /data/{name}").split()[0]


def drop_caches(guest: Guest) -> None:
    guest.run("echo 3 > /proc/sys/vm/drop_caches")


def slow_down(guest: Guest, mib: int = 1) -> None:
    """So slow that a test is there before its end."""
    wait_for(lambda: guest.domain.blockJobInfo("vda", 0), 20, "a block job runs")
    guest.domain.blockJobSetSpeed("vda", mib, 0)


def no_job(guest: Guest) -> bool:
    return not guest.domain.blockJobInfo("vda", 0)


@pytest.fixture
def machine(make_guest) -> Guest:
    return make_guest(Disk(size=256 * MIB), writer=True)


@pytest.fixture(scope="module")
def shared() -> Iterator[Guest]:
    """One machine for the tests that leave its disk on one image."""
    guest = Guest("block", writer=True)
    guest.define(Disk())
    guest.start()
    yield guest
    guest.undefine()


def test_copy_goes_on_on_the_new_image(machine: Guest, mnt: Mount) -> None:
    old, new = Path(chain(machine)[0]), machine.dir / "new one.qcow2"
    expected = write_file(machine, "victim")
    counter = machine.counter()
    (domain(mnt, machine) / "control").write_text(f"copy vda 'to={new}'\n")
    assert chain(machine) == [str(new)] and chain(machine, inactive=True) == [str(new)]
    assert new.stat().st_mode & 0o777 == 0o600 and new.owner() == bed.QEMU_USER
    assert no_job(machine) and text(domain(mnt, machine) / "job") == "" and not job_files()
    old.unlink()                                     # stands alone: no backing image
    drop_caches(machine)
    assert sha(machine, "victim") == expected
    wait_for(lambda: machine.counter() > counter, 20, "the guest writes on")
    machine.shutdown()
    sh(["qemu-img", "check", str(new)])
    assert "backing file" not in sh(["qemu-img", "info", str(new)]).stdout


def test_copy_of_a_chain_to_raw_and_back(machine: Guest, mnt: Mount) -> None:
    overlay(machine, "top")
    expected = write_file(machine, "victim")
    control = domain(mnt, machine) / "control"
    for name, fmt in (("one.raw", "raw"), ("two.qcow2", "qcow2")):
        new = machine.dir / name
        control.write_text(f"copy vda to={new} format={fmt}\n")
        assert chain(machine) == [str(new)]
        drop_caches(machine)
        assert sha(machine, "victim") == expected


def test_pull_makes_the_active_image_stand_alone(machine: Guest, mnt: Mount) -> None:
    below = Path(chain(machine)[0])
    expected = write_file(machine, "victim")
    top = overlay(machine, "top")
    (domain(mnt, machine) / "control").write_text("pull vda\n")
    assert chain(machine) == [top]
    below.unlink()
    drop_caches(machine)
    assert sha(machine, "victim") == expected
    with raises_errno(errno.EINVAL):
        (domain(mnt, machine) / "control").write_text("pull vda\n")
    assert "has one image, and nothing below it" in last_failure(domain(mnt, machine)).text


def test_commit_middle_then_active(machine: Guest, mnt: Mount) -> None:
    control = domain(mnt, machine) / "control"
    bottom = chain(machine)[0]
    sums = {}
    for name in ("one", "two", "three"):
        overlay(machine, name)
        sums[name] = write_file(machine, name)
    three, two, one, _ = chain(machine)
    with raises_errno(errno.EINVAL):
        control.write_text(f"commit vda base={two} top={one}\n")
    assert "the base has to be below the top" in last_failure(domain(mnt, machine)).text
    with raises_errno(errno.EINVAL):
        control.write_text("commit vda base=/etc/passwd\n")
    assert "'/etc/passwd' is no image of disk 'vda'" in last_failure(domain(mnt, machine)).text
    control.write_text(f"commit vda base={one} top={two}\n")
    assert chain(machine) == [three, one, bottom]
    counter = machine.counter()
    control.write_text("commit vda\n")
    assert chain(machine) == [bottom] and chain(machine, inactive=True) == [bottom]
    drop_caches(machine)
    assert {name: sha(machine, name) for name in sums} == sums
    wait_for(lambda: machine.counter() > counter, 20, "the guest writes on")


def test_progress_and_abort(shared: Guest, mnt: Mount, leftovers: None) -> None:
    """Ctrl-C: as before, and the new image is gone."""
    new = shared.dir / "aborted.qcow2"
    before = chain(shared)
    write_file(shared, "big", 96)
    caller = fsutil.write(domain(mnt, shared) / "control", f"copy vda to={new}")
    slow_down(shared)
    job = wait_for(lambda: m if (m := re.search(
        r"kind: block-copy\nobject: vda\nbytes: (\d+)\nbytes-total: (\d+)\npercent: ([\d.]+)\n",
        (domain(mnt, shared) / "job").read_text())) and int(m[1]) > 0 else None, 20, "progress")
    assert 0 < int(job[1]) < int(job[2]) and 0 < float(job[3]) < 100
    with raises_errno(errno.EBUSY):
        (domain(mnt, shared) / "control").write_text("pull vda\n")
    with raises_errno(errno.EBUSY):
        (collection(mnt, shared) / "now").mkdir()
    assert "copy vda" in last_failure(domain(mnt, shared)).text
    caller.process.send_signal(signal.SIGTERM)
    assert caller.process.wait(30) == -signal.SIGTERM
    wait_for(lambda: no_job(shared) and not new.exists() and not job_files(), 20, "put back")
    assert chain(shared) == before and shared.is_healthy()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_restart_in_the_middle(machine: Guest, mount, how: int) -> None:
    new = machine.dir / "new.qcow2"
    expected = write_file(machine, "victim", 64)
    mnt = mount()
    (domain(mnt, machine) / "control").write_text(f"copy vda to={new} async\n")
    slow_down(machine)
    mnt.signal(how)
    mnt.process.wait(30)
    assert not no_job(machine), "it goes on without us"
    again = remount(mount, mnt)
    wait_for(lambda: "kind: block-copy" in text(domain(again, machine) / "job"), 10, "adopted")
    machine.domain.blockJobSetSpeed("vda", 0, 0)
    wait_for(lambda: chain(machine) == [str(new)] and not job_files(), 30, "pivoted")
    drop_caches(machine)
    assert sha(machine, "victim") == expected


def test_restart_with_recover_end(machine: Guest, mount) -> None:
    new, before = machine.dir / "new.qcow2", chain(machine)
    write_file(machine, "victim", 64)
    mnt = mount()
    (domain(mnt, machine) / "control").write_text(f"copy vda to={new} async\n")
    slow_down(machine)
    kill(mnt)
    again = remount(mount, mnt, "recover=end")
    wait_for(lambda: no_job(machine) and not new.exists() and not job_files(), 20, "put back")
    assert chain(machine) == before
    wait_for(lambda: "ended after a restart" in (domain(again, machine) / "error").read_text(),
             10, "told")


def test_machine_stops_in_the_middle(machine: Guest, mnt: Mount) -> None:
    new = machine.dir / "new.qcow2"
    write_file(machine, "victim", 64)
    caller = fsutil.write(domain(mnt, machine) / "control", f"copy vda to={new}")
    slow_down(machine)
    machine.destroy()
    assert caller.errno() == errno.EIO
    assert "the machine stopped before the block job was done" in last_failure(
        domain(mnt, machine)).text
    assert not new.exists() and not job_files()


def test_libvirtd_restarts_in_the_middle(machine: Guest, mnt: Mount) -> None:
    new = machine.dir / "new.qcow2"
    expected = write_file(machine, "victim", 64)
    caller = fsutil.write(domain(mnt, machine) / "control", f"copy vda to={new}")
    slow_down(machine)
    libvirtd("restart")
    wait_for(lambda: machine.domain.blockJobSetSpeed("vda", 0, 0) == 0, 20, "at full speed")
    assert caller.errno(60) == 0
    assert chain(machine) == [str(new)] and sha(machine, "victim") == expected


### Refused before anything is touched

def refused(mnt: Mount, guest: Guest, command: str, number: int, sentence: str) -> None:
    before = chain(guest)
    with raises_errno(number):
        (domain(mnt, guest) / "control").write_text(command + "\n")
    assert sentence in last_failure(domain(mnt, guest)).text
    assert chain(guest) == before and no_job(guest) and not job_files()


def test_paths_are_checked(shared: Guest, mnt: Mount, off_guest) -> None:
    other = off_guest()
    free = shared.dir / "free.qcow2"
    for command, number, sentence in (
            ("copy vda", errno.EINVAL, "to=PATH is missing"),
            ("copy vda to=relative", errno.EINVAL, "to= is an absolute path"),
            (f"copy vda to={shared.dir}/../x.qcow2", errno.EINVAL, "without detours"),
            (f"copy vda to={shared.disk_path('vda')}", errno.EEXIST, "exists"),
            (f"copy vda to={free} format=vmdk", errno.EINVAL, "format is qcow2 or raw"),
            ("copy vda to=/nonexistent/x.qcow2", errno.ENOENT, "/nonexistent"),
            (f"copy vdz to={free}", errno.EINVAL, "the domain has no disk 'vdz'")):
        refused(mnt, shared, command, number, sentence)
    gone = other.disk_path("vda")
    gone.unlink()                                    # still that machine's, all the same
    refused(mnt, shared, f"copy vda to={gone}", errno.EBUSY,
            f"'{gone}' is an image of the domain '{other.name}'")


def test_off_machine(off_guest, mnt: Mount) -> None:
    guest = off_guest()
    with raises_errno(errno.EINVAL):
        (domain(mnt, guest) / "control").write_text("pull vda\n")
    assert "not running" in last_failure(domain(mnt, guest)).text


def test_image_of_another_machine_is_not_written_to(machine: Guest, mnt: Mount,
                                                    off_guest) -> None:
    base = chain(machine)[0]
    overlay(machine, "top")
    other = off_guest()
    image = other.disk_path("vda")
    sh(["qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "qcow2", str(image)])
    refused(mnt, machine, "commit vda", errno.EBUSY,
            f"'{base}' is an image of the domain '{other.name}'")


def test_snapshots_keep_their_images(machine: Guest, mnt: Mount) -> None:
    machine.domain.snapshotCreateXML("<domainsnapshot><name>keep</name></domainsnapshot>",
                                     libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)
    for command in ("pull vda", "commit vda", f"copy vda to={machine.dir}/x.qcow2"):
        refused(mnt, machine, command, errno.EBUSY,
                "the snapshot 'keep' needs the images of disk 'vda' as they are")


def test_checkpoints_go_along_or_it_is_refused(machine: Guest, mnt: Mount) -> None:
    machine.domain.checkpointCreateXML(
        "<domaincheckpoint><name>point</name></domaincheckpoint>")
    refused(mnt, machine, f"copy vda to={machine.dir}/x.raw format=raw", errno.EOPNOTSUPP,
            "has checkpoints, whose bitmaps an image of format raw cannot hold")
    new = machine.dir / "new.qcow2"
    (domain(mnt, machine) / "control").write_text(f"copy vda to={new}\n")
    machine.domain.checkpointCreateXML(
        machine.domain.checkpointLookupByName("point").getXMLDesc(),
        libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
        | libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE)


def test_jobs_and_backups_in_the_way(shared: Guest, mnt: Mount) -> None:
    now = collection(mnt, shared) / "now"
    now.mkdir()
    refused_at_once = domain(mnt, shared) / "control"
    with raises_errno(errno.EBUSY):
        refused_at_once.write_text("pull vda\n")
    assert "backup 'now' is running" in last_failure(domain(mnt, shared)).text
    now.rmdir()
    new = bed_dir() / "images" / "foreign.qcow2"
    shared.domain.blockCopy("vda", f"<disk type='file'><source file='{new}'/>"
                            "<driver type='qcow2'/></disk>", {"bandwidth": MIB},
                            libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
    with raises_errno(errno.EBUSY):
        refused_at_once.write_text(f"copy vda to={shared.dir}/x.qcow2\n")
    assert "a block job of another program runs on disk 'vda'" in last_failure(
        domain(mnt, shared)).text
    shared.domain.blockJobAbort("vda", 0)
    new.unlink()


### A crash and a failure at each step

STEPS = ("record", "start", "watch", "pivot")
POINTS = [f"block-job:{s}:{w}" for s in STEPS for w in ("before", "after")]
UNDO = [f"block-job:{s}:undone" for s in ("start", "record")]
ADOPTED = [f"block-job:{s}:{w}" for s in ("adopt", "found") for w in ("before", "after")]
ADOPTED_UNDO = [f"block-job:{s}:undone" for s in ("found", "adopt")]
CRASHES = {*POINTS, *UNDO, *ADOPTED, *ADOPTED_UNDO}


@pytest.mark.parametrize("point", POINTS + UNDO)
def test_crash(shared: Guest, mount, point: str) -> None:
    machine = shared
    new, before = machine.dir / f"{point}.qcow2".replace(":", "-"), chain(machine)
    expected = write_file(machine, "victim")
    env = {"VMSNAPFS_CRASH_AT": point}
    if point in UNDO:
        env["VMSNAPFS_FAIL_AT"] = "block-job:watch:before"
    mnt = mount(QEMU_URI, env=env)
    mnt.expected_exit = -signal.SIGKILL
    with raises_errno(errno.ENOTCONN, errno.ECONNABORTED):
        (domain(mnt, machine) / "control").write_text(f"copy vda to={new}\n")
    assert mnt.process.wait(10) == -signal.SIGKILL, "no such crash point"
    remount(mount, mnt)
    wait_for(lambda: not job_files() and no_job(machine), 20, "settled")
    assert chain(machine) == (before if point in ("block-job:record:before",
                                                  "block-job:record:after",
                                                  "block-job:start:before", *UNDO)
                              else [str(new)])
    assert new.exists() == (chain(machine) == [str(new)])
    drop_caches(machine)
    assert sha(machine, "victim") == expected


@pytest.mark.parametrize("point", ADOPTED + ADOPTED_UNDO)
def test_crash_of_the_second_daemon(shared: Guest, mount, point: str) -> None:
    """Killed while it takes the job over; the third one ends it, one way or the other."""
    new, before = shared.dir / f"{point}.qcow2".replace(":", "-"), chain(shared)
    expected = write_file(shared, "victim")
    mnt = mount()
    (domain(mnt, shared) / "control").write_text(f"copy vda to={new} async\n")
    slow_down(shared)
    kill(mnt)
    sh(["umount", "-l", str(mnt.path)])
    options = ("recover=end",) if point in ADOPTED_UNDO else ()
    second = Mount(QEMU_URI, *options, env={"VMSNAPFS_CRASH_AT": point})
    second.expected_exit = -signal.SIGKILL
    assert second.process.wait(30) == -signal.SIGKILL, "no such crash point"
    sh(["umount", "-l", str(second.path)], check=False)
    second.finish()
    if not no_job(shared):
        shared.domain.blockJobSetSpeed("vda", 0, 0)
    mount()
    wait_for(lambda: not job_files() and no_job(shared), 30, "settled")
    assert chain(shared) == (before if point in ADOPTED_UNDO else [str(new)])
    assert new.exists() == (chain(shared) == [str(new)])
    drop_caches(shared)
    assert sha(shared, "victim") == expected
