# SPDX-License-Identifier: LGPL-2.1-or-later
"""Freeze and thaw: no guest stays frozen, whatever dies (rows 3, 93 to 105)."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from bed import Guest, Mount, libvirtd, raises_errno, sh, wait_for
from test_backup import collection, digest, text
from test_recovery import job_files, kill, remount


def is_frozen(guest: Guest) -> bool:
    return guest.command("guest-fsfreeze-status") == "frozen"


def is_thawed(guest: Guest) -> bool:
    return guest.command("guest-fsfreeze-status") == "thawed"


def control(mnt: Mount, guest: Guest) -> Path:
    return mnt.domains / guest.name / "control"


def last_error(mnt: Mount, guest: Guest) -> str:
    return (mnt.domains / guest.name / "error").read_text().splitlines()[-1]


def test_mkdir_freezes_and_thaws(guest: Guest, mnt: Mount) -> None:
    now = collection(mnt, guest) / "now"
    now.mkdir()
    assert text(now / "consistency") == "filesystem"
    assert "frozen-ms: " in (now / "job").read_text()
    assert 0 < int(os.getxattr(now, "user.vmsnapfs.frozen_ms")) < 5000
    assert is_thawed(guest)
    now.rmdir()


# What freezes a Windows guest is VSS; the agent says which system it runs on.
def test_vss_is_application_consistent(make_guest, mnt: Mount) -> None:
    guest = make_guest()
    guest.run("echo ID=mswindows > /etc/os-release")
    now = collection(mnt, guest) / "now"
    now.mkdir()
    assert text(now / "consistency") == "application"
    now.rmdir()
    control(mnt, guest).write_text("freeze timeout=30\n")
    now.mkdir()
    assert text(now / "consistency") == "application"
    now.rmdir()
    control(mnt, guest).write_text("thaw\n")
    for line in ("ID=debian", "ID=windows", 'ID="mswindows-like"', ""):
        guest.run(f"echo '{line}' > /etc/os-release")
        now.mkdir()
        assert text(now / "consistency") == "filesystem", line
        now.rmdir()


def test_freeze_by_command_holds_for_the_backup(guest2: Guest, mnt: Mount) -> None:
    now = collection(mnt, guest2) / "now"
    for mount_point, expected in (("", "filesystem"), (" /data", "crash")):
        control(mnt, guest2).write_text(f"freeze timeout=30{mount_point}\n")
        now.mkdir()
        assert text(now / "consistency") == expected
        now.rmdir()
        control(mnt, guest2).write_text("thaw\n")


def test_quiesce_off_is_crash_consistent(guest: Guest, mount) -> None:
    mnt = mount("qemu:///system", "quiesce=off")
    now = collection(mnt, guest) / "now"
    now.mkdir()
    assert text(now / "consistency") == "crash"
    now.rmdir()
    control(mnt, guest).write_text("backup now quiesce=require\n")
    assert text(now / "consistency") == "filesystem"
    now.rmdir()


def test_no_agent(make_guest, mount) -> None:                                      # row 93
    guest = make_guest(agent=False)
    mnt = mount()
    now = collection(mnt, guest) / "now"
    now.mkdir()
    assert text(now / "consistency") == "crash"
    now.rmdir()
    with raises_errno(errno.EHOSTDOWN):
        control(mnt, guest).write_text("backup now quiesce=require\n")
    assert "guest agent" in last_error(mnt, guest)
    assert not guest.has_job() and not job_files()


def test_paused_guest_is_not_asked(guest: Guest, mnt: Mount) -> None:              # row 104
    guest.suspend()
    now = collection(mnt, guest) / "now"
    now.mkdir()
    assert text(now / "consistency") == "crash"
    now.rmdir()
    with raises_errno(errno.EINVAL):
        control(mnt, guest).write_text("freeze\n")
    guest.resume()


def test_freeze_and_thaw_by_command(guest: Guest, mnt: Mount) -> None:             # row 105
    control(mnt, guest).write_text("freeze timeout=60\n")
    assert is_frozen(guest)
    assert "kind: freeze" in (mnt.domains / guest.name / "job").read_text()
    with raises_errno(errno.EBUSY):
        control(mnt, guest).write_text("freeze\n")
    now = collection(mnt, guest) / "now"
    now.mkdir()
    assert text(now / "consistency") == "filesystem"
    assert is_frozen(guest), "the command holds it, not the mkdir"
    now.rmdir()
    control(mnt, guest).write_text("thaw\n")
    assert is_thawed(guest)
    control(mnt, guest).write_text("thaw\n")


def test_freeze_ends_by_itself(guest: Guest, mnt: Mount) -> None:
    control(mnt, guest).write_text("freeze timeout=1\n")
    assert is_frozen(guest)
    wait_for(lambda: is_thawed(guest), 5, "thawed")
    wait_for(lambda: not job_files(), 5, "no mark in the journal")
    control(mnt, guest).write_text("freeze timeout=1\n")
    control(mnt, guest).write_text("thaw\n")


@pytest.mark.parametrize("line", ["freeze timeout=0", "freeze timeout=61", "freeze timeout=x",
                                  "thaw now", "backup x quiesce=maybe"])
def test_bad_words(guest: Guest, mnt: Mount, line: str) -> None:
    with raises_errno(errno.EINVAL):
        control(mnt, guest).write_text(line + "\n")
    assert is_thawed(guest)


def test_one_mount_point(guest2: Guest, mnt: Mount) -> None:
    control(mnt, guest2).write_text("freeze /data2\n")
    other, changed = guest2.disk_path("vda"), guest2.disk_path("vda").stat().st_mtime_ns
    wait_for(lambda: other.stat().st_mtime_ns != changed, 10, "the other one is written to")
    control(mnt, guest2).write_text("thaw\n")
    with raises_errno(errno.EINVAL):
        control(mnt, guest2).write_text("freeze /nowhere\n")
    assert "no such file system" in last_error(mnt, guest2)
    wait_for(lambda: is_thawed(guest2), 5, "thawed")


@pytest.fixture
def frozen_by_another(guest: Guest) -> Iterator[None]:
    guest.domain.fsFreeze()
    yield
    guest.domain.fsThaw()


def test_frozen_by_another_is_left_so(guest: Guest, mnt: Mount,
                                      frozen_by_another: None) -> None:            # row 95
    with raises_errno(errno.EBUSY):
        control(mnt, guest).write_text("freeze\n")
    with raises_errno(errno.EBUSY):
        control(mnt, guest).write_text("backup now quiesce=require\n")
    now = collection(mnt, guest) / "now"
    now.mkdir()
    assert is_frozen(guest)
    assert text(now / "consistency") == "crash"
    now.rmdir()
    wait_for(lambda: not job_files(), 5, "no mark in the journal")


CRASHES = {"freeze:call:after", "backup-begin:frozen:after", "freeze:thaw:after"}


@pytest.mark.parametrize("point", sorted(CRASHES))
def test_daemon_dies_while_the_guest_is_frozen(guest: Guest, mount, point: str) -> None:  # row 3
    mnt = mount("qemu:///system", env={"VMSNAPFS_CRASH_AT": point})
    mnt.expected_exit = -signal.SIGKILL
    with raises_errno(errno.ENOTCONN, errno.ECONNABORTED):
        (collection(mnt, guest) / "now").mkdir()
    assert mnt.process.wait(10) == -signal.SIGKILL, "no such crash point"
    wait_for(lambda: is_thawed(guest), 10, "thawed by the watchdog")
    again = remount(mount, mnt)
    assert not list(collection(again, guest).iterdir())
    wait_for(lambda: not job_files() and not guest.has_job(), 5, "nothing left")


def test_held_freeze_ends_with_the_daemon(guest: Guest, mount) -> None:
    mnt = mount()
    control(mnt, guest).write_text("freeze timeout=60\n")
    kill(mnt)
    wait_for(lambda: is_thawed(guest), 10, "thawed by the watchdog")
    again = remount(mount, mnt)
    wait_for(lambda: not job_files(), 5, "no mark in the journal")
    control(again, guest).write_text("freeze timeout=60\n")
    again.signal(signal.SIGTERM)
    assert again.process.wait(30) == 0
    assert is_thawed(guest) and not job_files()


def marks() -> list[Path]:
    return [p for p in job_files() if p.name.endswith(".frozen")]


def answers(guest: Guest) -> bool:
    with contextlib.suppress(libvirt.libvirtError):
        guest.command("guest-ping", timeout=2)
        return True
    return False


# libvirt 9.0 then waits 30 s for the backup, which it would end itself but for that, and
# has lost the agent.
def test_guest_is_rebooted_during_a_backup(make_guest, mnt: Mount) -> None:        # row 102
    guest = make_guest()
    now = collection(mnt, guest) / "now"
    control(mnt, guest).write_text("freeze timeout=60\n")
    now.mkdir()
    assert text(now / "consistency") == "filesystem"
    guest.domain.reset()
    wait_for(lambda: not answers(guest), 20, "it boots")
    control(mnt, guest).write_text("thaw\n")
    assert not marks(), "a guest that was reset is thawed"
    with raises_errno(errno.EHOSTDOWN):
        control(mnt, guest).write_text("freeze\n")
    assert "restart libvirtd" in last_error(mnt, guest) and not marks()

    def ended() -> bool:
        with contextlib.suppress(OSError):
            now.rmdir()
        return not now.exists()
    wait_for(ended, 60, "ended")
    # A later backup is made all the same, and says what it lacks.
    now.mkdir()
    if not answers(guest):
        assert text(now / "consistency") == "crash"
        assert "not frozen: libvirt has lost the guest agent" in last_error(mnt, guest)
    now.rmdir()
    assert not job_files()
    libvirtd("restart")
    guest.wait_agent()
    wait_for(lambda: "connected: yes" in (mnt.path / ".vmsnapfs/stats").read_text(), 30, "again")
    now.mkdir()
    assert text(now / "consistency") == "filesystem"
    now.rmdir()


def watchdogs() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (entry / "comm").exists():
            if (entry / "comm").read_text().strip() == "vmsnapfs-thaw":
                found.append(int(entry.name))
    return found


def test_daemon_and_watchdog_die(guest: Guest, mount) -> None:                     # row 100
    mnt = mount()
    (watchdog,) = watchdogs()
    control(mnt, guest).write_text("freeze timeout=60\n")
    os.kill(watchdog, signal.SIGKILL)
    kill(mnt)
    assert is_frozen(guest)
    remount(mount, mnt)
    wait_for(lambda: is_thawed(guest), 5, "thawed by the next start")
    wait_for(lambda: not job_files(), 5, "no mark in the journal")


def test_guest_that_hangs_holds_up_no_other(make_guest, mnt: Mount) -> None:
    """Its watchdog is the others', too."""
    hung, other = make_guest(), make_guest()
    hung.run("(sleep 2; kill -STOP $(pidof qemu-ga); sleep 12; kill -CONT $(pidof qemu-ga)) "
             ">/dev/null 2>&1 &")
    control(mnt, hung).write_text("freeze timeout=3\n")
    now = collection(mnt, other) / "now"
    until = time.monotonic() + 14
    while time.monotonic() < until:
        now.mkdir()
        assert text(now / "consistency") == "filesystem"
        now.rmdir()
    wait_for(lambda: is_thawed(hung), 20, "thawed")
    wait_for(lambda: not marks() and len(watchdogs()) == 1, 30, "at rest")


def test_no_freeze_without_a_watchdog(guest: Guest, mnt: Mount) -> None:
    (watchdog,) = watchdogs()
    os.kill(watchdog, signal.SIGKILL)
    with raises_errno(errno.EIO):
        control(mnt, guest).write_text("freeze\n")
    assert is_thawed(guest)
    now = collection(mnt, guest) / "now"
    now.mkdir()
    assert text(now / "consistency") == "crash"
    now.rmdir()


def test_agent_dies_while_frozen(make_guest, mnt: Mount) -> None:                  # row 101
    guest = make_guest()
    guest.run("(sleep 2; kill -9 $(pidof qemu-ga)) >/dev/null 2>&1 &")
    control(mnt, guest).write_text("freeze timeout=4\n")
    wait_for(lambda: "thaw" in (mnt.domains / guest.name / "error").read_text(), 30, "told")
    sh(["virsh", "-c", "qemu:///system", "destroy", guest.name])
    wait_for(lambda: not job_files(), 40, "a machine that is off is not frozen")


def lose_the_agent(guest: Guest, now: Path, control: Path) -> None:
    """The guest is frozen and a backup runs when its agent is killed; it is started again."""
    guest.run("(sleep 2; kill -9 $(pidof qemu-ga)) >/dev/null 2>&1 &")
    control.write_text("freeze timeout=60\n")
    now.mkdir()
    wait_for(lambda: not answers(guest), 20, "libvirt has lost the agent")


def thaw_by_command(guest: Guest, mnt: Mount) -> None:
    control(mnt, guest).write_text("thaw\n")


def kill_daemon(_: Guest, mnt: Mount) -> None:
    kill(mnt)


def kill_both(guest: Guest, mnt: Mount) -> None:
    (watchdog,) = watchdogs()
    os.kill(watchdog, signal.SIGKILL)
    kill(mnt)


# By whom it is thawed: the daemon, the watchdog, the next start.
@pytest.mark.parametrize("thaw", [thaw_by_command, kill_daemon, kill_both])
def test_libvirt_loses_the_agent_of_a_frozen_guest(make_guest, mount, thaw) -> None:  # row 101
    """libvirt cannot thaw it, and needs a restart for anything but that."""
    guest, mnt = make_guest(writer=True), mount()
    image, now = guest.disk_path("vda"), collection(mnt, guest) / "now"
    lose_the_agent(guest, now, control(mnt, guest))
    with pytest.raises(libvirt.libvirtError):
        guest.domain.fsThaw()
    frozen = image.stat().st_mtime_ns
    thaw(guest, mnt)
    if thaw in (kill_daemon, kill_both):
        if thaw == kill_daemon:
            wait_for(lambda: image.stat().st_mtime_ns != frozen, 10, "it writes on")
        mnt = remount(mount, mnt)
    wait_for(lambda: image.stat().st_mtime_ns != frozen, 15, "it writes on")
    wait_for(lambda: not marks(), 20, "no mark in the journal")
    if thaw != kill_daemon:
        assert "thawed without libvirt" in (mnt.domains / guest.name / "error").read_text()
    libvirtd("kill")           # a stop would wait for the thread that waits, 30 s
    libvirtd("start")
    guest.wait_agent()
    assert is_thawed(guest)
    wait_for(lambda: "connected: yes" in (mnt.path / ".vmsnapfs/stats").read_text(), 30, "again")
    now = collection(mnt, guest) / "now"
    assert digest(now / "disks/vda.raw")         # the backup has noticed nothing
    now.rmdir()
    now.mkdir()
    assert text(now / "consistency") == "filesystem"
    now.rmdir()
    assert not job_files()
