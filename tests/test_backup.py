# SPDX-License-Identifier: LGPL-2.1-or-later
"""Live backups of a real guest: the bytes, the files, and what is left (nothing)."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from bed import (BED, MIB, REPO, VMSNAPFS, Disk, Guest, Mount, bed_dir, check_ext4, libvirtd, raises_errno,
                 read_ext4, sh, wait_for)


def collection(mnt: Mount, guest: Guest) -> Path:
    return mnt.domains / guest.name / "backups"


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text(path: Path) -> str:
    return path.read_text().strip()


def compare(image: Path, fmt: str, raw: Path) -> None:
    sh(["qemu-img", "compare", "-f", fmt, "-F", "raw", str(image), str(raw)])


@pytest.fixture
def backup(guest: Guest, mnt: Mount) -> Iterator[Path]:
    """A running backup of the guest, ended after the test if it still is there."""
    path = collection(mnt, guest) / "now"
    path.mkdir()
    yield path
    if path.exists():
        (path / "control").write_text("end force\n")


@pytest.mark.parametrize("options", ["", "cache=none"])
def test_copy_is_the_moment_of_mkdir(make_guest, mnt: Mount, tmp_path: Path,
                                     options: str) -> None:
    guest = make_guest(Disk(options=options))
    guest.run("dd if=/dev/urandom of=/data/victim bs=1M count=64; sync")
    guest.suspend()
    before = tmp_path / "before.qcow2"
    shutil.copy(guest.disk_path("vda"), before)
    now = collection(mnt, guest) / "now"
    now.mkdir()
    guest.resume()
    guest.run("dd if=/dev/zero of=/data/victim bs=1M count=64 conv=notrunc; sync")
    copy = tmp_path / "copy.raw"
    sh(["cp", "--sparse=auto", str(now / "disks/vda.raw"), str(copy)])
    now.rmdir()
    compare(before, "qcow2", copy)


def test_guest_goes_on_writing_and_the_copy_mounts(guest: Guest, backup: Path,
                                                   tmp_path: Path) -> None:
    counter = guest.counter()
    copy = tmp_path / "copy.raw"
    shutil.copyfile(backup / "disks/vda.raw", copy)
    wait_for(lambda: guest.counter() > counter, 20, "the guest writes")
    check_ext4(copy)
    assert int(read_ext4(copy, "/counter")) <= counter


def test_two_disks_are_one_instant(guest2: Guest, mnt: Mount, tmp_path: Path) -> None:
    # The same counter goes to both disks, first to vda: never may vdb be ahead. Appended:
    # a freeze between the truncation and the write of '>' leaves an empty file.
    guest2.run("rm -f /data/n /data2/n; touch /data/go; "
               "(i=0; while [ -e /data/go ]; do i=$((i+1)); "
               "echo $i >> /data/n; sync; echo $i >> /data2/n; sync; done) "
               ">/dev/null 2>&1 </dev/null &")
    wait_for(lambda: len(guest2.run("cat /data2/n || true").split()) > 3, 30, "both written")
    now = collection(mnt, guest2) / "now"
    now.mkdir()
    try:
        assert sorted(p.name for p in (now / "disks").iterdir()) == ["vda.raw", "vdb.raw"]
        for target in ("vda", "vdb"):
            sh(["cp", "--sparse=auto", str(now / f"disks/{target}.raw"),
                str(tmp_path / f"{target}.raw")])
    finally:
        now.rmdir()
        guest2.run("rm /data/go")
    for target in ("vda", "vdb"):
        check_ext4(tmp_path / f"{target}.raw")
    first, second = (int(read_ext4(tmp_path / f"{target}.raw", "/n").split()[-1])
                     for target in ("vda", "vdb"))
    assert first - 1 <= second <= first


def test_files_of_a_backup(guest: Guest, mnt: Mount, backup: Path) -> None:
    assert text(backup / "state") == "running"
    assert text(backup / "consistency") in ("crash", "filesystem")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text(backup / "created"))
    assert f"<name>{guest.name}</name>" in (backup / "domain.xml").read_text()
    assert "mode='pull'" in (backup / "backup.xml").read_text()
    assert "object: backups/now" in (backup / "job").read_text()
    assert "object: backups/now" in (backup / "../../job").read_text()
    assert os.readlink(backup / "../latest") == "now"
    stat = (backup / "disks/vda.raw").stat()
    assert stat.st_size == 256 * MIB
    assert 0 < stat.st_blocks * 512 < stat.st_size
    assert stat.st_mtime == stat.st_ctime == backup.stat().st_mtime
    assert os.getxattr(backup, "user.vmsnapfs.uuid").decode() == guest.uuid
    assert os.getxattr(backup / "disks/vda.raw", "user.vmsnapfs.created").decode() == text(
        backup / "created")


def test_holes_are_found(backup: Path, tmp_path: Path) -> None:
    path = backup / "disks/vda.raw"
    descriptor = os.open(path, os.O_RDONLY)
    size = path.stat().st_size
    offset, data = 0, 0
    while offset < size:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO
            break
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        assert offset <= start < end <= size
        data += end - start
        offset = end
    with raises_errno(errno.ENXIO):
        os.lseek(descriptor, size, os.SEEK_DATA)
    os.close(descriptor)
    assert 0 < data < size
    copy = tmp_path / "copy"
    sh(["cp", "--sparse=auto", str(path), str(copy)])
    assert copy.stat().st_blocks * 512 <= data + MIB
    assert digest(copy) == digest(path)


def test_reads_of_any_place_and_length(backup: Path, tmp_path: Path) -> None:  # rows 45, 46
    path = backup / "disks/vda.raw"
    copy = tmp_path / "copy"
    shutil.copyfile(path, copy)
    whole = copy.read_bytes()
    size = len(whole)
    descriptor = os.open(path, os.O_RDONLY)
    for offset, length in ((0, 1), (1, 1), (511, 2), (4095, 4098), (size - 1, 1), (size - 1, 100),
                           (size, 1), (size + 5, 10), (123457, 3 * MIB + 1)):
        assert os.pread(descriptor, length, offset) == whole[offset:offset + length], offset
    os.close(descriptor)
    direct = sh(f"dd if={path} bs=1M iflag=direct status=none | sha256sum").stdout.split()[0]
    assert direct == hashlib.sha256(whole).hexdigest()


@pytest.mark.parametrize("tool", ["cat", "rsync", "tar", "dd", "shutil", "qemu-img"])
def test_tools_copy_every_byte(backup: Path, tmp_path: Path, tool: str) -> None:
    path, copy = backup / "disks/vda.raw", tmp_path / "vda.raw"
    commands = {
        "cat": f"cat {path} > {copy}",
        "rsync": f"rsync -S {path} {copy}",
        "tar": f"tar -C {path.parent} -S -cf - {path.name} | tar -C {tmp_path} -xf -",
        "dd": f"dd if={path} of={copy} bs=1M conv=sparse status=none",
        "qemu-img": f"qemu-img convert -f raw -O raw {path} {copy}",
    }
    if tool == "shutil":
        shutil.copyfile(path, copy)
    else:
        sh(commands[tool])
    assert digest(copy) == digest(path)


def test_second_backup_is_refused_at_once(guest: Guest, backup: Path) -> None:  # row 56
    with raises_errno(errno.EBUSY):
        (backup.parent / "two").mkdir()
    with raises_errno(errno.EEXIST):
        backup.mkdir()
    line = (backup / "../../error").read_text().splitlines()[-1]
    assert "EBUSY" in line and "backup 'now' is running since" in line
    assert "end it with rmdir backups/now" in line


def test_backup_of_another_program_is_in_the_way(guest: Guest, mnt: Mount,
                                                 foreign_backup: None) -> None:  # row 56
    with raises_errno(errno.EBUSY):
        (collection(mnt, guest) / "now").mkdir()
    assert "another program" in (mnt.domains / guest.name / "error").read_text()
    assert "kind: backup" in (mnt.domains / guest.name / "job").read_text()


@pytest.fixture
def foreign_backup(guest: Guest) -> Iterator[None]:
    directory = Path(os.environ["BED_DIR"]) / "images" / "foreign"
    directory.mkdir()
    shutil.chown(directory, "libvirt-qemu", "libvirt-qemu")
    guest.domain.backupBegin(f"""<domainbackup mode='pull'>
        <server transport='unix' socket='{directory}/nbd'/>
        <disks><disk name='vda' backup='yes' type='file'>
        <scratch file='{directory}/scratch'/></disk></disks></domainbackup>""", None)
    yield
    guest.domain.abortJob()
    wait_for(lambda: not guest.has_job(), 40, "the foreign job is gone")
    shutil.rmtree(directory)


def test_rmdir_waits_for_the_reader(guest: Guest, backup: Path) -> None:
    with (backup / "disks/vda.raw").open("rb") as file:
        file.read(4096)
        with raises_errno(errno.EBUSY):
            backup.rmdir()
        assert str(os.getpid()) in (backup / "error").read_text()
        (backup / "control").write_text("end force\n")
        wait_for(lambda: not backup.exists(), 10, "ended")
        with raises_errno(errno.EIO):
            os.pread(file.fileno(), 4096, 128 * MIB)
    assert not guest.has_job()


def test_two_readers_share_a_disk(backup: Path, tmp_path: Path) -> None:  # row 55
    path = backup / "disks/vda.raw"
    copies = [tmp_path / f"copy{i}" for i in range(4)]
    processes = [subprocess.Popen(["cp", str(path), str(copy)]) for copy in copies]
    assert [p.wait(60) for p in processes] == [0] * 4
    assert len({digest(copy) for copy in copies}) == 1


def test_new_backup_of_an_old_name_shows_no_old_page(guest: Guest, mnt: Mount,
                                                     tmp_path: Path) -> None:  # row 44
    now = collection(mnt, guest) / "now"
    digests = []
    for i in range(2):
        guest.run(f"dd if=/dev/urandom of=/data/page bs=1M count=8; sync; echo {i}")
        now.mkdir()
        digests.append(digest(now / "disks/vda.raw"))
        now.rmdir()
    guest.run("rm /data/page")
    assert digests[0] != digests[1]


@pytest.mark.parametrize("how", ["destroy", "shutdown", "kill"])
def test_machine_stops_under_a_reader(make_guest, mnt: Mount, how: str) -> None:  # rows 63, 65
    guest = make_guest()
    now = collection(mnt, guest) / "now"
    now.mkdir()
    with (now / "disks/vda.raw").open("rb") as file:
        assert len(file.read(4096)) == 4096
        if how == "kill":
            os.kill(guest.qemu_pid(), signal.SIGKILL)
        elif how == "destroy":
            guest.destroy()
        else:
            guest.shutdown()
        wait_for(guest.is_off, 30, "off")
        wait_for(lambda: text(now / "state").startswith("failed"), 10, "failed")
        with raises_errno(errno.EIO):
            os.pread(file.fileno(), 4096, 200 * MIB)
    assert "stopped" in text(now / "state")
    assert "EIO" in (now / "error").read_text()
    now.rmdir()
    assert not now.exists()


def test_libvirtd_restarts_in_mid_stream(guest: Guest, mnt: Mount, backup: Path) -> None:  # row 64
    path = backup / "disks/vda.raw"
    expected = digest(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    sha = hashlib.sha256()
    buffer = mmap.mmap(-1, MIB)             # aligned, as O_DIRECT wants it
    for index in range(256):
        if index == 64:
            libvirtd("restart")
        assert os.preadv(descriptor, [buffer], index * MIB) == MIB
        sha.update(buffer)
    os.close(descriptor)
    assert sha.hexdigest() == expected
    wait_for(lambda: "connected: yes" in (mnt.path / ".vmsnapfs/stats").read_text(), 15,
             "connected again")
    assert text(backup / "state") == "running"
    backup.rmdir()


def test_removable_media_are_left_out(make_guest, mnt: Mount) -> None:
    guest = make_guest(Disk(), Disk("sda", "raw", options="device=cdrom", size=2 * MIB, fs=False))
    now = collection(mnt, guest) / "now"
    now.mkdir()
    assert [p.name for p in (now / "disks").iterdir()] == ["vda.raw"]
    assert "'sda' (cdrom) is left out" in (mnt.domains / guest.name / "error").read_text()
    now.rmdir()


def test_backup_verb_with_options(guest2: Guest, mnt: Mount) -> None:
    domain = mnt.domains / guest2.name
    scratch = Path(os.environ["BED_DIR"]) / "images" / "scratch"
    scratch.mkdir()
    scratch.chmod(0o711)
    (domain / "control").write_text(f"backup part only=vdb scratch={scratch}\n")
    part = domain / "backups/part"
    assert [p.name for p in (part / "disks").iterdir()] == ["vdb.raw"]
    assert str(scratch) in (part / "backup.xml").read_text()
    part.rmdir()
    assert not list(scratch.iterdir())
    scratch.rmdir()
    for line, number in (("backup x only=vdz", errno.EINVAL), ("backup latest", errno.EINVAL),
                         ("backup x scratch=/nonexistent", errno.ENOENT)):
        with raises_errno(number):
            (domain / "control").write_text(line + "\n")
    assert not list((domain / "backups").iterdir())


def test_suspend_and_resume(guest: Guest, mnt: Mount) -> None:
    control = mnt.domains / guest.name / "control"
    state = mnt.domains / guest.name / "state"
    control.write_text("suspend\n")
    assert text(state) == "paused" and guest.state == libvirt.VIR_DOMAIN_PAUSED
    with raises_errno(errno.EINVAL):
        control.write_text("suspend\n")
    control.write_text("resume\n")
    assert text(state) == "running" and guest.is_running()


def test_scratch_without_room_is_refused(guest: Guest, mount) -> None:
    mnt = mount("qemu:///system", "scratch-reserve=1000000G")
    with raises_errno(errno.ENOSPC):
        (collection(mnt, guest) / "now").mkdir()
    assert "reserve" in (mnt.domains / guest.name / "error").read_text()


def test_scratch_that_qemu_cannot_enter(guest: Guest, mount) -> None:  # row 59
    closed = Path(os.environ["BED_DIR"]) / "images" / "closed"
    closed.mkdir(mode=0o700)
    mnt = mount()
    with raises_errno(errno.EACCES, errno.EIO):
        (mnt.domains / guest.name / "control").write_text(f"backup now scratch={closed}\n")
    assert str(closed) in (mnt.domains / guest.name / "error").read_text()
    assert not guest.has_job() and not list(closed.iterdir())
    closed.rmdir()


def test_session_of_a_user() -> None:
    """All of it without privileges: the user's own libvirtd, directories and mount."""
    home = bed_dir() / "home" / "nobody"
    home.mkdir()
    for name in ("run", "mnt", "log"):
        (home / name).mkdir(mode=0o700)
    shutil.copy(REPO / "tests" / "session.sh", home / "session.sh")
    sh(["chown", "-R", "nobody:nogroup", str(home)])
    sh(["install", "-d", "-o", "nobody", "-g", "nogroup", "-m", "755", str(home / "bin")])
    shutil.copy(VMSNAPFS, home / "bin")
    done = sh(["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups",
               "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", f"HOME={home}",
               f"XDG_RUNTIME_DIR={home}/run", f"BED_DIR={home}",
               f"GUEST_DIR={os.environ['GUEST_DIR']}",
               "sh", str(home / "session.sh"), str(home / "bin/vmsnapfs"), str(BED / "domain-xml")],
              check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    shutil.rmtree(home)
