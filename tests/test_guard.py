# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nothing is removed or made by accident (faults.md 37 to 40), with the real tools."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import fsutil
from bed import Guest, Mount, raises_errno, sh, wait_for
from conftest import MakeMount
from fsutil import driver_uri

NAMES = ("guard1", "guard2")
ARMED_SECONDS = 10


@pytest.fixture(scope="module")
def guests() -> Iterator[tuple[Guest, ...]]:
    made = tuple(Guest(name) for name in NAMES)
    for guest in made:
        guest.define()
    yield made
    for guest in made:
        guest.undefine()


class Alive:
    """Two machines with a backup each; all of it outlives every test here."""

    def __init__(self, mount: Mount) -> None:
        self.path = mount.path
        self.domains = mount.domains
        self.backups = [self.domains / name / "backups/keep" for name in NAMES]
        for backup in self.backups:
            wait_for(backup.parent.exists, 5, "shown")
            backup.mkdir()
        self.before = self.state()

    def state(self) -> list[object]:
        return [(sorted(os.listdir(backup.parent)), backup.stat().st_ino,
                 (backup / "state").read_text(), sorted(os.listdir(backup / "disks")))
                for backup in self.backups]

    def check(self) -> None:
        assert self.state() == self.before
        assert set(NAMES) <= set(os.listdir(self.domains))


@pytest.fixture
def alive(guests: tuple[Guest, ...], mnt: Mount) -> Iterator[Alive]:
    made = Alive(mnt)
    yield made
    made.check()
    for backup in made.backups:
        fsutil.command(backup, "end force")


### Removing (faults.md 38)

# What each tool is sent against: the mount, a machine, its collection, an object.
PLACES = ["", "domains", "domains/guard1", "domains/guard1/backups", "domains/guard1/backups/keep"]

TOOLS = [
    "rm -r {0}", "rm -rf {0}", "rm -rfd {0}", "busybox rm -rf {0}",
    "find {0} -delete", "find {0} -depth -type d -delete", "find {0} -depth -type d -exec rmdir {{}} \\;",
    "find {0} -depth -exec rm -rf {{}} \\;", "rsync -a --delete /var/empty.guard/ {0}/",
    "perl -MFile::Path=remove_tree -e 'remove_tree(\"{0}\")'",
    "python3 -c 'import shutil; shutil.rmtree(\"{0}\", ignore_errors=True)'",
    "python3 -c 'import shutil; shutil.rmtree(\"{0}\", onerror=lambda *a: None)'",
]


@pytest.mark.parametrize("place", PLACES)
def test_tools_that_remove_trees(alive: Alive, place: str, tmp_path: Path) -> None:
    for tool in TOOLS:
        command = tool.format(alive.path / place).replace("/var/empty.guard", str(tmp_path))
        sh(command, check=False)
        alive.check()


# Where directories are removed from the top, the first refusal must come before
# the object: not when the object itself is what the tool is given.
@pytest.mark.parametrize("place", PLACES[:-1])
def test_removing_from_the_top(alive: Alive, place: str) -> None:
    sh(f"find {alive.path / place} -type d -exec rmdir {{}} +", check=False)
    alive.check()


def test_remove_all_of_a_go_program(alive: Alive) -> None:
    """It unlinks what it can and goes on to the rmdir; by hand, as there is no Go."""
    for top, dirs, files in os.walk(alive.backups[0], topdown=False):
        for name in files + dirs:
            for remove in (os.unlink, os.rmdir):
                try:
                    remove(os.path.join(top, name))
                except OSError as error:
                    assert error.errno in (errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EBUSY)
    with raises_errno(errno.EBUSY):
        alive.backups[0].rmdir()


def test_moving_out_of_the_mount(alive: Alive, tmp_path: Path) -> None:
    small = alive.domains / "guard1"
    sh(f"mv {small} {tmp_path}/", check=False)
    alive.check()


def test_refused_rmdir_says_why_and_how_long(alive: Alive) -> None:
    backup = alive.backups[0]
    with raises_errno(errno.EPERM):
        (backup / "state").unlink()
    with raises_errno(errno.EBUSY):
        backup.rmdir()
    for directory in (backup, backup.parent.parent):
        failure = fsutil.last_failure(directory)
        assert failure.errno == "EBUSY" and f"'{backup.name}'" in failure.text
        assert any(f"in {seconds} s" in failure.text for seconds in range(5, ARMED_SECONDS + 1))


def test_refusal_in_one_object_arms_that_one(alive: Alive) -> None:
    with raises_errno(errno.EPERM):
        (alive.backups[0] / "disks/vda.raw").unlink()
    with raises_errno(errno.EBUSY):
        alive.backups[0].rmdir()
    alive.backups[1].rmdir()
    alive.backups[1].mkdir()
    alive.before = alive.state()


def test_refusal_above_arms_all_below(alive: Alive) -> None:
    with raises_errno(errno.EPERM):
        alive.domains.rmdir()
    for backup in alive.backups:
        with raises_errno(errno.EBUSY):
            backup.rmdir()


def test_meant_rmdir_works_at_once(alive: Alive) -> None:
    for backup in alive.backups:
        sh(["rmdir", str(backup)])
        assert not backup.exists()
        sh(["mkdir", str(backup)])
    alive.before = alive.state()


def test_failed_lookup_and_read_arm_nothing(alive: Alive) -> None:
    sh(f"rm -rf {alive.backups[0]}/nothing; cat {alive.backups[0]}/*; "
       f"ls -lR {alive.backups[0]}; echo x > {alive.backups[0]}/state", check=False)
    alive.backups[0].rmdir()
    alive.backups[0].mkdir()
    alive.before = alive.state()


# The one test that waits until it is over.
def test_armed_object_is_removed_later(alive: Alive) -> None:
    backup = alive.backups[0]
    with raises_errno(errno.EPERM):
        (backup / "state").unlink()

    def removed() -> bool:
        try:
            backup.rmdir()
        except OSError as error:
            assert error.errno == errno.EBUSY
            return False
        return True

    assert not removed()
    wait_for(removed, ARMED_SECONDS + 2, "removed")
    backup.mkdir()
    alive.before = alive.state()


### Making (faults.md 37)

@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree that somebody copies into ours."""
    for name in ("a", "b", "c"):
        (tmp_path / "src" / name).mkdir(parents=True)
        (tmp_path / "src" / name / "file").write_text("x")
    (tmp_path / "src/file").write_text("x")
    return tmp_path / "src"


COPIERS = [
    "cp -r {0} {1}/", "cp -a {0}/. {1}/", "cp -r {0}/* {1}/", "rsync -a {0}/ {1}/",
    "rsync -r {0} {1}/", "tar -C {0} -cf - . | tar -C {1} -xf -", "mv {0} {1}/", "cp {0}/file {1}/",
    "python3 -c 'import shutil; shutil.copytree(\"{0}\", \"{1}\", dirs_exist_ok=True)'",
]


@pytest.mark.parametrize("tool", COPIERS)
def test_copying_a_tree_into_a_collection(alive: Alive, source: Path, tool: str) -> None:
    backups = alive.backups[0].parent
    done = sh(tool.format(source, backups), check=False)
    assert done.returncode != 0
    assert sorted(os.listdir(backups)) == ["keep", "latest"]
    assert source.exists()


# The first directory is a mkdir like any other; what is put into it tells.
@pytest.mark.parametrize("tool", COPIERS)
def test_copying_a_tree_makes_one_backup_at_most(
        guests: tuple[Guest, ...], mnt: Mount, source: Path, tool: str) -> None:
    backups = mnt.domains / "guard1/backups"
    wait_for(backups.exists, 5, "shown")
    assert sh(tool.format(source, backups), check=False).returncode != 0
    made = [path for path in backups.iterdir() if path.name != "latest"]
    assert len(made) <= 1
    for backup in made:
        fsutil.command(backup, "end")
    with raises_errno(errno.EBUSY):
        (backups / "another").mkdir()


def test_refused_create_stops_mkdir_for_a_while(guests: tuple[Guest, ...], mnt: Mount) -> None:
    backups = mnt.domains / "guard1/backups"
    wait_for(backups.exists, 5, "shown")
    with raises_errno(errno.EPERM):
        (backups / "file").touch()
    with raises_errno(errno.EBUSY):
        (backups / "x").mkdir()
    failure = fsutil.last_failure(backups.parent)
    assert "copied" in failure.text and "make it again in" in failure.text
    assert os.listdir(backups) == []
    other = mnt.domains / "guard2/backups/x"
    other.mkdir()
    other.rmdir()


# faults.md 39
def test_mkdir_of_what_exists(alive: Alive) -> None:
    with raises_errno(errno.EEXIST):
        alive.backups[0].mkdir()
    sh(["mkdir", "-p", str(alive.backups[0])])
    sh(["mkdir", "-p", str(alive.backups[0])])
    assert subprocess.run(["mkdir", alive.backups[0]], check=False,
                          stderr=subprocess.DEVNULL).returncode == 1


def test_mkdir_where_nothing_is_made(mount: MakeMount) -> None:
    made = mount(driver_uri("one"))
    for path in ("x", "domains/x", "domains/one/x", ".vmsnapfs/x"):
        with raises_errno(errno.EPERM):
            (made.path / path).mkdir()
    sh(["mkdir", "-p", str(made.domains / "one/backups")])


# faults.md 29
def test_names_of_the_tree_are_not_made(mount: MakeMount) -> None:
    one = mount(driver_uri("one")).domains / "one"
    for name in ("latest", "current"):
        with raises_errno(errno.EINVAL):
            (one / "backups" / name).mkdir()


### Who may end an object

def test_only_its_owner_and_root_end_a_backup(guests: tuple[Guest, ...], mount: MakeMount) -> None:
    made = mount("qemu:///system", "allow_other", "uid=nobody", "gid=nogroup", "umask=0")
    backups = made.domains / "guard1/backups"
    wait_for(backups.exists, 5, "shown")

    def as_nobody(command: str) -> subprocess.CompletedProcess[str]:
        return sh(["su", "-s", "/bin/sh", "nobody", "-c", command], check=False)

    (backups / "roots").mkdir()
    assert (backups / "roots").stat().st_uid == 0
    assert "Operation not permitted" in as_nobody(f"rmdir {backups}/roots").stderr
    assert "only that user and root" in fsutil.last_failure(made.domains / "guard1").text
    (backups / "roots").rmdir()
    assert as_nobody(f"mkdir {backups}/theirs").returncode == 0
    assert (backups / "theirs").stat().st_uid == fsutil.NOBODY
    assert as_nobody(f"rmdir {backups}/theirs").returncode == 0
    assert as_nobody(f"mkdir {backups}/theirs").returncode == 0
    (backups / "theirs").rmdir()


def test_open_file_keeps_a_backup(alive: Alive) -> None:
    disk = alive.backups[0] / "disks/vda.raw"
    with disk.open("rb"):
        with raises_errno(errno.EBUSY):
            alive.backups[0].rmdir()
        assert f"process {os.getpid()};" in fsutil.last_failure(alive.backups[0]).text
    # What only looks is no reader.
    with (alive.backups[0] / "state").open(), (alive.backups[0] / "control").open():
        alive.backups[0].rmdir()
    alive.backups[0].mkdir()
    alive.before = alive.state()


def test_rmdir_right_after_close(alive: Alive) -> None:
    """The kernel tells of the last close late (facts.md 4)."""
    for _ in range(30):
        with (alive.backups[0] / "disks/vda.raw").open("rb") as disk:
            os.fstat(disk.fileno())
        alive.backups[0].rmdir()
        alive.backups[0].mkdir()
    alive.before = alive.state()
