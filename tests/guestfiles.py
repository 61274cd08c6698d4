# SPDX-License-Identifier: LGPL-2.1-or-later
"""Helpers of the tests of guests' files: what is in a tree, and the appliances that run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import stat
from dataclasses import dataclass
from pathlib import Path

import bed
from bed import Mount


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


def is_in_flight(mount: Mount) -> bool:
    """Whether somebody waits for the mount in the kernel."""
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            if "request_wait_answer" in (task / "stack").read_text():
                return True
    return False


def errno_of(path: Path) -> int:
    try:
        os.listxattr(path)
    except OSError as error:
        return error.errno or 0
    return 0


def starts(mount: Mount) -> int:
    for line in (mount.path / ".vmsnapfs/stats").read_text().splitlines():
        key, _, value = line.partition(": ")
        if key == "appliance-starts":
            return int(value)
    raise AssertionError("stats does not count appliances")
