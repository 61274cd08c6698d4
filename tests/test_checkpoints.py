# SPDX-License-Identifier: LGPL-2.1-or-later
"""checkpoints/ of real guests: what is shown, made and deleted, and what is refused."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fsutil
from bed import Disk, Guest, Mount, raises_errno, sh, wait_for
from fsutil import last_failure
from test_recovery import STATE, kill, remount

def collection(mnt: Mount, guest: Guest) -> Path:
    return mnt.domains / guest.name / "checkpoints"


def text(path: Path) -> str:
    return path.read_text().strip()


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if not p.is_symlink())


def bitmaps(image: Path) -> set[str]:
    """Of an image that no QEMU has open."""
    info = sh(["qemu-img", "info", "-f", "qcow2", str(image)]).stdout
    return set(re.findall(r"^ +name: (.+)$", info, re.MULTILINE))


def virsh_create(guest: Guest, name: str, *targets: str) -> None:
    disks = "".join(f"<disk name='{d.target}' checkpoint='"
                    f"{'bitmap' if d.target in targets else 'no'}'/>" for d in guest.disks)
    guest.domain.checkpointCreateXML(
        f"<domaincheckpoint><name>{name}</name><disks>{disks}</disks></domaincheckpoint>")


def records(guest: Guest) -> list[Path]:
    return list(STATE.glob(f"*/checkpoints/{guest.uuid}.*"))


@pytest.fixture
def auto(mount) -> Mount:
    return mount("qemu:///system", "checkpoint=auto")


@pytest.fixture
def clean(guest2: Guest) -> Iterator[Guest]:
    """The session's guest of two disks, vda qcow2 and vdb raw, without checkpoints."""
    yield guest2
    for checkpoint in guest2.domain.listAllCheckpoints():
        checkpoint.delete()
    for record in records(guest2):
        record.unlink()


### What is shown

def test_rows(clean: Guest, auto: Mount) -> None:
    checkpoints = collection(auto, clean)
    assert os.listdir(checkpoints) == []
    (checkpoints / "a").mkdir()
    assert clean.checkpoints() == ["a"]
    fsutil.command(checkpoints.parent, "checkpoint b only=vda quiesce=off description='the second'")
    assert names(checkpoints) == ["a", "b"]
    assert os.readlink(checkpoints / "latest") == "b"
    first, second = checkpoints / "a", checkpoints / "b"
    assert sorted(os.listdir(first)) == ["changed", "checkpoint.xml", "control", "created",
                                         "description", "domain.xml", "error", "parent", "valid"]
    assert text(first / "parent") == "" and text(second / "parent") == "a"
    assert text(second / "description").startswith("the second - by vmsnapfs")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.000Z", text(first / "created"))
    assert "<name>a</name>" in (first / "checkpoint.xml").read_text()
    assert f"<name>{clean.name}</name>" in (first / "domain.xml").read_text()
    assert text(first / "valid") == text(second / "valid") == "yes"
    # The raw disk cannot be in it.
    assert os.listdir(first / "changed") == ["vda"]
    before = int(text(first / "changed/vda"))
    clean.run("dd if=/dev/urandom of=/data/changed bs=1M count=2 conv=fsync; rm /data/changed")
    wait_for(lambda: int(text(first / "changed/vda")) >= before + 2 * 1024 * 1024, 5, "seen")
    (checkpoints / "a").rmdir()
    assert names(checkpoints) == ["b"] and clean.checkpoints() == ["b"]
    fsutil.command(second, "delete")
    assert os.listdir(checkpoints) == [] and clean.checkpoints() == []


def test_those_of_other_programs_are_shown_and_left_alone(clean: Guest, auto: Mount) -> None:
    checkpoints = collection(auto, clean)
    virsh_create(clean, "theirs", "vda")
    assert text(checkpoints / "theirs/valid") == "yes"
    wait_for(lambda: names(checkpoints) == ["theirs"], 1, "listed")
    (checkpoints / "ours").mkdir()
    for refused in (lambda: (checkpoints / "theirs").rmdir(),
                    lambda: fsutil.command(checkpoints / "theirs", "delete"),
                    lambda: fsutil.command(checkpoints / "theirs", "delete children"),
                    lambda: fsutil.command(checkpoints / "theirs", "delete metadata")):
        with raises_errno(errno.EPERM):
            refused()
        assert "made by another program" in last_failure(checkpoints.parent).text
    assert clean.checkpoints() == ["ours", "theirs"]
    (checkpoints / "ours").rmdir()
    # Nor one that stands on ours, when ours goes with its children.
    (checkpoints / "ours").mkdir()
    virsh_create(clean, "child", "vda")
    with raises_errno(errno.EPERM):
        fsutil.command(checkpoints / "ours", "delete children")
    assert clean.checkpoints() == ["child", "ours", "theirs"]
    clean.domain.checkpointLookupByName("theirs").delete()
    wait_for(lambda: names(checkpoints) == ["child", "ours"], 1, "not listed any more")


### Deleting

def test_children_go_with_it(clean: Guest, auto: Mount) -> None:
    checkpoints = collection(auto, clean)
    for name in ("a", "b", "c"):
        (checkpoints / name).mkdir()
    fsutil.command(checkpoints / "b", "delete children")
    assert clean.checkpoints() == ["a"]
    assert names(checkpoints) == ["a"]


def test_broken_ones_can_be_deleted(off_guest, auto: Mount) -> None:                 # row 84
    guest = off_guest(Disk("vda"), Disk("vdb"))
    guest.start(wait=False)
    checkpoints = collection(auto, guest)
    for name in ("a", "b"):
        (checkpoints / name).mkdir()
    guest.destroy()
    vda, vdb = (guest.dir / f"{target}.qcow2" for target in ("vda", "vdb"))
    assert bitmaps(vda) == bitmaps(vdb) == {"a", "b"}
    sh(["qemu-img", "bitmap", "--remove", str(vda), "a"])
    guest.start(wait=False)
    assert text(checkpoints / "a/valid") != "yes"
    assert text(checkpoints / "b/valid") == "yes"
    # libvirt deletes nothing of it; the other disk's bitmap goes all the same.
    (checkpoints / "a").rmdir()
    assert guest.checkpoints() == ["b"]
    (checkpoints / "b").rmdir()
    guest.destroy()
    assert bitmaps(vda) == bitmaps(vdb) == set() and not records(guest)


def test_of_a_machine_that_is_off(off_guest, auto: Mount) -> None:                   # row 83
    guest = off_guest(Disk("vda"))
    guest.start(wait=False)
    checkpoints = collection(auto, guest)
    for name in ("a", "b", "c"):
        (checkpoints / name).mkdir()
    guest.destroy()
    image = guest.dir / "vda.qcow2"
    assert text(checkpoints / "a/changed/vda") == "unknown"
    with raises_errno(errno.EOPNOTSUPP):
        (checkpoints / "d").mkdir()
    assert "the domain is off" in last_failure(checkpoints.parent).text
    (checkpoints / "a").rmdir()
    assert guest.checkpoints() == ["b", "c"] and bitmaps(image) == {"b", "c"}
    fsutil.command(checkpoints / "b", "delete metadata")
    assert guest.checkpoints() == ["c"] and bitmaps(image) == {"b", "c"}
    fsutil.command(checkpoints / "c", "delete children")
    assert guest.checkpoints() == [] and bitmaps(image) == {"b"}
    assert not records(guest)


### What is refused

def test_names(clean: Guest, auto: Mount) -> None:
    checkpoints = collection(auto, clean)
    with raises_errno(errno.EINVAL):
        (checkpoints / "latest").mkdir()
    (checkpoints / "a").mkdir()
    for name, number in (("a", errno.EEXIST), ("latest", errno.EEXIST), ("a b", errno.EINVAL),
                         ("ä", errno.EINVAL), ("x" * 252, errno.ENAMETOOLONG)):
        with raises_errno(number):
            (checkpoints / name).mkdir()
    with raises_errno(errno.EINVAL):
        fsutil.command(checkpoints.parent, "checkpoint a+b")
    assert "letters, digits" in last_failure(checkpoints.parent).text
    with raises_errno(errno.EINVAL):
        fsutil.command(checkpoints.parent, "checkpoint b only=vdz")
    with raises_errno(errno.EOPNOTSUPP):                                               # row 71
        fsutil.command(checkpoints.parent, "checkpoint b only=vdb")
    assert "disk 'vdb' is raw" in last_failure(checkpoints.parent).text
    with raises_errno(errno.EINVAL):
        fsutil.command(checkpoints / "a", "delete all")
    with raises_errno(errno.EOPNOTSUPP):
        (checkpoints / "a").rename(checkpoints / "b")
    assert clean.checkpoints() == ["a"]
    (checkpoints / "a").rmdir()


def test_nothing_is_made_or_deleted_under_a_backup(clean: Guest, auto: Mount) -> None:
    checkpoints = collection(auto, clean)
    (checkpoints / "a").mkdir()
    backup = checkpoints.parent / "backups/now"
    backup.mkdir()
    for refused in (lambda: (checkpoints / "a").rmdir(), lambda: (checkpoints / "b").mkdir()):
        with raises_errno(errno.EBUSY):
            refused()
        assert "backup 'now' is running" in last_failure(checkpoints.parent).text
    assert int(text(checkpoints / "a/changed/vda")) >= 0
    backup.rmdir()
    (checkpoints / "a").rmdir()
    assert clean.checkpoints() == []


def test_only_its_owner_deletes_it(clean: Guest, mount) -> None:
    mnt = mount("qemu:///system", "checkpoint=auto", "allow_other", f"gid={fsutil.NOBODY}")
    checkpoints = collection(mnt, clean)
    (checkpoints / "a").mkdir()
    other = fsutil.Caller(fsutil.RMDIR, "os.rmdir(sys.argv[1])", checkpoints / "a",
                          prepare=f"os.setgid({fsutil.NOBODY}); os.setuid({fsutil.NOBODY})")
    assert other.errno() in (errno.EPERM, errno.EACCES)
    assert clean.checkpoints() == ["a"]
    (checkpoints / "a").rmdir()


### After a crash

CREATE = [f"checkpoint-create:{p}" for p in (
    "record:before", "record:after", "create:before", "frozen:after", "create:after",
    "keep:before", "keep:after")]
UNDO = [f"checkpoint-create:{step}:undone" for step in ("create", "record")]
DELETE = [f"checkpoint-delete:remove:{when}" for when in ("before", "after")]
CRASHES = {*CREATE, *UNDO, *DELETE}


@pytest.mark.parametrize("point", CREATE + UNDO)
def test_crash_in_mkdir(clean: Guest, mount, point: str) -> None:
    env = {"VMSNAPFS_CRASH_AT": point}
    if point in UNDO:
        env["VMSNAPFS_FAIL_AT"] = "checkpoint-create:keep:before"
    mnt = mount("qemu:///system", "checkpoint=auto", env=env)
    mnt.expected_exit = -9
    with raises_errno(errno.ENOTCONN, errno.ECONNABORTED):
        (collection(mnt, clean) / "a").mkdir()
    assert mnt.process.wait(10) == -9, "no such crash point"
    checkpoints = collection(remount(mount, mnt, "checkpoint=auto"), clean)
    wait_for(lambda: clean.command("guest-fsfreeze-status") == "thawed", 10, "thawed")
    made = clean.checkpoints() == ["a"]
    assert made == point.endswith(("frozen:after", "create:after", "keep:before", "keep:after"))
    if not made:
        wait_for(lambda: not records(clean), 10, "the record is gone")
        (checkpoints / "a").mkdir()
    assert names(checkpoints) == ["a"] and text(checkpoints / "a/valid") == "yes"
    (checkpoints / "a").rmdir()
    assert not records(clean)


@pytest.mark.parametrize("point", DELETE)
def test_crash_in_rmdir(clean: Guest, mount, point: str) -> None:
    mnt = mount("qemu:///system", "checkpoint=auto", env={"VMSNAPFS_CRASH_AT": point})
    mnt.expected_exit = -9
    checkpoints = collection(mnt, clean)
    for name in ("a", "b"):
        (checkpoints / name).mkdir()
    with raises_errno(errno.ENOTCONN, errno.ECONNABORTED):
        (checkpoints / "a").rmdir()
    assert mnt.process.wait(10) == -9, "no such crash point"
    checkpoints = collection(remount(mount, mnt, "checkpoint=auto"), clean)
    wait_for(lambda: clean.checkpoints() == ["b"], 10, "the deletion is finished")
    (checkpoints / "b").rmdir()
    assert not records(clean)


def test_killed_daemon_knows_them_again(clean: Guest, mount) -> None:
    mnt = mount("qemu:///system", "checkpoint=auto")
    (collection(mnt, clean) / "a").mkdir()
    kill(mnt)
    checkpoints = collection(remount(mount, mnt, "checkpoint=auto"), clean)
    assert text(checkpoints / "a/valid") == "yes"
    (checkpoints / "a").rmdir()
    assert not records(clean)
