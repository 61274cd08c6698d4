# SPDX-License-Identifier: LGPL-2.1-or-later
"""Chains of backups made with mkdir, cp -rT and rmdir: each link restores to the byte."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import fsutil
from bed import Disk, Guest, Mount, raises_errno, sh, wait_for
from fsutil import failures, last_failure
from test_checkpoints import bitmaps, names, records, text, virsh_create
from test_recovery import STATE, remount

AUTO = "checkpoint=auto"


@pytest.fixture
def auto(mount) -> Mount:
    return mount("qemu:///system", AUTO)


@pytest.fixture(autouse=True)
def forget(leftovers: None) -> Iterator[None]:
    """What is known of the checkpoints of machines that a test made and undefined."""
    yield
    for record in STATE.glob("*/checkpoints/*.json"):
        record.unlink()


@pytest.fixture
def clean(guest2: Guest) -> Iterator[Guest]:
    """vda is qcow2, vdb is raw; left without checkpoints."""
    yield guest2
    for checkpoint in guest2.domain.listAllCheckpoints():
        checkpoint.delete()


class Chain:
    """What a user keeps in a directory, and what it must be."""

    def __init__(self, mnt: Mount, guest: Guest, keep: Path) -> None:
        self.backups = mnt.domains / guest.name / "backups"
        self.keep = keep
        keep.mkdir(exist_ok=True)

    def begin(self, name: str, options: str = "") -> Path:
        if options:
            fsutil.command(self.backups.parent, f"backup {name} {options}")
        else:
            (self.backups / name).mkdir()
        return self.backups / name

    def copy(self, name: str) -> None:
        """As a user does it; and beside it the reference of that day."""
        sh(["cp", "-rT", str(self.backups / name / "incremental"), str(self.keep / name)])
        for raw in (self.backups / name / "disks").iterdir():
            sh(["cp", "--sparse=auto", str(raw), str(self.keep / f"{name}.{raw.name}")])

    def take(self, name: str, options: str = "") -> dict[str, str]:
        """One day; Returns: what the backup said of itself."""
        backup = self.begin(name, options)
        said = {key: text(backup / key) for key in ("since", "checkpoint", "chain")}
        self.copy(name)
        self.check_size(name)
        backup.rmdir()
        return said

    def check_size(self, name: str) -> None:
        """An increment is at most 1.2 times what changed, and its tables."""
        for path in (self.backups / name / "maps").glob("*.dirty.json"):
            target = path.name.removesuffix(".dirty.json")
            extents = json.loads(path.read_text())
            dirty = sum(e["length"] for e in extents if e["dirty"])
            assert sum(e["length"] for e in extents) == os.stat(
                self.backups / name / f"disks/{target}.raw").st_size
            size = (self.keep / name / f"{target}.qcow2").stat().st_size
            assert size <= 1.2 * dirty + 8 * 65536

    def verify(self, name: str) -> None:
        for image in (self.keep / name).iterdir():
            sh(["qemu-img", "check", "-q", "-f", "qcow2", str(image)])
            reference = self.keep / f"{name}.{image.stem}.raw"
            sh(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(image), str(reference)])

    def backing(self, name: str, target: str = "vda") -> str | None:
        info = sh(["qemu-img", "info", "--output=json", str(self.keep / name / f"{target}.qcow2")])
        return json.loads(info.stdout).get("backing-filename")


@pytest.fixture
def chain(clean: Guest, auto: Mount, tmp_path: Path) -> Chain:
    return Chain(auto, clean, tmp_path / "keep")


def scribble(guest: Guest, day: int) -> None:
    """Writes of all kinds: new, over old ones, small and unaligned, holes by fstrim."""
    guest.run(f"""
        for d in /data /data2; do
            dd if=/dev/urandom of=$d/new{day} bs=64k count={20 + day * 7 % 13} 2>/dev/null
            dd if=/dev/urandom of=$d/old bs=1k count=300 seek={day * 37} conv=notrunc 2>/dev/null
            dd if=/dev/urandom of=$d/old bs=1 count={17 + day} seek={day * 12347} conv=notrunc \\
                2>/dev/null
            dd if=/dev/zero of=$d/old bs=4k count=5 seek={day * 3} conv=notrunc 2>/dev/null
            rm -f $d/new{day - 2}
        done
        sync; fstrim /data; fstrim /data2""")


### Chains

def test_raw_disk_is_full_each_time(clean: Guest, chain: Chain) -> None:            # row 71
    chain.take("mon")
    scribble(clean, 2)
    tue = chain.begin("tue")
    assert text(tue / "since") == "mon"
    raw = tue / "incremental/vdb.qcow2"
    assert os.getxattr(raw, "user.vmsnapfs.since") == b"none"
    assert b"is raw" in os.getxattr(raw, "user.vmsnapfs.full_because")
    assert os.getxattr(tue / "incremental/vda.qcow2", "user.vmsnapfs.since") == b"mon"
    assert names(tue / "maps") == ["vda.dirty.json", "vda.json", "vdb.json"]
    chain.copy("tue")
    tue.rmdir()
    assert chain.backing("tue") == "../mon/vda.qcow2" and chain.backing("tue", "vdb") is None
    for name in ("mon", "tue"):
        chain.verify(name)


def test_new_disk_is_full_while_others_are_not(make_guest, auto: Mount, tmp_path: Path) -> None:
    guest = make_guest(Disk("vda"), Disk("vdb"))
    chain = Chain(auto, guest, tmp_path / "keep")
    chain.take("a", "only=vda")
    said = chain.take("b")
    assert said["since"] == "a"
    assert chain.backing("b") == "../a/vda.qcow2" and chain.backing("b", "vdb") is None
    scribble(guest, 2)
    chain.take("c")
    assert chain.backing("c", "vdb") == "../b/vdb.qcow2"
    for name in ("a", "b", "c"):
        chain.verify(name)


### Taken, or not

def test_what_nobody_has_is_no_base(clean: Guest, chain: Chain, tmp_path: Path) -> None:
    vm = chain.backups.parent
    chain.take("mon")
    scribble(clean, 2)
    chain.begin("tue").rmdir()                                       # mkdir, rmdir
    assert clean.checkpoints() == ["mon"]
    failure = last_failure(vm)
    assert failure.errno == "ENODATA" and "'tue' was not taken: no image of disk" in failure.text
    wed = chain.begin("wed")                                         # a cp that failed half-way
    with (wed / "incremental/vda.qcow2").open("rb") as file:
        file.read(70000)
    shutil.copyfile(wed / "disks/vdb.raw", tmp_path / "vdb.raw")
    wed.rmdir()
    assert clean.checkpoints() == ["mon"] and "disk 'vda'" in last_failure(vm).text
    thu = chain.begin("thu")                                         # any image will do
    shutil.copyfile(thu / "full/vda.qcow2", tmp_path / "vda.qcow2")
    shutil.copyfile(thu / "disks/vdb.raw", tmp_path / "vdb.raw")
    thu.rmdir()
    assert clean.checkpoints() == ["mon", "thu"]
    assert chain.take("fri")["since"] == "thu"


def test_end_says_it_outright(clean: Guest, chain: Chain) -> None:
    backup = chain.begin("a")
    for words in ("keep drop", "maybe"):
        with raises_errno(errno.EINVAL):
            fsutil.command(backup, f"end {words}")
    fsutil.command(backup, "end keep")
    assert clean.checkpoints() == ["a"] and len(records(clean)) == 1
    backup = chain.begin("b")
    assert text(backup / "since") == "a"
    chain.copy("b")
    fsutil.command(backup, "end drop")
    assert clean.checkpoints() == ["a"] and len(records(clean)) == 1
    assert text(chain.begin("c") / "since") == "a"
    fsutil.command(chain.backups / "c", "end drop")


def test_two_chains_do_not_meet(clean: Guest, auto: Mount, tmp_path: Path) -> None:
    one, two = (Chain(auto, clean, tmp_path / name) for name in ("one", "two"))
    assert one.take("mon")["since"] == "none"
    said = two.take("mon", "chain=b")
    assert said == {"since": "none", "checkpoint": "mon.2", "chain": "b"}
    scribble(clean, 2)
    assert one.take("tue")["since"] == "mon"
    scribble(clean, 3)
    assert two.take("tue", "chain=b")["since"] == "mon.2"
    assert one.take("wed")["since"] == "tue"
    assert two.backing("tue") == "../mon/vda.qcow2"
    for chain, days in ((one, ("mon", "tue", "wed")), (two, ("mon", "tue"))):
        for day in days:
            chain.verify(day)


def test_name_that_is_used_again(clean: Guest, chain: Chain) -> None:
    chain.take("mon")
    chain.take("tue")
    # Its copy would overwrite what it stands on: full; and replaced only once it is taken.
    chain.begin("mon").rmdir()
    assert clean.checkpoints() == ["mon", "tue"]
    shutil.rmtree(chain.keep / "mon")
    said = chain.take("mon")
    assert said["since"] == "none" and said["checkpoint"] == "mon.2"
    assert clean.checkpoints() == ["mon.2", "tue"]
    with raises_errno(errno.EUCLEAN):
        chain.begin("wed", "since=tue")
    assert "backup 'mon', which was made anew" in last_failure(chain.backups.parent).text
    assert chain.take("wed")["since"] == "mon.2"
    assert chain.backing("wed") == "../mon/vda.qcow2"
    for name in ("mon", "wed"):
        chain.verify(name)


def test_mount_and_command_without_checkpoints(clean: Guest, mount, tmp_path: Path) -> None:
    mnt = mount("qemu:///system", "checkpoint=none", "chain=c")
    chain = Chain(mnt, clean, tmp_path / "keep")
    assert chain.take("a") == {"since": "none", "checkpoint": "none", "chain": "c"}
    assert clean.checkpoints() == [] and not records(clean)
    assert chain.take("b", "checkpoint=base")["checkpoint"] == "base"
    assert chain.take("c") == {"since": "base", "checkpoint": "none", "chain": "c"}
    assert chain.backing("c") == "../b/vda.qcow2"
    assert clean.checkpoints() == ["base"]


### Refused

def test_refusals(clean: Guest, chain: Chain) -> None:
    vm = chain.backups.parent
    virsh_create(clean, "theirs", "vda")
    for command, number, sentence in (
            ("backup x since=nothing", errno.ENOENT, "there is no checkpoint 'nothing'"),
            ("backup theirs", errno.EEXIST, "made by another program"),
            ("backup x checkpoint=theirs", errno.EEXIST, "made by another program"),
            ("backup x checkpoint=a+b", errno.EINVAL, "letters, digits"),
            ("backup x only=vdb checkpoint=y", errno.EOPNOTSUPP, "disk 'vdb' is raw"),
            ("backup x chain=a/b", errno.EINVAL, "")):
        with raises_errno(number):
            fsutil.command(vm, command)
        assert sentence in last_failure(vm).text
        assert not clean.has_job() and clean.checkpoints() == ["theirs"] and not records(clean)
    # Usable when it is asked for, and not otherwise.
    assert text(chain.begin("x") / "since") == "none"
    fsutil.command(chain.backups / "x", "end drop")
    backup = chain.begin("x", "since=theirs checkpoint=none")
    assert text(backup / "since") == "theirs"
    backup.rmdir()
    assert clean.checkpoints() == ["theirs"]


def test_broken_base(clean: Guest, chain: Chain) -> None:                            # row 74
    chain.take("mon")
    chain.take("tue")
    clean.domain.checkpointLookupByName("tue").delete()             # behind our back
    with raises_errno(errno.EUCLEAN, errno.ENOENT):
        chain.begin("wed", "since=tue")
    assert chain.take("wed")["since"] == "mon"
    warning = [f for f in failures(chain.backups.parent) if f.errno == "EUCLEAN"][-1]
    assert "backup 'wed' starts from 'mon'" in warning.text
    for name in ("mon", "wed"):
        clean.domain.checkpointLookupByName(name).delete()
    assert chain.take("thu")["since"] == "none"
    for name in ("mon", "tue", "wed", "thu"):
        chain.verify(name)


def test_off_machine_has_full_ones(off_guest, auto: Mount) -> None:                  # row 70
    guest = off_guest()
    chain = Chain(auto, guest, Path(guest.dir) / "keep")
    backup = chain.begin("a")
    assert [text(backup / key) for key in ("since", "checkpoint", "chain")] == [
        "none", "none", "default"]
    backup.rmdir()
    for option in ("since=a", "checkpoint=b"):
        with raises_errno(errno.EOPNOTSUPP):
            chain.begin("b", option)
    assert "the domain is off" in last_failure(chain.backups.parent).text


def test_off_machine_started_paused(off_guest, mount, tmp_path: Path) -> None:
    guest = off_guest()
    chain = Chain(mount("qemu:///system", AUTO, "offline=paused"), guest, tmp_path / "keep")
    image = guest.dir / "vda.qcow2"
    assert chain.take("a")["checkpoint"] == "a"
    wait_for(guest.is_off, 20, "off again")
    assert bitmaps(image) == {"a"}
    sh(["qemu-io", "-f", "qcow2", "-c", "write -P 7 100M 300k", str(image)])
    assert chain.take("b")["since"] == "a"
    wait_for(guest.is_off, 20, "off again")
    chain.begin("c").rmdir()
    wait_for(guest.is_off, 20, "off again")
    assert guest.checkpoints() == ["a", "b"] and bitmaps(image) == {"a", "b"}
    for name in ("a", "b"):
        chain.verify(name)


### Failure

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_machine_dies(off_guest, auto: Mount, tmp_path: Path, number: int) -> None:  # row 63
    guest = off_guest()
    guest.start(wait=False)
    chain = Chain(auto, guest, tmp_path / "keep")
    chain.take("mon")
    backup = chain.begin("tue")
    os.kill(guest.qemu_pid() or 0, number)
    wait_for(lambda: text(backup / "state").startswith("failed"), 30, "failed")
    wait_for(lambda: guest.checkpoints() == ["mon"], 30, "its checkpoint is gone")
    backup.rmdir()
    assert "tue" not in bitmaps(guest.dir / "vda.qcow2")
    assert len(records(guest)) == 1


# At each step what the user does not have is taken back, and what was kept stays.
BEGIN = [f"backup-begin:{step}:{when}" for step in ("checkpoint", "begin", "confirm", "list")
         for when in ("before", "after")] + ["backup-begin:journal:after"]
END = [f"backup-end:{step}" for step in ("abort:before", "abort:after", "settle:after",
                                         "release:after")]
CRASHES = {*BEGIN, *END}


def crash(mount, guest: Guest, tmp_path: Path, point: str) -> tuple[Chain, Mount]:
    mnt = mount("qemu:///system", AUTO)
    chain = Chain(mnt, guest, tmp_path / "keep")
    chain.take("mon")
    mnt.signal(signal.SIGTERM)
    assert mnt.process.wait(30) == 0
    mnt = mount("qemu:///system", AUTO, env={"VMSNAPFS_CRASH_AT": point})
    mnt.expected_exit = -signal.SIGKILL
    return Chain(mnt, guest, tmp_path / "keep"), mnt


def dies(mnt: Mount) -> None:
    assert mnt.process.wait(10) == -signal.SIGKILL, "no such crash point"


@pytest.mark.parametrize("point", BEGIN)
def test_crash_in_begin(clean: Guest, mount, tmp_path: Path, point: str) -> None:
    chain, mnt = crash(mount, clean, tmp_path, point)
    with raises_errno(errno.ENOTCONN, errno.ECONNABORTED):
        chain.begin("tue")
    dies(mnt)
    chain = Chain(remount(mount, mnt, AUTO), clean, tmp_path / "keep")
    if point == "backup-begin:list:after":
        assert text(chain.backups / "tue/since") == "mon"
        chain.copy("tue")
        (chain.backups / "tue").rmdir()
        chain.verify("tue")
        assert clean.checkpoints() == ["mon", "tue"]
        return
    wait_for(lambda: clean.checkpoints() == ["mon"] and len(records(clean)) == 1
             and not clean.has_job(), 20, "nothing is left")
    assert chain.take("tue")["since"] == "mon"


@pytest.mark.parametrize("point", END)
def test_crash_in_end(clean: Guest, mount, tmp_path: Path, point: str) -> None:
    chain, mnt = crash(mount, clean, tmp_path, point)
    backup = chain.begin("tue")
    chain.copy("tue")
    with raises_errno(errno.ENOTCONN, errno.ECONNABORTED):
        backup.rmdir()
    dies(mnt)
    chain = Chain(remount(mount, mnt, AUTO), clean, tmp_path / "keep")
    wait_for(lambda: not clean.has_job() and names(chain.backups) == [], 20, "it has ended")
    assert clean.checkpoints() == ["mon", "tue"]                     # as was decided
    assert chain.take("wed")["since"] == "tue"
    chain.verify("wed")
