# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests, mounts and small helpers for the tests; all inside contrib/bed/enter."""

from __future__ import annotations

import base64
import contextlib
import errno as errno_names
import json
import os
import re
import shutil
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import libvirt
import libvirt_qemu

REPO = Path(__file__).resolve().parent.parent
BED = REPO / "contrib" / "bed"
VMSNAPFS = Path(os.environ.get("VMSNAPFS", REPO / "build/mountd/vmsnapfs"))
QEMU_USER = "libvirt-qemu"
MIB = 1 << 20

# What no daemon may ever print.
SUSPICIOUS = re.compile(
    r"ERROR: (Address|Leak|Memory)Sanitizer|WARNING: ThreadSanitizer"
    r"|runtime error:|CRITICAL|GLib-.*(CRITICAL|WARNING)|\bbug:")

T = TypeVar("T")

# Errors come as exceptions; libvirt would also print them.
libvirt.registerErrorHandler(lambda _context, _error: None, None)


def bed_dir() -> Path:
    return Path(os.environ["BED_DIR"])


def patient(seconds: float) -> float:
    """A time limit as it is on this machine, now: BED_PATIENCE times as long."""
    return seconds * float(os.environ.get("BED_PATIENCE", "1"))


def wait_for(predicate: Callable[[], T], timeout: float, what: str) -> T:
    """Polls until the predicate is true and returns its value."""
    end = time.monotonic() + patient(timeout)
    pause = 0.005
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)


@contextlib.contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """What stands in it has a time limit of its own, a promise to the user."""
    start = time.monotonic()
    yield
    passed = time.monotonic() - start
    assert passed < patient(seconds), f"{what} took {passed:.2f} s"


def sh(command: str | list[str], *, check: bool = True, timeout: float = 60,
       **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command (a string by bash) and keeps its output as text."""
    argv = ["bash", "-c", command] if isinstance(command, str) else command
    done = subprocess.run(argv, capture_output=True, text=True,
                          errors="surrogateescape", timeout=patient(timeout),
                          check=False, **kwargs)
    if check and done.returncode != 0:
        raise AssertionError(f"exit code {done.returncode}: {command}\n"
                             f"{done.stdout}{done.stderr}")
    return done


@contextlib.contextmanager
def raises_errno(*expected: int) -> Iterator[None]:
    names = " or ".join(errno_names.errorcode[e] for e in expected)
    try:
        yield
    except OSError as error:
        got = errno_names.errorcode.get(error.errno or 0, str(error.errno))
        if error.errno not in expected:
            raise AssertionError(f"{got} instead of {names}: {error}") from error
    else:
        raise AssertionError(f"success instead of {names}")


def check_ext4(image: Path) -> None:
    """The image holds a sound ext4, at worst with a journal to replay.

    Only what preening repairs without asking is accepted (the journal, and the
    free counts, which the kernel does not keep up to date on disk either).
    """
    copy = image.with_name(image.name + ".fsck")
    sh(["qemu-img", "convert", "-O", "raw", str(image), str(copy)])
    try:
        preen = sh(["e2fsck", "-fp", str(copy)], check=False)
        if preen.returncode not in (0, 1):
            raise AssertionError(preen.stdout + preen.stderr)
        sh(["e2fsck", "-fn", str(copy)])
    finally:
        copy.unlink()


def read_ext4(image: Path, name: str) -> str:
    """A file out of the ext4 in a raw image, as it is without the journal."""
    return sh(["debugfs", "-R", f"cat {name}", str(image)]).stdout


_connection: libvirt.virConnect | None = None


def connection() -> libvirt.virConnect:
    """The tests' own connection; opened again after a restart of libvirtd."""
    global _connection
    if _connection is not None:
        with contextlib.suppress(libvirt.libvirtError):
            _connection.getLibVersion()
            return _connection
        with contextlib.suppress(libvirt.libvirtError):
            _connection.close()
    _connection = libvirt.open("qemu:///system")
    return _connection


def libvirtd(action: str) -> None:
    """start, stop, restart or kill; guests survive all of them."""
    sh([str(BED / "libvirtd"), action], timeout=120)


def is_libvirtd_up() -> bool:
    with contextlib.suppress(libvirt.libvirtError):
        connection()
        return True
    return False


@dataclass
class Disk:
    target: str = "vda"
    format: str = "qcow2"
    size: int = 256 * MIB
    fs: bool = True                    # an ext4; else all holes
    tree: Path | str | None = None     # a directory of files to put into it
    cluster_size: int | None = None
    options: str = ""                  # more of domain-xml's, "cache=none,bus=scsi"

    def create(self, path: Path) -> None:
        raw = path.with_suffix(".mkfs")
        with raw.open("wb") as file:
            file.truncate(self.size)
        if self.fs:
            # Not lazy: the guest would write inode tables behind a test's back.
            sh(["mkfs.ext4", "-q", "-F", "-m0", "-E", "lazy_itable_init=0",
                *(["-d", str(self.tree)] if self.tree else []), str(raw)])
        if self.format == "raw":
            raw.rename(path)
            return
        cluster = (["-o", f"cluster_size={self.cluster_size}"]
                   if self.cluster_size else [])
        sh(["qemu-img", "convert", "-f", "raw", "-O", self.format, *cluster,
            str(raw), str(path)])
        raw.unlink()


class Guest:
    """One machine of the bed; its images are in images/NAME/TARGET.FORMAT."""

    def __init__(self, name: str, *, writer: bool = False, agent: bool = True,
                 memory: int = 256) -> None:
        self.name = name
        self.writer = writer
        self.agent = agent
        self.memory = memory
        self.disks: tuple[Disk, ...] = ()

    @property
    def dir(self) -> Path:
        return bed_dir() / "images" / self.name

    @property
    def domain(self) -> libvirt.virDomain:
        return connection().lookupByName(self.name)

    @property
    def uuid(self) -> str:
        return self.domain.UUIDString()

    def define(self, *disks: Disk) -> None:
        self.disks = disks or (Disk(),)
        self.dir.mkdir(mode=0o755)
        command = [str(BED / "domain-xml"), f"--name={self.name}",
                   f"--memory={self.memory}"]
        for disk in self.disks:
            path = self.dir / f"{disk.target}.{disk.format}"
            disk.create(path)
            text = f"target={disk.target},file={path},format={disk.format}"
            command += ["--disk", ",".join(filter(None, [text, disk.options]))]
        if self.writer:
            command.append("--writer")
        if not self.agent:
            command.append("--no-agent")
        connection().defineXML(sh(command).stdout)

    def undefine(self) -> None:
        """Undoes define(), whatever a test made of the machine."""
        flags = (libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
                 | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
                 | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
                 | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
        with contextlib.suppress(libvirt.libvirtError):
            domain = self.domain
            if domain.isActive():
                domain.destroy()
            domain.undefineFlags(flags)
        shutil.rmtree(self.dir, ignore_errors=True)

    def rebuild(self) -> None:
        self.undefine()
        self.define(*self.disks)

    def start(self, wait: bool = True) -> None:
        self.domain.create()
        if wait and self.agent:
            self.wait_agent()

    def wait_agent(self, timeout: float = 60) -> None:
        def answers() -> bool:
            if not self.domain.isActive():
                raise AssertionError(f"{self.name} is off; its console:\n"
                                     + self.console())
            with contextlib.suppress(libvirt.libvirtError):
                self.command("guest-ping", timeout=2)
                return True
            return False
        try:
            wait_for(answers, timeout, f"guest agent of {self.name}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.console()}") from None

    def console(self) -> str:
        path = bed_dir() / "log" / f"{self.name}.serial"
        return path.read_text(errors="replace") if path.exists() else ""

    def command(self, name: str, timeout: float = 10, **arguments: Any) -> Any:
        """One command of the agent's own protocol."""
        answer = libvirt_qemu.qemuAgentCommand(
            self.domain, json.dumps({"execute": name, "arguments": arguments}),
            int(timeout), 0)
        return json.loads(answer)["return"]

    def run(self, command: str, timeout: float = 60) -> str:
        """A command line for the guest's shell; its output, once it has ended."""
        pid = self.command("guest-exec", path="/bin/sh", arg=["-c", command],
                           **{"capture-output": True})["pid"]

        def ended() -> dict[str, Any] | None:
            status = self.command("guest-exec-status", pid=pid)
            return status if status["exited"] else None

        status = wait_for(ended, timeout, f"in the guest: {command}")
        out = base64.b64decode(status.get("out-data", "")).decode(errors="replace")
        err = base64.b64decode(status.get("err-data", "")).decode(errors="replace")
        if status.get("exitcode") != 0:
            raise AssertionError(f"guest: {command}: {status}\n{out}{err}")
        return out

    def counter(self) -> int:
        """How far the guest's writer is (only with writer=True)."""
        return int(self.run("cat /data/counter"))

    @property
    def state(self) -> int:
        return int(self.domain.state()[0])

    def is_running(self) -> bool:
        return self.state == libvirt.VIR_DOMAIN_RUNNING

    def is_undefined(self) -> bool:
        try:
            self.domain.name()
        except libvirt.libvirtError:
            return True
        return False

    def is_off(self) -> bool:
        with contextlib.suppress(libvirt.libvirtError):
            return not self.domain.isActive()
        return True

    def is_healthy(self) -> bool:
        with contextlib.suppress(libvirt.libvirtError):
            return (self.is_running()
                    and self.command("guest-fsfreeze-status") == "thawed")
        return False

    def ensure(self) -> None:
        """Running and healthy again, by the shortest way."""
        with contextlib.suppress(libvirt.libvirtError):
            if self.state == libvirt.VIR_DOMAIN_PAUSED:
                self.domain.resume()
            self.domain.fsThaw()
        if self.is_healthy():
            return
        if not self.is_off():
            self.destroy()
        self.start()

    def rest(self) -> None:
        """Until ensure() it needs no processor."""
        with contextlib.suppress(libvirt.libvirtError):
            if self.is_running() and not self.has_job():
                self.domain.suspend()

    def suspend(self) -> None:
        self.domain.suspend()

    def resume(self) -> None:
        self.domain.resume()

    def destroy(self) -> None:
        try:
            self.domain.destroy()
        except libvirt.libvirtError:
            # A libvirtd that has just begun finds it dying, and is the one that ends it.
            if not self.is_off():
                raise

    def shutdown(self, timeout: float = 60) -> None:
        try:
            self.domain.shutdown()
        except libvirt.libvirtError:
            # The agent was asked first, and it is off before libvirt has looked again.
            if not self.is_off():
                raise
        wait_for(self.is_off, timeout, f"shutdown of {self.name}")

    def xml(self, inactive: bool = False) -> ET.Element:
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE if inactive else 0
        return ET.fromstring(self.domain.XMLDesc(flags))

    def disk_path(self, target: str) -> Path:
        """The image that is written to now (the top of its chain)."""
        for disk in self.xml().findall("devices/disk"):
            source = disk.find("source")
            if disk.find("target").get("dev") == target and source is not None:
                return Path(source.attrib["file"])
        raise KeyError(target)

    def qemu_pid(self) -> int | None:
        try:
            return int(Path(f"/run/libvirt/qemu/{self.name}.pid").read_text())
        except (OSError, ValueError):
            return None

    def has_job(self) -> bool:
        with contextlib.suppress(libvirt.libvirtError):
            return self.domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE
        return False

    def checkpoints(self) -> list[str]:
        return sorted(c.getName() for c in self.domain.listAllCheckpoints())

    def snapshots(self) -> list[str]:
        return sorted(s.getName() for s in self.domain.listAllSnapshots())


def mount_points(kind: str = "fuse") -> dict[str, str]:
    """Mount point -> type, of all mounts whose type starts with kind."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4].encode().decode("unicode_escape")
        if right.startswith(kind):
            found[point.encode("latin-1").decode(errors="surrogateescape")] = (
                right.split()[0])
    return found


class Mount:
    """A vmsnapfs process and its mount; options as for -o, or whole if with "-"."""

    _count = 0

    def __init__(self, uri: str, *options: str,
                 env: dict[str, str] | None = None) -> None:
        Mount._count += 1
        self.path = bed_dir() / "mnt" / f"m{Mount._count}"
        self.path.mkdir()
        self.log_path = bed_dir() / "log" / f"vmsnapfs.{Mount._count}"
        self.expected_exit = 0
        words = ",".join(o for o in options if not o.startswith("-"))
        self.argv = [str(VMSNAPFS), "-f",
                     *(o for o in options if o.startswith("-")),
                     *(["-o", words] if words else []), uri, str(self.path)]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | (env or {}))

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def domains(self) -> Path:
        return self.path / "domains"

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def is_mounted(self) -> bool:
        return str(self.path) in mount_points()

    def wait_mounted(self, timeout: float = 30) -> None:
        def mounted() -> bool:
            code = self.process.poll()
            if code is not None:
                raise AssertionError(f"ended with {code} before it mounted: "
                                     f"{' '.join(self.argv)}\n{self.log()}")
            return self.is_mounted()
        wait_for(mounted, timeout, f"mounted: {' '.join(self.argv)}")

    def signal(self, number: int) -> None:
        """A signal to the daemon; after SIGKILL its exit code is no failure."""
        if number == signal.SIGKILL:
            self.expected_exit = -number
        self.process.send_signal(number)

    def unmount(self, timeout: float = 10) -> None:
        """Until nothing is busy in it any more."""
        def unmounted() -> bool:
            return not self.is_mounted() or sh(
                ["fusermount3", "-u", str(self.path)],
                check=False).returncode == 0
        wait_for(unmounted, timeout, f"unmounted: {self.path}")

    def finish(self, timeout: float = 45) -> None:
        """Unmounts and demands a clean end of the daemon."""
        faults = []
        try:
            self.unmount()
        except AssertionError as error:
            faults.append(str(error))
            sh(["umount", "-l", str(self.path)], check=False)
        try:
            code = self.process.wait(patient(timeout))
            if code != self.expected_exit:
                faults.append(f"exit code {code}, not {self.expected_exit}")
        except subprocess.TimeoutExpired:
            faults.append(f"still there {timeout} s after the unmount")
            self.process.kill()
            self.process.wait()
        found = SUSPICIOUS.search(self.log())
        if found:
            faults.append(f"suspicious output: {found.group()!r}")
        if not self.is_mounted():
            self.path.rmdir()
        print(f"--- {' '.join(self.argv)}\n{self.log()}")
        if faults:
            raise AssertionError("vmsnapfs: " + "; ".join(faults))
