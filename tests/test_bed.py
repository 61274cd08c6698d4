# SPDX-License-Identifier: LGPL-2.1-or-later
"""The bed itself: guests, helpers, mounts and the leftovers check do their work."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import libvirt
import pytest

import bed
from bed import Disk, Guest, Mount, raises_errno, sh, wait_for
from conftest import MakeGuest, MakeMount, World


def make_program(path: Path, text: str) -> Path:
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(0o755)
    return path


@pytest.fixture
def socket_dir() -> Path:
    """A directory in which QEMU may make sockets and scratch files."""
    path = bed.bed_dir() / "tmp" / "backup"
    path.mkdir()
    shutil.chown(path, bed.QEMU_USER)
    yield path
    shutil.rmtree(path)


def test_guest_runs_commands(guest: Guest) -> None:
    assert guest.run("echo $((6 * 7)); uname -s") == "42\nLinux\n"
    with pytest.raises(AssertionError, match="exitcode.*3"):
        guest.run("exit 3")


def test_writer_writes(guest: Guest) -> None:
    first = guest.counter()
    wait_for(lambda: guest.counter() > first + 3, 10, "the counter goes up")


def test_agent_knows_and_freezes_the_file_system(guest: Guest) -> None:
    assert [entry[0] for entry in guest.domain.fsInfo()] == ["/data"]
    assert guest.domain.fsFreeze() == 1
    assert not guest.is_healthy()
    assert guest.domain.fsThaw() == 1
    assert guest.is_healthy()


def test_second_disk_is_there(guest2: Guest) -> None:
    mounts = guest2.run("cut -d' ' -f1,2 /proc/mounts").splitlines()
    assert "/dev/vda /data" in mounts and "/dev/vdb /data2" in mounts
    assert guest2.disk_path("vda").suffix == ".qcow2"
    assert guest2.disk_path("vdb").suffix == ".raw"


def test_pull_backup_is_a_good_copy(guest: Guest, socket_dir: Path) -> None:
    socket = socket_dir / "nbd.sock"
    guest.domain.backupBegin(
        f"""<domainbackup mode='pull'>
              <server transport='unix' socket='{socket}'/>
              <disks>
                <disk name='vda' backup='yes' type='file'>
                  <scratch file='{socket_dir}/scratch'/>
                </disk>
              </disks>
            </domainbackup>""",
        "<domaincheckpoint><name>cp</name></domaincheckpoint>")
    copy = socket_dir / "copy.raw"
    try:
        assert guest.has_job()
        sh(["nbdcopy", f"nbd+unix:///vda?socket={socket}", str(copy)])
    finally:
        guest.domain.abortJob()
        wait_for(lambda: not guest.has_job(), 10, "end of the backup job")
        guest.domain.checkpointLookupByName("cp").delete()
    bed.check_ext4(copy)
    sh(["e2fsck", "-fp", str(copy)], check=False)  # replays the journal
    assert 0 < int(bed.read_ext4(copy, "counter")) <= guest.counter()


@pytest.mark.parametrize("action", ["restart", "kill"])
def test_guest_survives_libvirtd(guest: Guest, action: str) -> None:
    pid = guest.qemu_pid()
    bed.libvirtd(action)
    if action == "kill":
        assert not bed.is_libvirtd_up()
        bed.libvirtd("start")
    assert guest.qemu_pid() == pid
    guest.wait_agent()


def test_power_button_ends_a_guest_with_a_scsi_disk(make_guest: MakeGuest) -> None:
    guest = make_guest(Disk("sda", options="bus=scsi"))
    guest.run("grep -q '^/dev/sda /data ' /proc/mounts && echo kept >/data/file")
    guest.domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
    wait_for(guest.is_off, 15, "power off")
    bed.check_ext4(guest.disk_path("sda"))
    raw = guest.dir / "raw"
    sh(["qemu-img", "convert", "-O", "raw", str(guest.disk_path("sda")), str(raw)])
    assert bed.read_ext4(raw, "file") == "kept\n"


def test_off_guest_has_its_disk(off_guest: MakeGuest, tmp_path: Path) -> None:
    (tmp_path / "hello").write_text("world\n")
    guest = off_guest(Disk("vda", "raw", size=64 * bed.MIB, tree=tmp_path),
                      Disk("vdb", cluster_size=4096, fs=False))
    assert guest.is_off()
    image = guest.disk_path("vda")
    assert image.stat().st_size == 64 * bed.MIB
    assert bed.read_ext4(image, "hello") == "world\n"
    info = sh(["qemu-img", "info", str(guest.disk_path("vdb"))]).stdout
    assert "cluster_size: 4096" in info


def test_mount_lives_and_ends(mount: MakeMount, tmp_path: Path,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    program = make_program(
        tmp_path / "fuse",
        'exec nbdfuse -r "${@: -1}" --command nbdkit -s null 1M\n')
    monkeypatch.setattr(bed, "VMSNAPFS", program)
    mounted = mount("test:///default")
    assert (mounted.path / "nbd").stat().st_size == bed.MIB
    mounted.finish()
    assert not mounted.is_mounted()
    mounted.path.mkdir()  # for the fixture's own finish()


def test_mount_that_dies_early_is_told(tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    program = make_program(tmp_path / "dies", "echo because >&2; exit 4\n")
    monkeypatch.setattr(bed, "VMSNAPFS", program)
    mounted = Mount("test:///default", "ro", "--debug")
    with pytest.raises(AssertionError, match="(?s)ended with 4.*because"):
        mounted.wait_mounted()
    with pytest.raises(AssertionError, match="exit code 4"):
        mounted.finish()
    assert mounted.argv[1:4] == ["-f", "--debug", "-o"]


@pytest.mark.parametrize("line", [
    "==1==ERROR: AddressSanitizer: heap-use-after-free",
    "fs.c:1:2: runtime error: signed integer overflow",
    "(process:1): GLib-GObject-WARNING **: invalid cast",
    "vmsnapfs: bug: request not answered",
])
def test_suspicious_output_fails(line: str, tmp_path: Path,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    program = make_program(tmp_path / "talks", f"echo {line!r}\n")
    monkeypatch.setattr(bed, "VMSNAPFS", program)
    with pytest.raises(AssertionError, match="suspicious"):
        Mount("test:///default").finish()


def test_leftovers_are_seen(off_guest: MakeGuest) -> None:
    before = World()
    sleeper = subprocess.Popen(["sleep", "1000"])
    file = Path("/run/vmsnapfs/somewhere/file")
    file.parent.mkdir(parents=True)
    file.touch()
    off_guest(name="stranger")
    left = World().more_than(before)
    sleeper.kill()
    sleeper.wait()
    shutil.rmtree(file.parent)
    assert left == [f"process {sleeper.pid}: sleep 1000", f"file {file}",
                    "domain stranger"]


def test_raises_errno() -> None:
    with raises_errno(errno.ENOENT, errno.ENOTDIR):
        os.stat("/no/such")
    with pytest.raises(AssertionError, match="ENOENT instead of EBUSY"):
        with raises_errno(errno.EBUSY):
            os.stat("/no/such")
    with pytest.raises(AssertionError, match="success instead of EBUSY"):
        with raises_errno(errno.EBUSY):
            pass


def test_wait_for_gives_up() -> None:
    with pytest.raises(AssertionError, match="not within 0.05 s: never"):
        wait_for(lambda: False, 0.05, "never")


def test_agent_shutdown(guest: Guest) -> None:
    guest.shutdown()
    assert guest.state == libvirt.VIR_DOMAIN_SHUTOFF
