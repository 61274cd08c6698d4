# SPDX-License-Identifier: LGPL-2.1-or-later
"""Helpers of the tests of guests' files: what is in a tree, and the appliances that run."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import signal
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import bed
from bed import MIB, Mount, sh, wait_for


### Trees

@dataclass
class Seen:
    """A file as the kernel that wrote it sees it."""
    mode: int
    owner: tuple[int, int]
    links: int
    size: int
    mtime: int
    digest: str
    xattrs: dict[str, bytes]


def look(path: bytes) -> Seen:
    attr = os.lstat(path)
    digest = ""
    if stat.S_ISREG(attr.st_mode):
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest() \
                if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read()).hexdigest()
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False)
              for name in os.listxattr(path, follow_symlinks=False)
              if not name.startswith("security.selinux")}
    return Seen(attr.st_mode, (attr.st_uid, attr.st_gid), attr.st_nlink, attr.st_size,
                attr.st_mtime_ns, digest, xattrs)


def walk(top: Path) -> dict[bytes, Seen]:
    found = {}
    base = os.fsencode(top)
    for directory, dirs, files in os.walk(base):
        for name in dirs + files:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, base)] = look(path)
    return found


def fill_tree(top: Path, count: int, *, rights: bool = True, links: bool = True) -> None:
    """So many files of all sizes in directories of 100, no two alike. Without rights: modes,
    owners and symbolic links, which not every file system has; without links: hard ones, and
    extended attributes."""
    dice = random.Random(count)
    for number in range(count):
        directory = top / f"tree/{number // 100}"
        path = directory / f"Datei {number} \u00e9"
        if number % 100 == 0:
            directory.mkdir(parents=True)
        path.write_bytes(dice.randbytes(dice.choice([0, 1, 100, 511, 600, 2000]))
                         if number % 1000 else dice.randbytes(300_000))
        if links and number % 10 == 0:
            os.setxattr(path, "user.number", b"%d\0" % number)
        if links and number % 50 == 0:
            os.link(path, directory / f"hard {number}")
        if rights:
            os.chown(path, number, 4_000_000_000 - number)
            os.chmod(path, number % 0o1000)
        if rights and number % 40 == 0:
            os.symlink(f"../{number}/no such file", directory / f"link {number}")
        os.utime(path, ns=(0, 1_600_000_000_000_000_000 + number * 2_000_000_000
                           + (number * 100 if links else 0)))


class Loop:
    """A file system in an image, mounted as the guest would."""

    def __init__(self, image: Path, offset: int, size: int, fs: str) -> None:
        self.at = bed.bed_dir() / "tmp/loop"
        self.at.mkdir(exist_ok=True)
        self.options = f"loop,offset={offset},sizelimit={size}"
        self.image, self.fs = image, fs

    def __enter__(self) -> Path:
        sh(["mount", "-t", self.fs, "-o", self.options, str(self.image), str(self.at)])
        return self.at

    def __exit__(self, *_: object) -> None:
        sh(["umount", str(self.at)])


@contextlib.contextmanager
def ntfs(image: Path) -> Iterator[Path]:
    """As ntfs-3g has it, which the appliance uses, too."""
    at = bed.bed_dir() / "tmp/ntfs"
    at.mkdir(exist_ok=True)
    # Of an image, it writes on after umount.
    with subprocess.Popen(["ntfs-3g", "-o", "no_detach", str(image), str(at)]) as process:
        wait_for(at.is_mount, 20, "ntfs-3g has mounted it")
        try:
            yield at
        finally:
            sh(["umount", str(at)])
    assert process.returncode == 0


def fill_vfat(image: Path, source: Path) -> dict[bytes, Seen]:
    """The kernel at hand need not have it, so by mtools. Returns: what a kernel shows."""
    sh(["mcopy", "-s", "-m", "-Q", "-i", str(image), *map(str, source.iterdir()), "::"],
       env=os.environ | {"TZ": "UTC", "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8"}, timeout=600)
    return {path: replace(seen, mode=stat.S_IFMT(seen.mode) | 0o755, owner=(0, 0))
            for path, seen in walk(source).items()}


### Disks that lie

FLAVOURS: dict[str, tuple[int, list[str]]] = {
    "ext4 without checksums": (32, ["mke2fs", "-q", "-t", "ext4", "-O", "^metadata_csum"]),
    "vfat": (32, ["mkfs.vfat"]),
    "ext4": (32, ["mke2fs", "-q", "-t", "ext4"]),
    "btrfs": (64, ["mkfs.btrfs", "-q", "-M"]),
    "ntfs": (32, ["mkntfs", "-qF"]),
    "xfs": (320, ["mkfs.xfs", "-q"]),
    "ext2": (32, ["mke2fs", "-q", "-t", "ext2"]),
}


def fill_hostile(top: Path, rights: bool) -> None:
    (top / "a/b/c").mkdir(parents=True)
    for number in range(50):
        (top / f"a/{number}").write_text("x" * number * 100)
    (top / "a/b/c/long").write_bytes(b"y" * MIB)
    if rights:
        for name, target in (("shadow", "/etc/shadow"), ("up", "../../../../../../etc/shadow"),
                             ("self", "."), ("round", "../a/b/round"), ("dev", "/dev/mem")):
            os.symlink(target, top / "a/b" / name)
        os.mknod(top / "a/disk", stat.S_IFBLK | 0o666, os.makedev(254, 0))
        os.mknod(top / "a/memory", stat.S_IFCHR | 0o666, os.makedev(1, 1))
        (top / "a/1").chmod(0o6755)


def flip(image: Path, dice: random.Random) -> None:
    """Turns some bits of what is written: anywhere, or where a file system begins."""
    data = image.read_bytes()
    nothing = bytes(1024)
    blocks = [at for at in range(0, len(data), 1024) if data[at:at + 1024] != nothing]
    if dice.randrange(2):
        blocks = blocks[:40]
    with image.open("r+b") as file:
        for _ in range(dice.choice([3, 30, 300])):
            block = dice.choice(blocks)
            at = dice.choice([at for at in range(block, block + 1024) if data[at]])
            file.seek(at)
            file.write(bytes([data[at] ^ 1 << dice.randrange(8)]))


def hostile_image(tmp: Path, image: Path, seed: int) -> str:
    """A file system some of whose bits have turned. Returns: its kind."""
    kind = list(FLAVOURS)[seed % len(FLAVOURS)]
    size, command = FLAVOURS[kind]
    with image.open("wb") as file:
        file.truncate(size * MIB)
    sh([*command, str(image)])
    if kind == "ntfs":
        with ntfs(image) as top:
            fill_hostile(top, rights=False)
    elif kind == "vfat":
        source = tmp / f"hostile{seed}"
        source.mkdir()
        fill_hostile(source, rights=False)
        fill_vfat(image, source)
    else:
        with Loop(image, 0, size * MIB, kind.split()[0]) as top:
            fill_hostile(top, rights=True)
    flip(image, random.Random(seed))
    return kind


def check_contained(top: Path) -> None:
    """What can be seen in there, however broken: files, directories, and links that stay."""
    inside = os.path.realpath(top)
    for directory, dirs, files in os.walk(os.fsencode(top)):
        for name in dirs + files:
            path = os.path.join(directory, name)
            try:
                mode = os.lstat(path).st_mode
                target = os.readlink(path) if stat.S_ISLNK(mode) else b""
            except OSError as error:
                assert error.errno in (errno.EIO, errno.EPERM, errno.EACCES, errno.ENOENT), path
                continue
            assert stat.S_IFMT(mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK), path
            assert not stat.S_ISREG(mode) or mode & 0o6000 == 0, path
            assert not target.startswith(b"/"), path
            if target:
                assert os.fsdecode(os.path.realpath(path)).startswith(inside), path


### Appliances

def environment() -> dict[str, str]:
    """One appliance for the whole run; built by whoever is first."""
    cache = bed.bed_dir() / "appliance"
    cache.mkdir(mode=0o700, exist_ok=True)
    return {"LIBGUESTFS_CACHEDIR": str(cache), "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}


def appliance_processes() -> dict[int, str]:
    """The processes in the bed that belong to appliances: pid -> name."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        name = os.path.basename(command[0]).decode(errors="replace")
        if name == "vmsnapfs-files" or (name.startswith("qemu-system")
                                        and any(b"/tmp/libguestfs" in word for word in command)):
            found[int(directory.name)] = name
    return found


def host_traces() -> set[str]:
    return {str(path) for top in ("/tmp", "/var/tmp") for path in Path(top).glob("*guestfs*")}


def kill(name: str, number: int = signal.SIGKILL) -> None:
    pids = [pid for pid, found in appliance_processes().items() if found.startswith(name)]
    assert pids
    for pid in pids:
        os.kill(pid, number)


def in_flight(function: str = "fuse_listxattr") -> int:
    """How many threads of ours wait for an answer in this function of the kernel."""
    waiting = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            stack = (task / "stack").read_text()
            waiting += "request_wait_answer" in stack and function in stack
    return waiting


def errno_of(path: Path) -> int:
    try:
        os.listxattr(path)
    except OSError as error:
        return error.errno or 0
    return 0


def errno_of_read(path: Path) -> int:
    """Of a read that no page cache answers."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        os.pread(descriptor, 4096, 0)
    except OSError as error:
        return error.errno or 0
    finally:
        os.close(descriptor)
    return 0


def starts(mount: Mount) -> int:
    for line in (mount.path / ".vmsnapfs/stats").read_text().splitlines():
        key, _, value = line.partition(": ")
        if key == "appliance-starts":
            return int(value)
    raise AssertionError("stats does not count appliances")
