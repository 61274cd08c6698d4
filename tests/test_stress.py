# SPDX-License-Identifier: LGPL-2.1-or-later
"""Faults at random moments, again and again; short here, long with STRESS=long.

STRESS_SECONDS ends each of them earlier; what was done is printed.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import libvirt
import pytest

from bare import Bare
from bed import MIB, Guest, Mount, libvirtd, patient, sh, wait_for
from fsutil import kinds, numbers, running
from test_backup import collection, digest
from test_crash import command, is_thawed, started, tidy, wait_clean, world
from test_recovery import job_files

LONG = os.environ.get("STRESS") == "long"
KILLS = 300 if LONG else 40
# A slow machine does fewer, and says so.
SECONDS = float(os.environ.get("STRESS_SECONDS", "3600" if LONG else "90"))
STREAMS = 50 if LONG else 1
AGENT_RUNS = 100 if LONG else 6
LOAD_SECONDS = SECONDS if LONG else float(os.environ.get("LOAD_SECONDS", "60"))
ROUNDS = 6 if LONG else 3
READERS, WALKERS = 64, 4


### kill -9 of the daemon

def use(mnt: Mount, guest: Guest) -> None:
    """All that it does, until it is dead."""
    now = collection(mnt, guest) / "now"
    with contextlib.suppress(OSError):
        while mnt.process.poll() is None:
            now.mkdir()
            with (now / "disks/vda.raw").open("rb") as file:
                file.read(8 * MIB)
            command("end force", "backups/now")(mnt, guest)
            command("freeze timeout=60")(mnt, guest)
            command("thaw")(mnt, guest)


def test_daemon_is_killed_at_random_moments(guest: Guest) -> None:
    seed = random.randrange(1 << 32)
    dice, before = random.Random(seed), world(guest)
    print(f"seed {seed}")
    begin, cycle = time.monotonic(), 0
    while cycle < KILLS and (cycle < 10 or time.monotonic() - begin < SECONDS):
        cycle += 1
        with started() as mnt:
            mnt.wait_mounted()
            with running(lambda mnt=mnt: use(mnt, guest)):
                time.sleep(dice.uniform(0, 0.8))       # the moment is the test
                mnt.signal(signal.SIGKILL)
                mnt.process.wait(10)
        wait_for(lambda: is_thawed(guest), 10, f"thawed in cycle {cycle}")
        with started() as again:
            again.wait_mounted()
            tidy(again, guest)
            wait_clean(guest, before, f"cycle {cycle}")
    print(f"{cycle} kills in {time.monotonic() - begin:.0f} s")


### What a reader lives through

def rounds() -> Iterator[int]:
    begin, done = time.monotonic(), 0
    while done < STREAMS and (done == 0 or time.monotonic() - begin < SECONDS):
        yield done
        done += 1
    print(f"{done} rounds in {time.monotonic() - begin:.0f} s")


def read_all(file: Path, chunks: dict[int, bytes], failed: list[int]) -> None:
    """Every chunk once, as far as it goes; what fails is said."""
    fd = os.open(file, os.O_RDONLY | os.O_DIRECT)
    try:
        for offset in range(0, os.fstat(fd).st_size, MIB):
            chunks[offset] = os.pread(fd, MIB, offset)
    except OSError as error:
        failed.append(error.errno or 0)
    finally:
        os.close(fd)


def test_libvirtd_restarts_in_mid_stream(guest: Guest, mnt: Mount) -> None:
    for _ in rounds():
        now = collection(mnt, guest) / "now"
        now.mkdir()
        expected = digest(now / "disks/vda.raw")
        done = threading.Event()
        digests: set[str] = set()

        def read(now: Path = now, done: threading.Event = done,
                 digests: set[str] = digests) -> None:
            while not done.is_set():
                sh(["dd", f"of={os.devnull}", f"if={now}/disks/vda.raw", "iflag=direct",
                    "bs=1M"])
                digests.add(digest(now / "disks/vda.raw"))
        with running(read):
            try:
                libvirtd("restart")
            finally:
                done.set()
        assert digests == {expected}

        def ended(now: Path = now) -> bool:
            with contextlib.suppress(OSError):
                now.rmdir()
            return not now.exists()
        wait_for(ended, 30, "ended")
        wait_for(lambda: not job_files() and not guest.has_job(), 5, "nothing left")


def test_qemu_is_killed_in_mid_stream(make_guest, mnt: Mount) -> None:
    guest = make_guest()
    for _ in rounds():
        if guest.is_off():
            guest.start()
        guest.run("dd if=/dev/urandom of=/data/victim bs=1M count=64; sync")
        now = collection(mnt, guest) / "now"
        now.mkdir()
        right: dict[int, bytes] = {}
        read_all(now / "disks/vda.raw", right, [])
        chunks: dict[int, bytes] = {}
        failed: list[int] = []
        begin = time.monotonic()
        with running(lambda c=chunks, f=failed, n=now: read_all(n / "disks/vda.raw", c, f)):
            wait_for(lambda c=chunks: len(c) > 8, 30, "in mid stream")
            os.kill(guest.qemu_pid(), signal.SIGKILL)
        assert time.monotonic() - begin < patient(30)
        assert failed in ([], [errno.EIO]) and all(right[o] == b for o, b in chunks.items())
        wait_for(lambda n=now: n.joinpath("state").read_text().startswith("failed"), 20, "failed")
        now.rmdir()
        wait_for(lambda: not job_files(), 5, "nothing left")


### Load

# Of GLib's pools; those without work go after 15 s, and what looks at the host comes again.
POOL, POOL_AT_REST = "pool-vmsnapfs", 2
# What malloc keeps for itself: other rounds have other peaks.
KIB_SLACK = 4096


@dataclass(frozen=True)
class Size:
    """What the daemon has of everything, at one moment."""

    kib: int
    nodes: int
    open_files: int
    threads: collections.Counter[str]
    descriptors: collections.Counter[str]

    def is_at_rest(self) -> bool:
        return self.open_files == 0 and self.threads[POOL] <= POOL_AT_REST

    def more_than(self, before: Size) -> list[str]:
        threads = self.threads - before.threads
        del threads[POOL]
        return [f"{number} {kind}" for kind, number
                in (threads + (self.descriptors - before.descriptors)).items()]

    def __str__(self) -> str:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(self.descriptors.items()))
        names = ", ".join(f"{number} {name}" for name, number in sorted(self.threads.items()))
        return (f"{self.kib} KiB, {self.nodes} nodes, {self.open_files} open files, "
                f"{self.threads.total()} threads ({names}), "
                f"{self.descriptors.total()} descriptors ({kinds})")


def size(mnt: Mount) -> Size:
    process = Path(f"/proc/{mnt.pid}")
    stats = numbers(mnt.path / ".vmsnapfs/stats")
    return Size(kib=numbers(process / "status")["VmRSS"], nodes=stats["nodes"],
                open_files=stats["open-files"],
                threads=kinds((process / "task").glob("*/comm"), lambda p: p.read_text().strip()),
                descriptors=kinds((process / "fd").iterdir(), os.readlink))


def at_rest(mnt: Mount, before: Size | None) -> Size:
    """Once nobody wants anything of it any more; it may take its time to be as before."""
    found = size(mnt)

    def rests() -> bool:
        nonlocal found
        found = size(mnt)
        return found.is_at_rest() and not (before and found.more_than(before))
    with contextlib.suppress(AssertionError):      # then what is found is too much
        wait_for(rests, 30, "at rest")
    return found


def forgotten(mnt: Mount) -> Size:
    """Without the nodes that only the kernel's cache keeps, until it is short of memory."""
    Path("/proc/sys/vm/drop_caches").write_text("2")
    wait_for(lambda: size(mnt).nodes < 10, 10, "forgotten")
    return size(mnt)


@pytest.fixture
def other(leftovers: None) -> Iterator[Bare]:
    """Its snapshots come and go."""
    made = Bare("other")
    made.define()
    made.start()
    yield made
    made.undefine()


def is_excused(directory: Path, snapshots: Path, error: OSError) -> bool:
    """A snapshot that just comes or goes says so; a host that is slow is waited for so long."""
    if directory.is_relative_to(snapshots):
        return error.errno in (errno.ENOENT, errno.EUCLEAN, errno.EBUSY, errno.ETIMEDOUT)
    return error.errno == errno.ETIMEDOUT


class Load:
    """What 64 readers, some walkers and somebody who makes snapshots do."""

    def __init__(self, mnt: Mount, disk: Path, snapshots: Path) -> None:
        self.mnt, self.disk, self.snapshots = mnt, disk, snapshots
        self.end = 0.0
        self.reads = self.walks = self.made = 0
        self.told: collections.Counter[str] = collections.Counter()

    def read(self) -> None:
        dice = random.Random()
        while time.monotonic() < self.end:
            with self.disk.open("rb", buffering=0) as file:
                for _ in range(20):
                    assert len(os.pread(file.fileno(), 4096, dice.randrange(65536) * 4096)) == 4096
                    self.reads += 1

    def walk(self) -> None:
        while time.monotonic() < self.end:
            for directory, _, files in os.walk(self.mnt.path):
                for name in files:
                    try:
                        os.lstat(os.path.join(directory, name))
                    except OSError as error:
                        assert is_excused(Path(directory), self.snapshots, error), error
                        self.told[errno.errorcode[error.errno]] += 1
            self.walks += 1

    def snapshot(self) -> None:
        path = self.snapshots / "s"
        while time.monotonic() < self.end:
            path.mkdir()
            path.rmdir()
            wait_for(lambda: not path.exists(), 30, "deleted")
            self.made += 1

    def once(self) -> None:
        """What the daemon makes once, for as long as it lives, it has afterwards."""
        path = self.snapshots / "s"
        path.mkdir()
        assert len((path / "disks/vda.raw").read_bytes()) == MIB
        path.rmdir()
        wait_for(lambda: not path.exists(), 30, "deleted")

    def run(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        with running(*[self.read] * READERS, *[self.walk] * WALKERS, self.snapshot):
            while time.monotonic() < self.end:
                time.sleep(seconds / 4)
                print(f"under load: {size(self.mnt)}")

    def __str__(self) -> str:
        return f"{self.reads} reads, {self.walks} walks, {self.made} snapshots; {self.told}"


def test_readers_and_walkers_for_long(guest: Guest, mnt: Mount, other: Bare) -> None:
    """After each round it has what it had after the first one, and no more."""
    now = collection(mnt, guest) / "now"
    now.mkdir()
    load = Load(mnt, now / "disks/vda.raw", mnt.domains / other.name / "snapshots")
    load.once()
    rests: list[Size] = []
    kib: list[int] = []
    for _ in range(ROUNDS):
        load.run(LOAD_SECONDS / ROUNDS)
        rests.append(at_rest(mnt, rests[0] if rests else None))
        kib.append(forgotten(mnt).kib)
        print(f"at rest: {rests[-1]}\nforgotten: {kib[-1]} KiB; {load}")
    now.rmdir()
    assert load.made > 0 and not other.snapshots() and other.files() == {"vda.qcow2"}
    assert all(rest.is_at_rest() for rest in rests)
    assert not [more for rest in rests if (more := rest.more_than(rests[0]))], rests
    assert max(kib) <= kib[0] + KIB_SLACK, kib


### The agent

# What the guest's shell does beside a mkdir; the agent comes back (contrib/bed/guest-init).
IN_THE_GUEST = {
    "absent": "sleep 0.3; touch /run/no-agent; kill -9 $(pidof qemu-ga); sleep 4; "
              "rm /run/no-agent",
    "slow": "sleep {0}; kill -STOP $(pidof qemu-ga); sleep 3; kill -CONT $(pidof qemu-ga)",
    "killed": "sleep {0}; kill -9 $(pidof qemu-ga)",
}


def pause(guest: Guest, libvirtd_pid: int) -> None:
    guest.domain.suspend()
    time.sleep(0.5)
    guest.domain.resume()


def lose_the_reply(guest: Guest, libvirtd_pid: int) -> None:
    os.kill(libvirtd_pid, signal.SIGSTOP)
    time.sleep(2)
    os.kill(libvirtd_pid, signal.SIGCONT)


FROM_OUTSIDE: dict[str, Callable[[Guest, int], None]] = {
    "lost": lose_the_reply,
    "paused": pause,
    "rebooted": lambda guest, _: guest.domain.reset(),
}


def answers(guest: Guest) -> bool:
    with contextlib.suppress(libvirt.libvirtError):
        guest.command("guest-ping", timeout=2)
        return True
    return False


@contextlib.contextmanager
def beside(guest: Guest, kind: str, delay: float) -> Iterator[None]:
    """The fault comes so many seconds from now, by itself."""
    if kind in IN_THE_GUEST:
        with contextlib.suppress(libvirt.libvirtError):    # it may be gone before it answers
            guest.run(f"({IN_THE_GUEST[kind].format(f'{delay:.3f}')}) >/dev/null 2>&1 "
                      "</dev/null &")
        if kind == "absent":
            wait_for(lambda: not answers(guest), 20, "the agent is gone")
        yield
        return
    pid = int(Path("/run/libvirt/bed-libvirtd.pid").read_text())
    def act() -> None:
        time.sleep(delay)
        FROM_OUTSIDE[kind](guest, pid)
    with running(act):
        yield


# What libvirt may lose for good; waiting for longer would not bring it back.
MAY_BE_LOST = ("killed", "rebooted")


def or_lost(seconds: float, kind: str) -> float:
    return seconds / patient(1) if kind in MAY_BE_LOST else seconds


def needed_restart(guest: Guest, kind: str) -> bool:
    """libvirt 9.0 does not see an agent go and come back while a backup runs."""
    try:
        guest.wait_agent(or_lost(30, kind))
    except AssertionError:
        assert kind in MAY_BE_LOST, kind
    else:
        return False
    libvirtd("restart")
    guest.wait_agent()
    return True


def test_agent_fails_around_the_freeze(make_guest, mnt: Mount) -> None:
    """By its disk one sees that the guest is thawed: nobody has to be asked."""
    guest = make_guest(writer=True)
    image = guest.disk_path("vda")
    kinds = [*IN_THE_GUEST, *FROM_OUTSIDE]
    seed = random.randrange(1 << 32)
    dice, longest = random.Random(seed), dict.fromkeys(kinds, 0.0)
    print(f"seed {seed}")
    begin, done, lost = time.monotonic(), 0, 0
    while done < AGENT_RUNS and (done < len(kinds) or time.monotonic() - begin < SECONDS):
        kind = kinds[done % len(kinds)]
        # On a slow machine the agent is killed only now.
        fault = "killed" if done and kinds[(done - 1) % len(kinds)] == "killed" else kind
        now = collection(mnt, guest) / "now"
        with beside(guest, kind, dice.uniform(0, 0.2)):
            start = time.monotonic()
            with contextlib.suppress(OSError):
                now.mkdir()
            took = time.monotonic() - start
            changed = image.stat().st_mtime_ns
            # 5 s around a mkdir; a guest that boots, or waits for its agent, takes longer.
            wait_for(lambda c=changed: image.stat().st_mtime_ns != c, 25, "it writes on")
        longest[kind] = max(longest[kind], time.monotonic() - start)
        assert took < patient(20), kind

        # First: libvirt finds no agent again while a job runs.
        def ended(now: Path = now) -> bool:
            with contextlib.suppress(OSError):
                if now.exists():
                    now.rmdir()
            return not now.exists() and not job_files()
        wait_for(ended, 60, f"{kind}: nothing left")
        lost += needed_restart(guest, fault)
        wait_for(lambda: is_thawed(guest), 15, f"{kind}: thawed")
        done += 1
    print(f"{done} runs; the longest from the mkdir to a write: {longest}; "
          f"{lost} needed a restart of libvirtd")
