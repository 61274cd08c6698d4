# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an attacker tried and what held: races, hostile calls, bytes under stress, leaks."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bed import MIB, Disk, Guest, Mount, bed_dir, raises_errno, sh, wait_for
from fsutil import numbers
from test_backup import collection, text
from test_offline import compress, qemu_nbds
from test_recovery import job_files

# They mean "the daemon is dead" to everybody (design.md section 4).
DEAD = {errno.ENOTCONN, errno.ENOSYS, errno.ESTALE, errno.ECONNABORTED}


### Bytes under stress

# Compares reads of any place and length with a reference; prints what is wrong.
READER = """
import mmap, os, random, sys, time
path, reference, seed, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
choose = random.Random(seed)
with open(reference, "rb") as file:
    good = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
buffer = mmap.mmap(-1, 2 << 20)
end, reads, failed = time.monotonic() + seconds, 0, 0
while time.monotonic() < end:
    direct = choose.random() < 0.5
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    for _ in range(20):
        length = choose.choice((1, 511, 4096, 65536, 65537, 1 << 20, (1 << 20) + 5))
        offset = choose.randrange(len(good))
        if direct:
            offset, length = offset & ~4095, (length + 4095) & ~4095
        try:
            count = os.preadv(fd, [memoryview(buffer)[:length]], offset)
        except OSError as error:
            failed += 1
            if error.errno != 5:
                print("errno", error.errno)
            continue
        reads += 1
        if count == 0 or buffer[:count] != good[offset:offset + count]:
            print("wrong", offset, length, count, "direct" if direct else "cached")
    os.close(fd)
print(f"reads {reads} failed {failed}" if reads else "nothing was read")
"""


def compare_reads(path: Path, reference: Path, seconds: float,
                  disturb: Callable[[], None]) -> int:
    """Three readers for that long; Returns: how many reads failed, with EIO."""
    readers = [subprocess.Popen([sys.executable, "-c", READER, str(path), str(reference),
                                 str(seed), str(seconds)], stdout=subprocess.PIPE, text=True)
               for seed in range(3)]
    while any(reader.poll() is None for reader in readers):
        disturb()
        with contextlib.suppress(subprocess.TimeoutExpired):
            readers[0].wait(0.3)
    failed = 0
    for reader in readers:
        out = reader.communicate()[0].split()
        assert out[:1] == ["reads"] and len(out) == 4, out
        failed += int(out[3])
    return failed


def test_bytes_of_a_live_backup_under_stress(guest: Guest, mnt: Mount, tmp_path: Path) -> None:
    # Rows 46, 51: the guest overwrites, its QEMU pauses, the page cache is dropped.
    guest.run("dd if=/dev/urandom of=/data/stress bs=1M count=48; sync")
    guest.suspend()
    reference = tmp_path / "reference"
    now = collection(mnt, guest) / "now"
    try:
        sh(["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw",
            str(guest.disk_path("vda")), str(reference)])
        now.mkdir()
    finally:
        guest.resume()
    guest.run("(for i in 1 2 3 4 5 6 7 8 9; do dd if=/dev/zero of=/data/stress bs=64k "
              "seek=$((i*70)) count=60 conv=notrunc,fsync; done) >/dev/null 2>&1 </dev/null &")
    pid = guest.qemu_pid()

    def disturb() -> None:
        os.kill(pid, signal.SIGSTOP)
        Path("/proc/sys/vm/drop_caches").write_text("3")
        os.kill(pid, signal.SIGCONT)

    assert compare_reads(now / "disks/vda.raw", reference, 6, disturb) == 0
    now.rmdir()
    guest.run("rm /data/stress")


def test_bytes_while_qemu_nbd_is_killed(off_guest, mnt: Mount, tmp_path: Path) -> None:
    # Row 50: EIO is allowed, a wrong byte or zeroes instead of data are not.
    guest = off_guest(Disk(size=32 * MIB, fs=False))
    writes = [f"-cwrite -P {i + 1} {i * 777 * 1024} 200k" for i in range(40)]
    sh(["qemu-io", "-f", "qcow2", *writes, str(guest.disk_path("vda"))])
    reference = tmp_path / "reference"
    sh(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(guest.disk_path("vda")),
        str(reference)])
    compress(guest)
    now = collection(mnt, guest) / "now"
    now.mkdir()
    killed = 0

    def disturb() -> None:
        nonlocal killed
        for pid in qemu_nbds():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1

    compare_reads(now / "disks/vda.raw", reference, 5, disturb)
    assert killed > 3
    now.rmdir()
    assert not qemu_nbds()


@pytest.mark.parametrize("size", [0, 1, 511, 4096 + 512, 1000003])
@pytest.mark.parametrize("running", [False, True])
def test_raw_image_of_an_odd_size(off_guest, mnt: Mount, size: int, running: bool) -> None:
    # Row 46: QEMU's disk ends at the next sector; what the image lacks is zero.
    guest = off_guest(Disk(size=8 * MIB, fs=False), Disk("vdb", "raw", size=MIB, fs=False))
    data = random.Random(size).randbytes(size)
    guest.disk_path("vdb").write_bytes(data)
    if running:
        guest.start(wait=False)
    now = collection(mnt, guest) / "now"
    now.mkdir()
    got = (now / "disks/vdb.raw").read_bytes()
    assert len(got) == (now / "disks/vdb.raw").stat().st_size == (size + 511) // 512 * 512
    assert got[:size] == data and not any(got[size:])
    now.rmdir()


### Ends and races

@pytest.fixture
def held_qemu_nbd() -> Iterator[tuple[Path, Path]]:
    """qemu-nbd says that it was started, by the first file, and waits for the second."""
    started, go_on = bed_dir() / "tmp" / "started", bed_dir() / "tmp" / "go-on"
    real, wrapper = bed_dir() / "tmp" / "qemu-nbd.real", bed_dir() / "tmp" / "qemu-nbd"
    real.write_bytes(Path("/usr/bin/qemu-nbd").read_bytes())
    wrapper.write_text("#!/bin/bash\n"
                       f"mkdir {started}\n"
                       f"until [ -e {go_on} ]; do sleep 0.05; done\n"
                       f'exec -a qemu-nbd {real} "$@"\n')
    for program in (real, wrapper):
        program.chmod(0o755)
    sh(["mount", "--bind", str(wrapper), "/usr/bin/qemu-nbd"])
    yield started, go_on
    go_on.touch()
    sh(["umount", "/usr/bin/qemu-nbd"])
    started.rmdir()
    for path in (go_on, real, wrapper):
        path.unlink()


def test_machine_goes_and_backup_ends_while_its_server_starts(
        off_guest, mnt: Mount, held_qemu_nbd: tuple[Path, Path]) -> None:
    # Row 50, 63: who fails it and who ends it met in the release (a use after free).
    started, go_on = held_qemu_nbd
    guest = off_guest(Disk(size=8 * MIB, fs=False))
    sh(["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", str(guest.disk_path("vda"))])
    compress(guest)
    now = collection(mnt, guest) / "now"
    now.mkdir()
    control = os.open(now / "control", os.O_WRONLY)
    reader = subprocess.Popen(["dd", f"if={now}/disks/vda.raw", "of=/dev/null", "count=1"],
                              stderr=subprocess.DEVNULL)
    wait_for(started.exists, 10, "qemu-nbd is being started")
    guest.domain.undefine()
    wait_for(lambda: guest.name not in os.listdir(mnt.domains), 10, "the machine is gone")
    ender = subprocess.Popen(
        [sys.executable, "-c", f"import os; os.write({control}, b'end force\\n')"],
        pass_fds=[control], stderr=subprocess.DEVNULL)
    go_on.touch()
    assert ender.wait(30) == 0
    assert reader.wait(30) != 0, "it read from a machine that is gone"
    os.close(control)
    wait_for(lambda: not qemu_nbds() and not job_files(), 10, "nothing is left")
    assert mnt.process.poll() is None


LOOP = """
import mmap, os, random, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
size, buffer = os.fstat(fd).st_size, mmap.mmap(-1, 65536)
while True:
    os.preadv(fd, [buffer], random.randrange(size // 65536) * 65536)
"""


@pytest.mark.parametrize("how", ["lazy", "abort"])
def test_mount_goes_under_eight_readers(guest: Guest, mount, how: str) -> None:
    # Rows 12, 13: the daemon ends by itself, with 0, and so do its backups.
    mnt = mount()
    now = collection(mnt, guest) / "now"
    now.mkdir()
    readers = [subprocess.Popen([sys.executable, "-c", LOOP, str(now / "disks/vda.raw")],
                                stderr=subprocess.DEVNULL) for _ in range(8)]

    wait_for(lambda: numbers(now / "job")["bytes-read"] > 64 * MIB, 30, "eight readers are at it")
    if how == "lazy":
        sh(["umount", "-l", str(mnt.path)])
        for reader in readers:
            reader.kill()
    else:
        minor = os.minor(mnt.path.stat().st_dev)
        control = bed_dir() / "tmp" / "fusectl"
        control.mkdir()
        sh(["mount", "-t", "fusectl", "none", str(control)])
        try:
            (control / str(minor) / "abort").write_text("1")
        finally:
            sh(["umount", str(control)])
            control.rmdir()
    assert mnt.process.wait(30) == 0
    for reader in readers:
        reader.wait(10)
    sh(["umount", "-l", str(mnt.path)], check=False)
    assert not guest.has_job() and not job_files()


def test_mounted_and_unmounted_again_and_again(mount) -> None:
    for _ in range(15):
        mnt = mount()
        assert (mnt.domains).is_dir()
        mnt.unmount()
        assert mnt.process.wait(20) == 0


### Hostile calls

libc = ctypes.CDLL(None, use_errno=True)


def errno_of(call: Callable[[], object]) -> int:
    """0, or the errno; never one that says the daemon is dead."""
    try:
        call()
    except OSError as error:
        assert error.errno not in DEAD, error
        return error.errno or 0
    return 0


@pytest.fixture
def off_backup(off_guest, mnt: Mount) -> Iterator[Path]:
    guest = off_guest(Disk(size=8 * MIB, fs=False))
    now = collection(mnt, guest) / "now"
    now.mkdir()
    yield now
    now.rmdir()


def test_commands_by_any_system_call(off_backup: Path, tmp_path: Path) -> None:    # rows 31 to 35
    control = off_backup.parent.parent / "control"
    source = tmp_path / "commands"

    def opened(call: Callable[[int], object]) -> int:
        descriptor = os.open(control, os.O_RDWR)
        try:
            return errno_of(lambda: call(descriptor))
        finally:
            os.close(descriptor)

    def sent(command: bytes) -> int:
        source.write_bytes(command)
        with source.open("rb") as file:
            return opened(lambda fd: os.sendfile(fd, file.fileno(), 0, len(command)))

    assert opened(lambda fd: os.writev(fd, [b"# a ", b"comment\n"])) == 0
    assert opened(lambda fd: os.writev(fd, [b"sus", b"pend\n"])) == errno.EINVAL   # it is off
    assert opened(lambda fd: os.writev(fd, [b"x" * 5000] * 1000)) == errno.EFBIG
    assert opened(lambda fd: os.write(fd, b"x" * (3 * MIB))) == errno.EFBIG
    assert opened(lambda fd: os.pwrite(fd, b"# far\n", 1 << 62)) == 0
    assert opened(lambda fd: os.pwrite(fd, b"# out\n", (1 << 63) - 2)) != 0
    assert sent(b"# sent\n") == 0
    assert sent(b"suspend\n" * 8192) == errno.EFBIG
    assert opened(lambda fd: os.write(fd, b"sus\0pend")) == errno.EINVAL
    assert opened(lambda fd: os.ftruncate(fd, 5)) == errno.EINVAL
    assert opened(lambda fd: os.ftruncate(fd, 0)) == 0
    assert text(off_backup / "state") == "running"


def test_reads_and_seeks_at_the_end_of_the_world(off_backup: Path) -> None:        # row 46
    far = (1 << 63) - 1
    descriptor = os.open(off_backup / "disks/vda.raw", os.O_RDONLY)
    try:
        for offset in (8 * MIB, 1 << 62, far - 4096):
            assert os.pread(descriptor, 1, offset) == b""
        assert len(os.pread(descriptor, MIB, 8 * MIB - 1)) == 1
        assert errno_of(lambda: os.pread(descriptor, 1, far)) == errno.EINVAL
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            for offset in (-1, 8 * MIB, far):
                assert errno_of(lambda: os.lseek(descriptor, offset, whence)) == errno.ENXIO
        assert errno_of(lambda: os.lseek(descriptor, 0, 7)) == errno.EINVAL
    finally:
        os.close(descriptor)


def test_directory_is_read_in_small_pieces(off_backup: Path) -> None:              # row 41
    names = set(os.listdir(off_backup))
    descriptor = os.open(off_backup, os.O_RDONLY)
    buffer = ctypes.create_string_buffer(48)
    found = []
    while (count := libc.syscall(217, descriptor, buffer, len(buffer))) > 0:       # getdents64
        entry, raw = 0, buffer.raw
        while entry < count:
            length = int.from_bytes(raw[entry + 16:entry + 18], "little")
            found.append(raw[entry + 19:entry + length].split(b"\0")[0].decode())
            entry += length
    assert count == 0 and sorted(found) == sorted(names | {".", ".."})
    for offset in (1 << 31, (1 << 63) - 1):
        os.lseek(descriptor, offset, os.SEEK_SET)
        assert libc.syscall(217, descriptor, buffer, len(buffer)) == 0
    os.close(descriptor)


def test_nothing_else_is_possible(off_backup: Path) -> None:                       # rows 35, 40, 45
    path, attribute = off_backup / "disks/vda.raw", off_backup / "state"

    def renamed(one: Path, two: Path, flags: int) -> int:
        failed = libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(two), flags) != 0
        return ctypes.get_errno() if failed else 0

    assert errno_of(lambda: os.open(off_backup, os.O_TMPFILE | os.O_RDWR)) == errno.EOPNOTSUPP
    assert errno_of(lambda: os.open(path, os.O_RDWR)) == errno.EROFS
    assert errno_of(lambda: os.truncate(path, 0)) == errno.EROFS
    assert errno_of(lambda: os.chmod(path, 0o777)) == errno.EROFS
    assert errno_of(lambda: os.chown(attribute, 1, 1)) == errno.EROFS
    assert errno_of(lambda: os.utime(off_backup)) == errno.EROFS
    assert errno_of(lambda: os.setxattr(path, "user.x", b"x" * 60000)) == errno.EROFS
    assert errno_of(lambda: os.getxattr(path, "user.x")) == errno.ENODATA
    for flags in (0, 1, 4):                                    # none, NOREPLACE, WHITEOUT
        assert renamed(off_backup, off_backup.parent / "other", flags) == errno.EOPNOTSUPP
    assert renamed(attribute, off_backup / "job", 2) == errno.EPERM                # EXCHANGE
    descriptor = os.open(path, os.O_RDONLY)
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, 4096)
    mmap.mmap(descriptor, 4096, prot=mmap.PROT_READ).close()
    os.close(descriptor)
    descriptor = os.open(path, os.O_PATH)
    assert stat.S_ISREG(os.fstat(descriptor).st_mode)
    os.close(descriptor)
    with raises_errno(errno.EINVAL):
        os.readlink(path)


### Leaks

def test_nothing_grows(off_guest, mnt: Mount) -> None:                             # row 20
    guest = off_guest(Disk(size=8 * MIB, fs=False))
    now = collection(mnt, guest) / "now"
    process = Path(f"/proc/{mnt.pid}")

    def cycles(count: int) -> None:
        for _ in range(count):
            now.mkdir()
            (now / "disks/vda.raw").read_bytes()
            now.rmdir()
        now.mkdir()
        for index in range(count * 50):
            os.close(os.open(now / ("state" if index % 2 else "disks/vda.raw"), os.O_RDONLY))
        now.rmdir()

    cycles(20)
    descriptors, before = len(os.listdir(process / "fd")), numbers(process / "status")
    cycles(60)
    wait_for(lambda: len(os.listdir(process / "fd")) <= descriptors, 10, "descriptors closed")
    after = numbers(process / "status")
    assert after["Threads"] <= before["Threads"] + 4, "more than the pools have"
    if "libasan" not in (process / "maps").read_text():        # that one keeps what is freed
        assert after["VmRSS"] < before["VmRSS"] + 2048
    sh(["find", str(mnt.path), "-ls"])
    Path("/proc/sys/vm/drop_caches").write_text("2")
    wait_for(lambda: numbers(mnt.path / ".vmsnapfs/stats")["nodes"] < 10, 10, "forgotten")
