# SPDX-License-Identifier: LGPL-2.1-or-later
"""Faults at random moments, again and again; short here, long with STRESS=long."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bed import MIB, Guest, Mount, libvirtd, sh, wait_for
from test_backup import collection, digest
from test_crash import command, is_thawed, started, tidy, vm, wait_clean, world
from test_recovery import job_files

LONG = os.environ.get("STRESS") == "long"
KILLS = 300 if LONG else 40
KILLS_SECONDS = 3600 if LONG else 90   # a slow machine does fewer, and says so
STREAMS = 50 if LONG else 1
LOAD_SECONDS = 3600 if LONG else 60    # the issue says 180 in CI: that alone is 3 minutes
READERS, WALKERS = 64, 4


@contextlib.contextmanager
def running(*work: Callable[[], None]) -> Iterator[None]:
    threads = [threading.Thread(target=w) for w in work]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "it hangs"


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
    while cycle < KILLS and (cycle < 10 or time.monotonic() - begin < KILLS_SECONDS):
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
    for _ in range(STREAMS):
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
    for _ in range(STREAMS):
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
        assert time.monotonic() - begin < 30
        assert failed in ([], [errno.EIO]) and all(right[o] == b for o, b in chunks.items())
        wait_for(lambda n=now: n.joinpath("state").read_text().startswith("failed"), 20, "failed")
        now.rmdir()
        wait_for(lambda: not job_files(), 5, "nothing left")


### Load

def size(pid: int) -> dict[str, int]:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in status)
    return {"KiB": int(values["VmRSS"].split()[0]), "threads": int(values["Threads"]),
            "descriptors": len(os.listdir(f"/proc/{pid}/fd"))}


def test_readers_and_walkers_for_long(guest: Guest, mnt: Mount) -> None:
    now = collection(mnt, guest) / "now"
    now.mkdir()
    end = time.monotonic() + LOAD_SECONDS
    reads = [0]

    def read() -> None:
        dice = random.Random()
        while time.monotonic() < end:
            with (now / "disks/vda.raw").open("rb", buffering=0) as file:
                for _ in range(20):
                    assert len(os.pread(file.fileno(), 4096, dice.randrange(65536) * 4096)) == 4096
                    reads[0] += 1

    def walk() -> None:
        while time.monotonic() < end:
            for directory, _, files in os.walk(mnt.path):
                for name in files:
                    with contextlib.suppress(FileNotFoundError):
                        os.lstat(os.path.join(directory, name))

    seen: list[dict[str, int]] = []
    with running(*[read] * READERS, *[walk] * WALKERS):
        while time.monotonic() < end:
            time.sleep(LOAD_SECONDS / 12)
            seen.append(size(mnt.pid))
    now.rmdir()
    print(f"{reads[0]} reads: {seen}")
    early, late = seen[3:7], seen[8:]
    for key, slack in (("KiB", 16 * 1024), ("threads", 4), ("descriptors", READERS + 8)):
        assert max(s[key] for s in late) <= max(s[key] for s in early) + slack, (key, seen)


### The agent

def test_agent_dies_around_the_freeze(make_guest, mnt: Mount) -> None:
    """It is gone at some moment of a mkdir, and back with the next boot."""
    guest = make_guest()
    dice = random.Random()
    for _ in range(100 if LONG else 3):
        guest.run(f"(sleep 0.0{dice.randrange(10)}; kill -9 $(pidof qemu-ga)) >/dev/null 2>&1 "
                  "</dev/null &")
        now = collection(mnt, guest) / "now"
        begin = time.monotonic()
        with contextlib.suppress(OSError):
            now.mkdir()
        assert time.monotonic() - begin < 20
        if now.exists():
            now.rmdir()
        guest.domain.reset()
        guest.wait_agent()
        assert is_thawed(guest)
        wait_for(lambda: not job_files(), 40, "nothing left")
