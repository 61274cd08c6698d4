# SPDX-License-Identifier: LGPL-2.1-or-later
"""Harm that was found and mended: each of these hung a guest, a mount, or left something."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import libvirt

from bed import MIB, Disk, Guest, Mount, patient, sh, wait_for
from test_backup import collection, text
from test_recovery import STATE, job_files
from test_scratch import small  # noqa: F401  (a fixture)

# Reads 1 MiB from random places past the page cache, in six threads.
READER = """
import mmap, os, random, sys, threading
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
size = os.fstat(fd).st_size
def run(seed):
    choose, buffer = random.Random(seed), mmap.mmap(-1, 1 << 20)
    while True:
        try:
            os.preadv(fd, [buffer], choose.randrange(size // 4096) * 4096)
        except OSError:
            return
for i in range(6):
    threading.Thread(target=run, args=(i,)).start()
"""


def answers(guest: Guest) -> bool:
    return sh(["timeout", "3", "virsh", "qemu-monitor-command", guest.name,
               '{"execute":"query-status"}'], check=False).returncode == 0


def test_end_under_readers_does_not_hang_qemu(make_guest, mnt: Mount) -> None:
    """QEMU 7.2 never comes back from stopping its NBD server under a client."""
    guest = make_guest()
    now = collection(mnt, guest) / "now"
    for _ in range(15):
        now.mkdir()
        reader = subprocess.Popen([sys.executable, "-c", READER, str(now / "disks/vda.raw")])
        wait_for(lambda: "bytes-read: 0" not in (now / "job").read_text(), 10, "it reads")
        (now / "control").write_text("end force\n")
        reader.kill()
        reader.wait()
        if not answers(guest):
            os.kill(guest.qemu_pid(), signal.SIGKILL)
            raise AssertionError("QEMU hangs")


SMALL_READER = """
import mmap, os, random, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
buffer, reads = mmap.mmap(-1, 4096), 0
while True:
    os.preadv(fd, [buffer], random.randrange(os.fstat(fd).st_size // 4096) * 4096)
    reads += 1
    if reads == 50:
        print("go", flush=True)
"""


def test_small_readers_of_a_stalled_machine_stop_nobody(guest: Guest, mnt: Mount) -> None:
    """As many as there are FUSE threads (rows 8, 9, 17, 18)."""
    now = collection(mnt, guest) / "now"
    now.mkdir()
    readers = [subprocess.Popen([sys.executable, "-c", SMALL_READER, str(now / "disks/vda.raw")],
                                stdout=subprocess.PIPE) for _ in range(4)]
    for reader in readers:
        assert reader.stdout is not None and reader.stdout.readline() == b"go\n"
    qemu = guest.qemu_pid()
    os.kill(qemu, signal.SIGSTOP)
    try:
        wait_for(lambda: all("request_wait_answer" in Path(f"/proc/{r.pid}/stack").read_text()
                             for r in readers), 5, "all wait")
        start = time.monotonic()
        readers[0].kill()
        readers[0].wait(20)
        sh(["ls", str(mnt.domains)])
        took = time.monotonic() - start
    finally:
        os.kill(qemu, signal.SIGCONT)
        for reader in readers:
            reader.kill()
            reader.wait()
        now.rmdir()
    assert took < patient(2)


def test_failed_start_does_not_end_the_backup(off_guest, mnt: Mount) -> None:
    """A start that our lock makes fail is active for a moment."""
    guest = off_guest(Disk(size=8 * MIB), *[Disk(f"vd{c}", size=2 * MIB, fs=False)
                                            for c in "bcdefgh"])
    now = collection(mnt, guest) / "now"
    now.mkdir()
    look = subprocess.Popen(["sh", "-c", 'while cat "$1"; do :; done', "sh",
                             str(mnt.domains / guest.name / "state")],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(12):
            with contextlib.suppress(libvirt.libvirtError):
                guest.domain.create()
                raise AssertionError("it started under the lock")
            assert text(now / "state") == "running"
    finally:
        look.kill()
        look.wait()
    now.rmdir()


def test_record_that_was_being_written_is_removed(mount) -> None:
    first = mount()
    os.listdir(first.path)
    first.unmount()
    first.process.wait(20)
    (journal,) = STATE.glob("qemu*system/journal")
    left = journal / "6f0ba32b-301d-4e51-91ee-5e2436f6d750.json.NWWGZ3"
    left.write_text("{")
    os.listdir(mount().path)
    assert not left.exists()


def test_give_up_while_libvirtd_hangs(make_guest, mount, small: Path) -> None:  # noqa: F811
    """The job may run on: nothing of it goes before it is ended."""
    guest = make_guest(Disk())
    guest.run("dd if=/dev/urandom of=/data/big bs=1M count=100; sync")
    mnt = mount("qemu:///system", f"scratch={small}", "scratch-reserve=72M")
    now = collection(mnt, guest) / "now"
    now.mkdir()
    guest.run("(sleep 1; dd if=/dev/urandom of=/data/big bs=1M count=36 conv=notrunc,fsync) "
              ">/dev/null 2>&1 </dev/null &")
    pid = int(Path("/run/libvirt/bed-libvirtd.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: text(now / "state").startswith("failed: given up"), 30, "given up")
        assert job_files() and list(small.iterdir())
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: not guest.has_job() and not job_files(), 40, "ended")
    now.rmdir()
    now.mkdir()
    now.rmdir()
