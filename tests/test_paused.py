# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines that are off, used by a paused start: off again after it, and never another's."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import libvirt
import pytest

import bed
from bed import MIB, Disk, Guest, Mount, check_ext4, libvirtd, raises_errno, sh, wait_for
from fsutil import last_failure
from test_backup import collection, digest, text
from test_recovery import job_files, kill, names, remount

PAUSED = "offline=paused"
AUTOSTARTED = Path("/run/libvirt/qemu/autostarted")
QEMU_URI = "qemu:///system"


def holders() -> list[int]:
    """The processes that hold machines."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cmdline").read_bytes().startswith(b"vmsnapfs-hold\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def resume(guest: Guest) -> None:
    """As by somebody else; until the guest has written to its disk."""
    guest.domain.resume()
    wait_for(lambda: guest.domain.blockStats("vda")[2] > 0, 60, "the guest has written")


def start_backup(mnt: Mount, guest: Guest, name: str = "now") -> Path:
    path = collection(mnt, guest) / name
    path.mkdir()
    assert text(path / "state") == "running"
    return path


@pytest.fixture
def machine(off_guest) -> Guest:
    # An agent that comes up during a backup has libvirt wait 30 s for the backup's end.
    return off_guest(Disk(), Disk("vdb", "raw", size=64 * MIB), writer=True, agent=False)


def test_backup_of_an_off_machine(machine: Guest, mount, tmp_path: Path) -> None:
    mnt = mount(QEMU_URI, PAUSED)
    domain = mnt.domains / machine.name
    before = {t: tmp_path / f"before.{t}" for t in ("vda", "vdb")}
    for disk in machine.disks:
        sh(["qemu-img", "convert", "-O", "raw", "-f", disk.format,
            str(machine.disk_path(disk.target)), str(before[disk.target])])
    now = start_backup(mnt, machine)
    assert text(now / "consistency") == "offline"
    assert text(domain / "state") == "paused"
    job = text(domain / "job")
    assert "object: backups/now" in job
    assert f"held, paused, by vmsnapfs (pid {mnt.pid}) for backup 'now' since" in job
    assert "held, paused, by vmsnapfs" in last_failure(domain).text
    assert len(holders()) == 1
    for target, reference in before.items():
        copy = tmp_path / f"{target}.raw"
        sh(["cp", "--sparse=auto", str(now / f"disks/{target}.raw"), str(copy)])
        assert digest(copy) == digest(reference)
        check_ext4(copy)
    now.rmdir()
    assert machine.is_off() and text(domain / "state") == "shutoff"
    assert text(domain / "job") == ""
    assert not job_files()
    wait_for(lambda: not holders(), 5, "the holder has ended")


def test_image_is_the_default_and_a_command_can_say_otherwise(machine: Guest, mnt: Mount) -> None:
    now = start_backup(mnt, machine)
    assert machine.is_off() and not holders()
    now.rmdir()
    control = mnt.domains / machine.name / "control"
    with raises_errno(errno.EINVAL):
        control.write_text("backup now offline=running\n")
    assert "offline is image or paused" in last_failure(mnt.domains / machine.name).text
    control.write_text("backup now offline=paused only=vda\n")
    assert machine.state == libvirt.VIR_DOMAIN_PAUSED
    now.rmdir()
    assert machine.is_off()


def test_others_cannot_start_it_and_are_told(machine: Guest, mount) -> None:
    mnt = mount(QEMU_URI, PAUSED)
    domain = mnt.domains / machine.name
    now = start_backup(mnt, machine)
    # libvirt has it wait for the backup's job, 30 s, before it says "already running".
    other = subprocess.Popen(["virsh", "-c", QEMU_URI, "start", machine.name],
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for verb in ("resume", "suspend"):
        with raises_errno(errno.EBUSY):
            (domain / "control").write_text(f"{verb}\n")
        assert "held, paused, by vmsnapfs" in last_failure(domain).text
    with raises_errno(errno.EBUSY):
        (now.parent / "two").mkdir()
    assert "the machine, which is off, is held paused for it" in last_failure(domain).text
    assert text(now / "state") == "running" and other.poll() is None
    now.rmdir()
    answer, _ = other.communicate(timeout=60)
    if other.returncode == 0:                        # after it was off again
        assert machine.is_running()
    else:
        assert "already" in answer and machine.is_off()


def test_somebody_resumes_it_and_keeps_it(machine: Guest, mount, tmp_path: Path) -> None:
    mnt = mount(QEMU_URI, PAUSED)
    now = start_backup(mnt, machine)
    expected = digest(now / "disks/vda.raw")
    resume(machine)
    copy = tmp_path / "copy"
    sh(["cp", "--sparse=auto", str(now / "disks/vda.raw"), str(copy)])
    assert digest(copy) == expected
    now.rmdir()
    assert machine.is_running() and not machine.has_job()
    assert "somebody resumed the machine" in last_failure(mnt.domains / machine.name).text
    wait_for(lambda: not holders(), 5, "the holder has ended")
    mnt.signal(signal.SIGTERM)
    mnt.process.wait(30)
    libvirtd("restart")
    assert machine.is_running(), "tied to no process"
    machine.destroy()


def test_resumed_and_suspended_again_is_left_alone(machine: Guest, mount) -> None:
    mnt = mount(QEMU_URI, PAUSED)
    now = start_backup(mnt, machine)
    resume(machine)
    machine.domain.suspend()
    now.rmdir()
    assert machine.state == libvirt.VIR_DOMAIN_PAUSED


def test_killed_daemon_turns_it_off(machine: Guest, mount) -> None:
    mnt = mount(QEMU_URI, PAUSED)
    start_backup(mnt, machine)
    kill(mnt)
    wait_for(machine.is_off, 10, "off without the daemon")
    wait_for(lambda: not holders(), 5, "the holder has ended")
    again = remount(mount, mnt)
    assert not names(collection(again, machine)) and not job_files()


def test_killed_daemon_that_is_back_at_once(machine: Guest, mount) -> None:
    """The next start finds the machine on its way down, and does not take it for a backup."""
    mnt = mount(QEMU_URI, PAUSED)
    start_backup(mnt, machine)
    holder, = holders()
    os.kill(holder, signal.SIGSTOP)
    kill(mnt)
    sh(["umount", "-l", str(mnt.path)])
    os.kill(holder, signal.SIGCONT)
    again = mount(QEMU_URI, PAUSED)
    wait_for(machine.is_off, 10, "off")
    wait_for(lambda: not job_files(), 10, "nothing left")
    assert not names(collection(again, machine))
    start_backup(again, machine).rmdir()
    assert machine.is_off()


def test_killed_daemon_and_holder(machine: Guest, mount) -> None:
    mnt = mount(QEMU_URI, PAUSED)
    start_backup(mnt, machine)
    holder, = holders()
    os.kill(holder, signal.SIGKILL)
    kill(mnt)
    assert machine.state == libvirt.VIR_DOMAIN_PAUSED
    again = remount(mount, mnt)
    wait_for(lambda: machine.is_off() and not job_files(), 10, "the next start turned it off")
    assert not names(collection(again, machine))


def test_killed_holder(machine: Guest, mount) -> None:
    mnt = mount(QEMU_URI, PAUSED)
    now = start_backup(mnt, machine)
    expected = digest(now / "disks/vda.raw")
    holder, = holders()
    os.kill(holder, signal.SIGKILL)
    wait_for(lambda: not holders(), 5, "killed")
    assert digest(now / "disks/vda.raw") == expected
    now.rmdir()
    assert machine.is_off() and not job_files()


@pytest.mark.parametrize("also_holder", [False, True])
def test_killed_daemon_never_takes_a_resumed_machine(machine: Guest, mount,
                                                     also_holder: bool) -> None:
    mnt = mount(QEMU_URI, PAUSED)
    now = start_backup(mnt, machine)
    expected = digest(now / "disks/vda.raw")
    resume(machine)
    if also_holder:
        os.kill(holders()[0], signal.SIGKILL)
    kill(mnt)
    wait_for(lambda: not holders(), 10, "the holder has ended")
    assert machine.is_running()
    # It is an ordinary running machine now, and its backup is given back.
    again = remount(mount, mnt)
    now = collection(again, machine) / "now"
    assert digest(now / "disks/vda.raw") == expected
    now.rmdir()
    assert machine.is_running() and not job_files()


def test_destroyed_by_somebody(machine: Guest, mount) -> None:
    mnt = mount(QEMU_URI, PAUSED)
    now = start_backup(mnt, machine)
    machine.destroy()
    wait_for(lambda: text(now / "state").startswith("failed"), 10, "failed")
    assert "stopped" in text(now / "state")
    machine.domain.create()                          # it is his from now on
    now.rmdir()
    assert machine.is_running()
    wait_for(lambda: not holders(), 5, "the holder has ended")


def test_libvirtd_restarts_under_it(machine: Guest, mount) -> None:
    mnt = mount(QEMU_URI, PAUSED)
    now = start_backup(mnt, machine)
    expected = digest(now / "disks/vda.raw")
    libvirtd("restart")
    assert machine.state == libvirt.VIR_DOMAIN_PAUSED
    assert digest(now / "disks/vda.raw") == expected
    wait_for(lambda: "connected: yes" in (mnt.path / ".vmsnapfs/stats").read_text(), 15,
             "connected again")
    now.rmdir()
    assert machine.is_off() and not job_files()


def test_unmount_ends_it(machine: Guest, mount) -> None:
    mnt = mount(QEMU_URI, PAUSED)
    start_backup(mnt, machine)
    mnt.signal(signal.SIGTERM)
    assert mnt.process.wait(30) == 0
    assert machine.is_off() and not job_files()


### Refused before anything is touched

def refused(mnt: Mount, guest: Guest, number: int, sentence: str) -> None:
    directory = collection(mnt, guest)
    with raises_errno(number):
        (directory / "now").mkdir()
    assert sentence in last_failure(mnt.domains / guest.name).text
    assert guest.is_off() and not holders() and not job_files()
    assert not names(directory)


def test_managed_save_image_is_refused_and_kept(make_guest, mount) -> None:
    guest = make_guest(writer=True)
    guest.run("echo alive > /tmp/memory")
    guest.domain.managedSave()
    mnt = mount(QEMU_URI, PAUSED)
    refused(mnt, guest, errno.EBUSY, "has a managed save image, which a start would use up")
    assert guest.domain.hasManagedSaveImage()
    guest.start()
    assert guest.run("cat /tmp/memory") == "alive\n", "its memory was kept"


def test_pending_autostart_is_refused(machine: Guest, mount) -> None:
    machine.domain.setAutostart(True)
    mnt = mount(QEMU_URI, PAUSED)
    AUTOSTARTED.unlink()
    try:
        refused(mnt, machine, errno.EBUSY, "about to start the machine by itself (autostart)")
    finally:
        AUTOSTARTED.touch()
    start_backup(mnt, machine).rmdir()               # that time is over until the next boot
    machine.domain.setAutostart(False)


def test_host_devices_are_refused(machine: Guest, mount) -> None:
    xml = machine.xml(inactive=True)
    xml.find("devices").append(ET.fromstring(
        "<hostdev mode='subsystem' type='pci' managed='yes'><source>"
        "<address domain='0' bus='0' slot='0x1f' function='0'/></source></hostdev>"))
    bed.connection().defineXML(ET.tostring(xml).decode())
    refused(mount(QEMU_URI, PAUSED), machine, errno.EOPNOTSUPP,
            "has devices of the host passed through")


def test_start_that_fails_leaves_nothing(machine: Guest, mount) -> None:
    machine.disk_path("vdb").unlink()
    mnt = mount(QEMU_URI, PAUSED)
    directory = collection(mnt, machine)
    with raises_errno(errno.ENOENT, errno.EIO):
        (directory / "now").mkdir()
    assert "vdb" in last_failure(mnt.domains / machine.name).text
    assert machine.is_off() and not job_files()
    wait_for(lambda: not holders(), 5, "the holder has ended")


### A crash at each step

POINTS = [*(f"paused:{p}" for p in ("record:after", "start:before", "start:after")),
          *(f"backup-begin:{s}:{w}" for s in ("hold", "directories", "begin", "list")
            for w in ("before", "after"))]
ENDS = ["paused:end:before", "paused:end:after", "backup-end:abort:before"]
CRASHES = {*POINTS, *ENDS}


@pytest.mark.parametrize("point", POINTS)
def test_crash_in_begin(machine: Guest, mount, point: str) -> None:
    mnt = mount(QEMU_URI, PAUSED, env={"VMSNAPFS_CRASH_AT": point})
    mnt.expected_exit = -signal.SIGKILL
    with raises_errno(errno.ENOTCONN, errno.ECONNABORTED):
        (collection(mnt, machine) / "now").mkdir()
    assert mnt.process.wait(10) == -signal.SIGKILL, "no such crash point"
    again = remount(mount, mnt)
    wait_for(lambda: machine.is_off() and not holders() and not job_files(), 15, "as before")
    assert not names(collection(again, machine))


@pytest.mark.parametrize("point", ENDS)
def test_crash_in_end(machine: Guest, mount, point: str) -> None:
    mnt = mount(QEMU_URI, PAUSED, env={"VMSNAPFS_CRASH_AT": point})
    mnt.expected_exit = -signal.SIGKILL
    now = start_backup(mnt, machine)
    with raises_errno(errno.ENOTCONN, errno.ECONNABORTED):
        now.rmdir()
    assert mnt.process.wait(10) == -signal.SIGKILL, "no such crash point"
    again = remount(mount, mnt)
    wait_for(lambda: machine.is_off() and not holders() and not job_files(), 15, "as before")
    assert not names(collection(again, machine))
