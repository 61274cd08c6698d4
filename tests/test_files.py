# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest's own files (faults.md 14, 15, 47, 110, 113): true, contained, and gone when done.

An appliance takes some 15 s to start without KVM, so one mount serves all tests that
change nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import bed
import fsutil
from bed import MIB, Disk, Guest, Mount, raises_errno, sh, wait_for
from conftest import MakeMount
from guestfiles import (Loop, Seen, appliance_processes, check_contained, environment, errno_of,
                        errno_of_read, fill_tree, fill_vfat, host_traces, hostile_image,
                        in_flight, kill, ntfs, starts, walk)

FILES = int(os.environ.get("VMSNAPFS_FILES", "2000"))
# By hand 20,000, for which there is room in each.
FILES_EACH = int(os.environ.get("VMSNAPFS_FILES", "200"))
IMAGES = int(os.environ.get("VMSNAPFS_HOSTILE", "2"))
# Of one machine.
HOSTILE_DISKS = 10
SEED = 7
ODD_NAMES = [b"new\nline", b"caf\xc3\xa9", b"latin-\xe9", b"-rf", b" ", b"100%", b"\x01\x7f",
             b"x" * 255, b"...", b".hidden"]
LONG = 24 * MIB


### What is on the disks

def fill_system(top: Path) -> None:
    """What makes a system of it, and everything that is not harmless."""
    for name in ("etc", "bin", "sbin", "usr/lib", "home/u", "dev", "many", "odd", "deep", "proc",
                 "data", "var/lib/dpkg"):
        (top / name).mkdir(parents=True)
    (top / "etc/os-release").write_text('ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian"\n')
    (top / "etc/debian_version").write_text("12.0\n")
    (top / "etc/hostname").write_text("inside\n")
    (top / "etc/fstab").write_text("/dev/vda1 / ext4 defaults 0 1\n/dev/vdb1 /data xfs ro 0 2\n")
    sh(["cp", "/bin/busybox", str(top / "bin/busybox")])
    (top / "bin/busybox").chmod(0o6755)
    for number in range(FILES):
        (top / "many" / f"file {number}").write_text(f"{number}\n" * (number % 50))
    for name in ODD_NAMES:
        with open(os.path.join(os.fsencode(top / "odd"), name), "wb") as file:
            file.write(name)
    fill_links(top)
    fill_attributes(top)
    deep = top / "deep"
    for number in range(40):
        deep = deep / f"level {number}"
        deep.mkdir()
    os.mknod(top / "dev/zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.mknod(top / "dev/disk", stat.S_IFBLK | 0o660, os.makedev(8, 0))
    os.mkfifo(top / "dev/fifo", 0o600)
    os.mknod(top / "dev/socket", stat.S_IFSOCK | 0o600)
    with open(top / "sparse", "wb") as file:
        file.truncate(100 * MIB)
        file.seek(50 * MIB)
        file.write(b"in the middle")
    (top / "long").write_bytes(random.Random(SEED).randbytes(LONG))


def fill_links(top: Path) -> None:
    os.link(top / "etc/hostname", top / "home/u/same")
    for name, target in (("absolute", "/etc/hostname"), ("inside", "../../etc/hostname"),
                         ("out", "../../../../../../../etc/shadow"), ("up", ".."),
                         ("above", "/../../../../etc/hostname"),
                         ("detour", "../u/../../etc/hostname"),
                         ("behind", "up/../../../x"), ("loop", "loop"),
                         ("dangling", "/nowhere")):
        os.symlink(target, top / "home/u" / name)


def fill_attributes(top: Path) -> None:
    (top / "home/u/note").write_text("x")
    os.setxattr(top / "home/u/note", "user.colour", b"\x00blue\xff")
    os.setxattr(top / "home/u/note", "trusted.secret", b"s")
    sh(["setfacl", "-m", "u:1234:r,g:99:rw", str(top / "home/u/note")])
    os.chown(top / "home/u/note", 1000, 4000000000)
    os.chmod(top / "home/u/note", 0o640)
    os.utime(top / "home/u/note", ns=(1_000_000_001, 1_600_000_000_123_456_789))
    os.chmod(top / "home/u", 0o1777)


def put(part: Path, image: Path, offset: int) -> None:
    sh(["dd", f"if={part}", f"of={image}", "bs=1M", f"seek={offset // MIB}", "conv=notrunc,sparse",
        "status=none"])
    part.unlink()


def part_of(tmp: Path, size: int, *command: str) -> Path:
    """A file system of that size, by a mkfs that wants a file of its own."""
    part = tmp / "part"
    with part.open("wb") as file:
        file.truncate(size)
    sh([*command, str(part)])
    return part


def make(tmp: Path, image: Path, offset: int, size: int, *command: str) -> None:
    put(part_of(tmp, size, *command), image, offset)


def make_vfat(tmp: Path, image: Path, offset: int, size: int) -> dict[bytes, Seen]:
    part = part_of(tmp, size, "mkfs.vfat")
    source = tmp / "for vfat"
    fill_tree(source, FILES_EACH, rights=False, links=False)
    seen = fill_vfat(part, source)
    put(part, image, offset)
    return seen


def make_ntfs(tmp: Path, image: Path, offset: int, size: int) -> dict[bytes, Seen]:
    part = part_of(tmp, size, "mkntfs", "-qF")
    with ntfs(part) as top:
        fill_tree(top, FILES_EACH, rights=False)
    with ntfs(part) as top:
        seen = walk(top)
    put(part, image, offset)
    return seen


def volume_group(tmp: Path, image: Path, offset: int, size: int) -> bool:
    """A linear volume group-one/logical, written without device mapper; FALSE: no tools."""
    part = tmp / "part"
    with part.open("wb") as file:
        file.truncate(size)
    loop = sh(["losetup", "-f", "--show", str(part)]).stdout.strip()
    config = f'--config=devices{{use_devicesfile=0 filter=["a|{loop}|","r|.*|"]}}'
    try:
        for command in (["pvcreate", "-ff", "-y", loop], ["vgcreate", "group-one", loop],
                        ["lvcreate", "-y", "-an", "-Zn", "-Wn", "-n", "logical", "-l", "100%FREE",
                         "group-one"]):
            if sh([*command, config], check=False).returncode != 0:
                return False
    finally:
        sh(["losetup", "-d", loop])
    inner = tmp / "inner"
    with inner.open("wb") as file:
        file.truncate(size - 8 * MIB)
    source = tmp / "source"
    source.mkdir()
    (source / "in a volume").write_text("lvm\n")
    sh(["mke2fs", "-q", "-t", "ext4", "-d", str(source), str(inner)])
    put(inner, part, MIB)                       # the first extent of a linear volume
    put(part, image, offset)
    return True


@dataclass
class Disks:
    """A machine that is off, and what is in its file systems."""
    guest: Guest
    system: dict[bytes, Seen]
    others: dict[str, dict[bytes, Seen]]
    has_group: bool


def table(image: Path, label: str, parts: list[tuple[int, int]]) -> None:
    lines = [f"label: {label}"] + [f"start={start // 512}, size={size // 512}, type="
                                   f"{'83' if label == 'dos' else 'linux'}"
                                   for start, size in parts]
    sh(["sfdisk", "-q", str(image)], input="\n".join(lines))


def build(guest: Guest, tmp: Path) -> Disks:
    vda, vdb, vdc = (guest.disk_path(t) for t in ("vda", "vdb", "vdc"))
    first = [(1 * MIB, 299 * MIB), (300 * MIB, 200 * MIB), (500 * MIB, 200 * MIB)]
    second = [(1 * MIB, 319 * MIB), (320 * MIB, 320 * MIB), (640 * MIB, 64 * MIB),
              (704 * MIB, 32 * MIB)]
    table(vda, "dos", first)
    table(vdb, "gpt", second)
    others: dict[str, dict[bytes, Seen]] = {}
    make(tmp, vda, *first[0], "mke2fs", "-q", "-t", "ext4", "-O", "ea_inode", "-N", "40000")
    with Loop(vda, *first[0], "ext4") as top:
        fill_system(top)
        system = walk(top)
    others["vda2"] = make_vfat(tmp, vda, *first[1])
    others["vda3"] = make_ntfs(tmp, vda, *first[2])
    for name, disk, (start, size), fs, command in (
            ("vdb1", vdb, second[0], "xfs", ["mkfs.xfs", "-q"]),
            ("vdb2", vdb, second[1], "btrfs", ["mkfs.btrfs", "-q"])):
        make(tmp, disk, start, size, *command)
        with Loop(disk, start, size, fs) as top:
            if fs == "btrfs":
                sh(["btrfs", "subvolume", "create", str(top / "sub")])
                (top / "sub/below").write_text("in a subvolume")
            (top / "on").write_text(fs)
            (top / "directory").mkdir()
            fill_tree(top, FILES_EACH)
            others[name] = walk(top)
    has_group = volume_group(tmp, vdb, *second[2])
    luks = tmp / "luks"
    with luks.open("wb") as file:
        file.truncate(32 * MIB)
    sh(["cryptsetup", "luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2",
        "--pbkdf-force-iterations", "1000", "--key-file=-", str(luks)], input="secret")
    put(luks, vdb, second[3][0])
    whole = tmp / "whole"
    whole.mkdir()
    (whole / "no table").write_text("a disk that is one file system\n")
    sh(["mke2fs", "-q", "-t", "ext4", "-d", str(whole), str(vdc)])
    return Disks(guest, system, others, has_group)


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disks]:
    guest = Guest("files1", agent=False)
    guest.define(Disk("vda", "raw", 704 * MIB), Disk("vdb", "raw", 740 * MIB),
                 Disk("vdc", "raw", 16 * MIB))
    try:
        yield build(guest, tmp_path_factory.mktemp("files"))
    finally:
        guest.undefine()


### Ends (before the shared mount is there: one process serves a host)

def remount(mount: MakeMount, dead: Mount) -> Mount:
    sh(["umount", "-l", str(dead.path)], check=False)
    return mount("qemu:///system", env=environment())


def test_appliances_end_and_come_back(disks: Disks, mount: MakeMount, off_guest) -> None:
    traces = host_traces()
    mnt = mount("qemu:///system", "appliances=1", "appliance-idle=600", env=environment())
    failures: list[int] = []
    backups = []
    for _ in range(2):
        guest = off_guest(Disk("vda", "raw", 16 * MIB))
        guest.disk_path("vda").write_bytes(disks.guest.disk_path("vdc").read_bytes())
        backups.append(mnt.domains / guest.name / "backups/now")
        backups[-1].mkdir()
    backup, second = backups
    path = backup / "files/vda/no table"
    assert os.listdir(backup / "files/vda") and os.listxattr(path) == []
    # A dead machine is told to the first of those that have asked it; the others and the
    # next have another one.
    kill("qemu-system", signal.SIGSTOP)
    with fsutil.running(*[lambda: failures.append(errno_of_read(path))] * 3):
        wait_for(lambda: in_flight("fuse_direct") == 3, 20, "the calls are on their way")
        kill("qemu-system")
    assert sorted(failures) == [0, 0, errno.EIO]
    failures.clear()
    assert path.read_text().startswith("a disk")
    # One that hangs keeps its place, and its death ends who waits for it.
    kill("qemu-system", signal.SIGSTOP)
    with fsutil.running(lambda: failures.append(errno_of(path))):
        wait_for(in_flight, 20, "the call is on its way")
        with raises_errno(errno.EBUSY):
            os.listdir(second / "files")
        assert "appliances=" in fsutil.last_failure(second).text
        kill("vmsnapfs-files")
    assert failures == [errno.EIO]
    assert "died" in fsutil.last_failure(backup).text
    wait_for(lambda: not appliance_processes(), 10, "the machine dies with its program")
    # An idle one makes room.
    assert os.listxattr(path) == []
    count = starts(mnt)
    assert os.listdir(second / "files/vda")
    assert starts(mnt) == count + 1
    backup.rmdir()
    # All of it dies with the daemon.
    mnt.signal(signal.SIGKILL)
    mnt.process.wait(10)
    wait_for(lambda: not appliance_processes(), 10, "the appliance dies with the daemon")
    assert host_traces() == traces
    again = remount(mount, mnt)
    assert not (again.path / second.relative_to(mnt.path)).exists(), "as of any machine that is off"


@pytest.mark.parametrize("mode", ["off", "listed"])
def test_option_files(disks: Disks, mount: MakeMount, mode: str) -> None:
    mnt = mount("qemu:///system", f"files={mode}", env=environment())
    backup = mnt.domains / disks.guest.name / "backups/now"
    backup.mkdir()
    assert ("files" in os.listdir(backup)) == (mode == "listed")
    if mode == "off":
        with raises_errno(errno.ENOENT):
            (backup / "files").stat()
    assert starts(mnt) == 0
    backup.rmdir()


### Hostile disks

def tree_with_evil_names(tmp: Path, image: Path) -> None:
    """Names "..", one with a '/', and a directory that is in itself."""
    source = tmp
    source.mkdir()
    for name in ("&&", "a%%b", "good"):
        (source / name).write_text("inside")
    (source / "one/two").mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    sh(["mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^dir_index,^has_journal",
        "-d", str(source), str(image)])
    sh(["debugfs", "-w", "-R", "ln one one/two/again", str(image)])
    data = image.read_bytes()
    assert data.count(b"\x02\x01&&") == 1 and data.count(b"\x04\x01a%%b") == 1
    data = data.replace(b"\x02\x01&&", b"\x02\x01..")
    image.write_bytes(data.replace(b"\x04\x01a%%b", b"\x04\x01a/%b"))


def tree_that_lies(backup: Path, target: str) -> None:
    """Reads all that can be read."""
    top = backup / "files" / target
    walked = sh(f"find {top} -type f -exec head -c 100000 {{}} + >/dev/null", check=False,
                timeout=150)
    assert "Transport endpoint" not in walked.stderr
    check_contained(top)


def test_hostile_disks(mount: MakeMount, off_guest, tmp_path: Path) -> None:
    """By hand: VMSNAPFS_HOSTILE=50, some 10 minutes."""
    mnt = mount("qemu:///system", "appliance-idle=600", env=environment())
    for first in range(0, IMAGES, HOSTILE_DISKS):
        number = min(HOSTILE_DISKS, IMAGES - first)
        targets = [f"vd{chr(ord('a') + index)}" for index in range(number + 2)]
        guest = off_guest(*(Disk(target, "raw", 16 * MIB) for target in targets))
        tree_with_evil_names(tmp_path / f"evil{first}", guest.disk_path("vda"))
        sh(["mke2fs", "-q", "-F", "-t", "ext4", str(guest.disk_path("vdb"))])
        kinds = [hostile_image(tmp_path, guest.disk_path(target), first + index)
                 for index, target in enumerate(targets[2:])]
        backup = mnt.domains / guest.name / "backups/now"
        backup.mkdir()
        os.listdir(backup / "files")
        inside = set()
        for top, dirs, files in os.walk(backup / "files/vda"):
            inside |= set(dirs + files)
        assert inside <= {"&&", "a%%b", "good", "one", "two", "again", "lost+found"}
        for kind, target in zip(kinds, targets[2:]):
            start = time.monotonic()
            tree_that_lies(backup, target)
            assert mnt.process.poll() is None
            print(f"{target} {kind}: {time.monotonic() - start:.1f} s, {starts(mnt)} appliances")
        # Whatever they did to the appliance, the next user has a good one.
        wait_for(lambda: errno_of(backup / "files/vdb/lost+found") == 0, 60, "the next one works")
        wait_for(lambda: ended(backup), 20, "the backup has ended")
        wait_for(lambda: not appliance_processes(), 20, "and its appliance with it")


### The shared mount

@pytest.fixture(scope="module")
def now(disks: Disks) -> Iterator[Path]:
    """A backup with a running appliance that stays; not in the way of `leftovers`."""
    mount = Mount("qemu:///system", "appliance-idle=600", env=environment())
    try:
        mount.wait_mounted()
        backup = mount.domains / disks.guest.name / "backups/now"
        backup.mkdir()
        before = starts(mount)
        for path in (backup / "files", backup / "files/root", backup / "files/vda1"):
            assert stat.S_ISDIR(path.stat().st_mode)
        with raises_errno(errno.ENOENT):
            (backup / "files/nonsense").stat()
        assert "files" not in os.listdir(backup)
        sh(["find", str(mount.path), "-ls"])
        assert starts(mount) == before, "walking and stat start nothing"
        assert (backup / "files/root/etc/hostname").read_text() == "inside\n"
        assert starts(mount) == before + 1
        yield backup
        # The appliance does not keep it from ending; the kernel tells of the last close late.
        wait_for(lambda: ended(backup), 20, "the backup has ended")
    finally:
        mount.finish()


def ended(backup: Path) -> bool:
    try:
        backup.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
    return not backup.exists()


### What the guest saw

def expected(seen: Seen) -> Seen:
    """With what is taken off for safety."""
    if stat.S_ISLNK(seen.mode) or stat.S_ISDIR(seen.mode):
        return seen
    regular = stat.S_ISREG(seen.mode)
    return Seen(stat.S_IFREG | (seen.mode & 0o1777), seen.owner, seen.links,
                seen.size if regular else 0, seen.mtime,
                seen.digest if regular else hashlib.sha256().hexdigest(), seen.xattrs)


def compare(top: Path, wanted: dict[bytes, Seen], whole_dirs: bool = True) -> None:
    found = walk(top)
    assert sorted(found) == sorted(wanted)
    for path, seen in wanted.items():
        if stat.S_ISDIR(seen.mode) and not whole_dirs:
            assert (found[path].mode, found[path].owner) == (seen.mode, seen.owner), path
            continue
        if stat.S_ISLNK(seen.mode):
            assert stat.S_ISLNK(found[path].mode) and found[path].mtime == seen.mtime, path
        else:
            assert found[path] == expected(seen), path


def test_system_is_what_the_guest_saw(now: Path, disks: Disks) -> None:
    compare(now / "files/vda1", disks.system)


def test_root_has_what_the_guest_mounts(now: Path, disks: Disks) -> None:
    assert (now / "files/root/data/on").read_text() == "xfs"
    assert sorted(os.listdir(now / "files/root/many")) == \
        sorted(f"file {number}" for number in range(FILES))
    same = now / "files/root/home/u/same", now / "files/root/etc/hostname"
    assert same[0].stat().st_ino == same[1].stat().st_ino


def test_other_file_systems(now: Path, disks: Disks) -> None:
    for name, wanted in disks.others.items():
        # Size and links of a directory of vfat are what mtools does not tell.
        compare(now / "files" / name, wanted, whole_dirs=name != "vda2")
    assert os.listdir(now / "files/vda2") == ["tree"]   # vfat
    assert os.listdir(now / "files/vda3") == ["tree"]   # ntfs: its own files are not shown
    assert (now / "files/vdc/no table").read_text().startswith("a disk that is one")
    names = os.listdir(now / "files")
    assert {"root", "vda1", "vda2", "vda3", "vdb1", "vdb2", "vdb4", "vdc"} <= set(names)
    if disks.has_group:
        assert (now / "files/group--one-logical/in a volume").read_text() == "lvm\n"
    for name in names:
        assert (now / "files" / name).stat().st_ino
    with raises_errno(errno.ENOENT):
        (now / "files/vda9").stat()


def test_locked_is_eacces(now: Path) -> None:
    with raises_errno(errno.EACCES):
        os.listdir(now / "files/vdb4")
    assert "locked" in fsutil.last_failure(now).text


### Contained

def test_links_stay_inside(now: Path) -> None:
    home = now / "files/vda1/home/u"
    for name in ("absolute", "inside", "detour"):
        assert (home / name).read_text() == "inside\n", name
        assert len(os.readlink(home / name)) == (home / name).lstat().st_size
    assert os.readlink(home / "absolute") == "../../etc/hostname"
    assert os.readlink(home / "above") == "../../etc/hostname"
    assert os.readlink(home / "dangling") == "../../nowhere"
    for name in ("out", "behind"):
        with raises_errno(errno.EPERM):
            os.readlink(home / name)
        with raises_errno(errno.EPERM):
            (home / name).read_text()
    assert "links=raw" in fsutil.last_failure(now).text
    with raises_errno(errno.ELOOP):
        (home / "loop").read_text()


def test_nodes_are_empty_files(now: Path) -> None:
    for name in ("zero", "disk", "fifo", "socket"):
        path = now / "files/vda1/dev" / name
        assert stat.S_ISREG(path.lstat().st_mode)
        assert path.read_bytes() == b""
    assert (now / "files/vda1/bin/busybox").stat().st_mode & 0o6000 == 0


def test_nothing_can_be_changed(now: Path) -> None:
    top = now / "files/vda1"
    for change in (lambda: (top / "new").mkdir(), lambda: (top / "new").touch(),
                   lambda: (top / "etc/fstab").unlink(), lambda: (top / "many").rmdir(),
                   lambda: os.rename(top / "etc/fstab", top / "x")):
        with raises_errno(errno.EPERM):
            change()
    for change in (lambda: os.chmod(top / "etc/fstab", 0o777),
                   lambda: os.truncate(top / "etc/fstab", 0),
                   lambda: os.setxattr(top / "etc/fstab", "user.x", b"")):
        with raises_errno(errno.EROFS):
            change()
    assert (top / "etc/fstab").read_text().startswith("/dev/vda1")


### Bytes

def test_reads_of_all_kinds(now: Path) -> None:
    path = now / "files/vda1/long"
    wanted = random.Random(SEED).randbytes(LONG)
    with path.open("rb", buffering=0) as file:
        dice = random.Random(SEED)
        for _ in range(40):
            offset = dice.randrange(LONG)
            length = dice.choice([1, 512, 4096, 100_000])
            assert os.pread(file.fileno(), length, offset) == wanted[offset:offset + length]
        assert os.lseek(file.fileno(), 5, os.SEEK_DATA) == 5
        assert os.lseek(file.fileno(), 5, os.SEEK_HOLE) == LONG
        with raises_errno(errno.EBUSY):
            now.rmdir()                         # a reader of the guest's files is one
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        assert os.pread(descriptor, MIB, LONG - MIB // 2) == wanted[-MIB // 2:]
        assert os.pread(descriptor, MIB, LONG) == b""
    finally:
        os.close(descriptor)
    sparse = now / "files/vda1/sparse"
    assert sparse.stat().st_blocks * 512 < MIB
    with sparse.open("rb") as file:
        file.seek(50 * MIB)
        assert file.read(13) == b"in the middle"


def test_readers_at_once(now: Path) -> None:
    wrong: list[str] = []

    def read(number: int) -> None:
        for index in range(number, FILES, 8):
            path = now / "files/root/many" / f"file {index}"
            if path.read_text() != f"{index}\n" * (index % 50):
                wrong.append(str(path))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
