# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory of a machine saved and restored, and the plain start."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest

import fsutil
from bed import Disk, Guest, Mount, raises_errno, wait_for
from fsutil import HungLibvirtd, hung, last_failure  # noqa: F401
from test_backup import collection, text


@pytest.fixture
def machine(guest: Guest) -> Guest:
    return guest


@pytest.fixture
def domain(machine: Guest, mnt: Mount) -> Path:
    return mnt.domains / machine.name


def refused(domain: Path, command: str, number: int, sentence: str) -> None:
    with raises_errno(number):
        (domain / "control").write_text(command + "\n")
    assert sentence in last_failure(domain).text


def remember(guest: Guest, word: str) -> None:
    """In the guest's memory alone."""
    guest.run(f"echo {word} > /tmp/word")


def word(guest: Guest) -> str:
    guest.wait_agent()
    return guest.run("cat /tmp/word").strip()


def test_managed_save_and_start(machine: Guest, domain: Path) -> None:
    remember(machine, "managed")
    counter = machine.counter()
    (domain / "control").write_text("save\n")
    assert machine.is_off() and text(domain / "state") == "shutoff"
    assert machine.domain.hasManagedSaveImage()
    refused(domain, "save", errno.EINVAL, "the domain is not running")
    refused(domain, "restore from=/nowhere", errno.EBUSY, "has a managed save image")
    (domain / "control").write_text("start\n")
    assert text(domain / "state") == "running" and not machine.domain.hasManagedSaveImage()
    assert word(machine) == "managed"
    wait_for(lambda: machine.counter() > counter, 20, "it goes on")
    refused(domain, "start", errno.EINVAL, "the domain is running already")
    refused(domain, "restore from=/nowhere", errno.EINVAL, "the domain is running already")


def test_save_to_a_file_and_restore(machine: Guest, domain: Path, tmp_path: Path,
                                    off_guest) -> None:
    remember(machine, "file")
    path = machine.dir / "memory"
    (domain / "control").write_text(f"save to={path}\n")
    assert machine.is_off() and not machine.domain.hasManagedSaveImage()
    assert path.stat().st_mode & 0o077 == 0
    other = off_guest()
    refused(domain.parent / other.name, f"restore from={path}", errno.EINVAL,
            f"holds the memory of another machine, '{machine.name}'")
    refused(domain, "restore from=/dev/../nowhere", errno.EINVAL,
            "from= is an absolute path without detours")
    refused(domain, "restore from=/nowhere", errno.ENOENT, "/nowhere")
    (domain / "control").write_text(f"restore from={path}\n")
    assert word(machine) == "file" and machine.is_healthy()
    refused(domain, f"save to={path}", errno.EEXIST, "exists")
    refused(domain, "save to=here", errno.EINVAL, "to= is an absolute path without detours")
    # Its guest has gone on: the memory does not fit to the disk any more.
    machine.run("sleep 3; sync", timeout=30)
    machine.destroy()
    refused(domain, f"restore from={path}", errno.EUCLEAN,
            "disk 'vda' was written to after the memory was saved")
    assert machine.is_off()
    (domain / "control").write_text("start\n")
    machine.wait_agent()
    path.unlink()


def test_paused_machine_comes_back_paused(machine: Guest, domain: Path) -> None:
    (domain / "control").write_text("suspend\n")
    path = machine.dir / "memory"
    (domain / "control").write_text(f"save to={path}\n")
    (domain / "control").write_text(f"restore from={path}\n")
    assert text(domain / "state") == "paused"
    (domain / "control").write_text("resume\n")
    assert machine.is_running()
    path.unlink()


class StoppedWriter:
    """libvirt's helper that writes the memory to the file, stopped as by a dead disk.

    A speed limit would not do: libvirt lifts it for a save.
    """

    def __init__(self) -> None:
        self.pid = 0

    def _stop(self) -> bool:
        libvirtd = Path("/run/libvirt/bed-libvirtd.pid").read_text().strip()
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                stat = (directory / "stat").read_text()
                if "(libvirt_iohelpe)" in stat and stat.split()[3] == libvirtd:
                    self.pid = int(directory.name)
                    os.kill(self.pid, signal.SIGSTOP)
                    return True
        return False

    def stop(self) -> None:
        wait_for(self._stop, 20, "a process writes the memory")

    def go_on(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)
            self.pid = 0


@pytest.fixture
def writer(mnt: Mount) -> Iterator[StoppedWriter]:
    """After the mount: what waits in it ends before."""
    stopped = StoppedWriter()
    yield stopped
    stopped.go_on()
    fsutil.Caller.end_all()


def migration(guest: Guest) -> str:
    """How QEMU calls what it does with the memory."""
    answer = libvirt_qemu.qemuMonitorCommand(guest.domain, '{"execute": "query-migrate"}', 0)
    return str(json.loads(answer)["return"].get("status"))


@pytest.mark.parametrize("place", ["managed", "file"])
def test_interrupted_save_lets_the_guest_run_on(machine: Guest, domain: Path,
                                                writer: StoppedWriter, place: str) -> None:
    path = machine.dir / "memory"
    remember(machine, "interrupted")
    counter = machine.counter()
    caller = fsutil.write(domain / "control",
                          f"save to={path}" if place == "file" else "save")
    writer.stop()
    wait_for(lambda: "percent: " in text(domain / "job"), 20, "progress")
    job = text(domain / "job")
    assert "object: save" in job and "bytes-total: " in job
    assert machine.state == libvirt.VIR_DOMAIN_PAUSED
    assert path.exists() == (place == "file")
    caller.process.send_signal(signal.SIGTERM)
    assert caller.process.wait(30) == -signal.SIGTERM
    wait_for(lambda: migration(machine) == "cancelling", 20, "aborted")
    writer.go_on()
    wait_for(lambda: text(domain / "job") == "", 30, "given up")
    wait_for(machine.is_healthy, 20, "it runs")
    assert not path.exists() and not machine.domain.hasManagedSaveImage()
    assert last_failure(domain).errno == "ECANCELED"
    assert word(machine) == "interrupted"
    wait_for(lambda: machine.counter() > counter, 20, "it goes on")
    # Nothing of it is in the way of the next one.
    (domain / "control").write_text(f"save to={path}\n")
    (domain / "control").write_text(f"restore from={path}\n")
    assert word(machine) == "interrupted"
    path.unlink()


def writes_memory(pid: int) -> bool:
    names = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            names.add((task / "comm").read_text().strip())
    return "live_migration" in names


def test_save_interrupted_too_late_is_told(machine: Guest, domain: Path, writer: StoppedWriter,
                                           hung: HungLibvirtd) -> None:
    remember(machine, "too late")
    pid = machine.qemu_pid()
    caller = fsutil.write(domain / "control", "save")
    writer.stop()
    wait_for(lambda: "percent: " in text(domain / "job"), 20, "progress")
    assert pid is not None and writes_memory(pid)
    # QEMU completes it before libvirt hears of the abort.
    hung.hang()
    caller.process.send_signal(signal.SIGTERM)
    assert caller.process.wait(30) == -signal.SIGTERM
    writer.go_on()
    wait_for(lambda: not writes_memory(pid), 20, "complete")
    hung.go_on()
    wait_for(machine.is_off, 30, "saved")
    wait_for(lambda: text(domain / "job") == "", 30, "over")
    assert last_failure(domain).text == "finished after its caller had stopped waiting"
    assert last_failure(domain).operation.startswith("save > ")
    (domain / "control").write_text("start\n")
    assert word(machine) == "too late"


def test_frozen_guest_is_left_alone(machine: Guest, domain: Path) -> None:
    (domain / "control").write_text("freeze timeout=30\n")
    for command in ("save", f"save to={machine.dir}/memory", "suspend", "resume", "start",
                    "restore from=/nowhere"):
        refused(domain, command, errno.EBUSY, "are frozen by a command; write 'thaw' first")
    (domain / "control").write_text("thaw\n")
    assert machine.is_healthy()


def test_frozen_by_another_is_thawed_when_it_is_back(machine: Guest, domain: Path) -> None:
    machine.domain.fsFreeze()
    (domain / "control").write_text("save\n")
    (domain / "control").write_text("start\n")
    wait_for(machine.is_healthy, 20, "thawed")


def test_backup_is_in_the_way(machine: Guest, domain: Path, mnt: Mount) -> None:
    now = collection(mnt, machine) / "now"
    now.mkdir()
    refused(domain, "save", errno.EBUSY, "backup 'now' is running")
    now.rmdir()
    assert machine.is_healthy()


def test_start_of_an_off_machine(off_guest, mnt: Mount) -> None:
    guest = off_guest()
    domain = mnt.domains / guest.name
    now = collection(mnt, guest) / "now"
    now.mkdir()
    refused(domain, "start", errno.EBUSY, "backup 'now' is running")
    now.rmdir()
    (domain / "control").write_text("start\n")
    guest.wait_agent()
    assert text(domain / "state") == "running" and os.path.exists(domain / "id")
