# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the measurements share: machines to read, turns, medians, and goals.

Every measurement is a ratio against a peer in the same run, from medians of runs that
took turns. All of it runs in the bed (contrib/bed/enter), with the release build named
by VMSNAPFS.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests"))

from bed import MIB, Disk, Guest, Mount, bed_dir, sh, wait_for  # noqa: E402

GIB = 1024 * MIB
TARGET = Path("/dev/shm/vmsnapfs-bench")


# ---- Turns and goals -----------------------------------------------------------------

@dataclass(frozen=True)
class Goal:
    """What ours divided by the peer's may be: at most, for seconds; at least, for IOPS."""
    ours: str
    peer: str
    limit: float


def turns(runs: int, things: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Each of them once, then each of them again: what slows one slows all."""
    found: dict[str, list[float]] = {name: [] for name in things}
    for _ in range(runs):
        for name, thing in things.items():
            found[name].append(thing())
    return found


def show(title: str, unit: str, found: dict[str, list[float]], *goals: Goal) -> None:
    print(f"\n{title}")
    for name, values in found.items():
        print(f"  {name:44} {statistics.median(values):10.2f} {unit}   "
              f"({min(values):.2f} - {max(values):.2f})")
    for goal in goals:
        ratio = statistics.median(found[goal.ours]) / statistics.median(found[goal.peer])
        fewer = unit == "s"
        met = ratio <= goal.limit if fewer else ratio >= goal.limit
        print(f"  {goal.ours} / {goal.peer}: {ratio:.2f} x, wanted "
              f"{'at most' if fewer else 'at least'} {goal.limit:.2f} x: "
              f"{'met' if met else 'MISSED'}")
    sys.stdout.flush()


def runs_wanted() -> int:
    return int(sys.argv[1]) if len(sys.argv) > 1 else 5


def need(program: str, package: str) -> None:
    if not shutil.which(program):
        sys.exit(f"needs {program}: apt-get install {package}")


# ---- Commands --------------------------------------------------------------------------

def clear_target() -> None:
    TARGET.mkdir(exist_ok=True)
    sh(["rm", "-rf", *(str(path) for path in TARGET.iterdir() if path.name != "raw")])


def seconds(command: str) -> float:
    """How long a command of bash takes."""
    start = time.monotonic()
    subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True,
                   stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def claim_memory() -> None:
    """
    Has the host give the memory that a command is about to use: 2 GiB for its target, 2 GiB
    for the page cache of what it reads.

    A virtual machine hands free pages back to its host (page reporting), which has to find
    new ones: 2 GiB on a tmpfs took 1.0 to 6.0 s, whoever wrote them.
    """
    path = TARGET / "claim"
    with path.open("wb") as file:
        for _ in range(9 * GIB // 2 // MIB):
            file.write(bytes(MIB))
    path.unlink()


def forget(path: Path) -> None:
    """What an earlier run has left of it in the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def to_target(command: str, *warm: Path, cold: tuple[Path, ...] = ()) -> Callable[[], float]:
    """
    A command that writes to the empty target directory; @warm is in the page cache, and of
    @cold, what of ours it reads, nothing.
    """
    def run() -> float:
        clear_target()
        for path in cold:
            forget(path)
        for path in warm:
            sh(f"cat {path} > /dev/null", timeout=300)
        claim_memory()
        return seconds(command)
    return run


def iops(path: Path, jobs: int) -> Callable[[], float]:
    """Random reads of 4 KiB for 5 s, none from a page that an earlier read has left."""
    def run() -> float:
        out = sh(["fio", "--name=r", f"--filename={path}", "--rw=randread", "--bs=4k",
                  "--ioengine=psync", f"--numjobs={jobs}", "--runtime=5", "--time_based",
                  "--invalidate=1", "--group_reporting", "--output-format=json",
                  "--readonly"], timeout=120).stdout
        return float(json.loads(out)["jobs"][0]["read"]["iops"])
    return run


# ---- Machines --------------------------------------------------------------------------

def fill(image: Path, data: int, size: int) -> None:
    """A qcow2 of @size bytes, the first @data of them random, in the page cache."""
    raw = TARGET / "fill"
    TARGET.mkdir(exist_ok=True)
    sh(f"head -c {data} /dev/urandom > {raw} && truncate -s {size} {raw}", timeout=300)
    sh(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image)], timeout=600)
    raw.unlink()
    sh(f"cat {image} > /dev/null", timeout=300)


@contextmanager
def guest_with(*targets: str, data: int = 2 * GIB, size: int = 4 * GIB,
               running: bool = True) -> Iterator[Guest]:
    guest = Guest("bench", agent=False)
    try:
        guest.define(*(Disk(target, size=size, fs=False) for target in targets))
        for target in targets:
            fill(guest.disk_path(target), data, size)
        if running:
            guest.start()
        yield guest
    finally:
        guest.undefine()
        sh(["rm", "-rf", str(TARGET)])


@contextmanager
def mounted(*options: str) -> Iterator[Mount]:
    mount = Mount("qemu:///system", "quiesce=off", *options)
    mount.wait_mounted()
    try:
        yield mount
    finally:
        mount.finish()


@contextmanager
def backup_of(mount: Mount, guest: Guest) -> Iterator[Path]:
    now = mount.domains / guest.name / "backups/now"
    now.mkdir()
    try:
        yield now
    finally:
        (now / "control").write_text("end force\n")


def uri_of(backup: Path, target: str = "vda") -> str:
    """The NBD export that a backup of a running machine is read from."""
    socket = re.search(r"socket='([^']+)'", (backup / "backup.xml").read_text())
    assert socket
    return f"nbd+unix:///{target}?socket={socket[1]}"


# ---- Peers -----------------------------------------------------------------------------

@contextmanager
def nbdfuse(uri: str) -> Iterator[Path]:
    point = bed_dir() / "mnt/nbdfuse"
    point.mkdir(exist_ok=True)
    process = subprocess.Popen(["nbdfuse", str(point), uri])
    try:
        wait_for(lambda: (point / "nbd").exists(), 10, "nbdfuse")
        yield point / "nbd"
    finally:
        sh(["fusermount3", "-u", str(point)], check=False)
        process.wait(10)


@contextmanager
def storage_daemon(blockdev: str, size: int) -> Iterator[Path]:
    """qemu-storage-daemon --export fuse of a block device in its notation."""
    point = bed_dir() / "mnt/qsd"
    point.touch()
    process = subprocess.Popen(
        ["qemu-storage-daemon", "--blockdev", f"{blockdev},node-name=d,read-only=on",
         "--export", f"type=fuse,id=e,node-name=d,mountpoint={point}"])
    try:
        wait_for(lambda: point.stat().st_size == size, 10, "qemu-storage-daemon")
        yield point
    finally:
        process.terminate()
        process.wait(10)


# ---- The daemon ------------------------------------------------------------------------

def cpu_of(pid: int) -> float:
    """Seconds of processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int) -> int:
    """MiB that a process had in memory at most."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) // 1024


def show_memory(mount: Mount, streams: int) -> None:
    used, limit = memory_of(mount.pid), 64 + 16 * streams
    print(f"  memory of vmsnapfs: {used} MiB, wanted at most 64 + 16 x {streams} = {limit}: "
          f"{'met' if used <= limit else 'MISSED'}", flush=True)
