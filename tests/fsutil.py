# SPDX-License-Identifier: LGPL-2.1-or-later
"""Helpers of the tests of fs/: hosts of the test driver, rows of the tree, callers."""

from __future__ import annotations

import collections
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from xml.sax.saxutils import escape

import libvirt
import pytest

import bed
from bed import patient, wait_for

NOBODY = 65534


### Threads

@contextlib.contextmanager
def running(*work: Callable[[], None]) -> Iterator[None]:
    """Beside it; what goes wrong in one of them goes wrong here."""
    failed: list[Exception] = []

    def guarded(one: Callable[[], None]) -> None:
        try:
            one()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(patient(60))
            assert not thread.is_alive(), "it hangs"
    if failed:
        raise failed[0]


### Hosts

def driver_uri(*names: str, running: bool = True, snapshots: Sequence[str] = ()) -> str:
    """The URI of a host of libvirt's test driver that has these domains."""
    domains = ""
    for name in names:
        config = f"""
    <name>{escape(name)}</name>
    <uuid>{uuid.uuid5(uuid.NAMESPACE_DNS, name)}</uuid>
    <memory>65536</memory><os><type>hvm</type></os>"""
        parent, chain = "", ""
        for number, snapshot in enumerate(snapshots):
            chain += f"""
    <test:domainsnapshot><name>{escape(snapshot)}</name>{parent}<state>running</state>
      <creationTime>{1700000000 + 60 * number}</creationTime>
      <domain type='test'>{config}<devices/></domain>
      <active>{int(number == len(snapshots) - 1)}</active></test:domainsnapshot>"""
            parent = f"<parent><name>{escape(snapshot)}</name></parent>"
        domains += f"""
  <domain type='test'>{config}
    <test:runstate>{1 if running else 5}</test:runstate>{chain}
  </domain>"""
    path = bed.bed_dir() / "tmp" / f"node.{uuid.uuid4().hex[:8]}.xml"
    path.write_text("<node xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>"
                    f"{domains}\n</node>")
    return f"test://{path}"


def define(name: str) -> libvirt.virDomain:
    """A domain of the real libvirtd that has nothing, not even a disk."""
    return bed.connection().defineXML(f"""
        <domain type='qemu'><name>{escape(name)}</name><memory>1024</memory>
          <os><type arch='x86_64'>hvm</type></os></domain>""")


@contextlib.contextmanager
def defined(*names: str) -> Iterator[list[libvirt.virDomain]]:
    domains: list[libvirt.virDomain] = []
    try:
        for name in names:
            domains.append(define(name))
        yield domains
    finally:
        for domain in domains:
            with contextlib.suppress(libvirt.libvirtError):
                domain.undefine()


class HungLibvirtd:
    """libvirtd of the bed, stopped as by a debugger."""

    def __init__(self) -> None:
        self.pid = int(Path("/run/libvirt/bed-libvirtd.pid").read_text())

    def hang(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        wait_for(lambda: process_state(self.pid) == "T", 5, "libvirtd stopped")

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


@pytest.fixture
def hung(leftovers: None) -> Iterator[HungLibvirtd]:
    """To be asked for after the mount: what waits in it ends before."""
    libvirtd = HungLibvirtd()
    yield libvirtd
    libvirtd.go_on()
    Caller.end_all()


### What a machine has besides its disks

# No multiple of a sector.
NVRAM = bytes(range(256)) * 2112 + b"end"
TPM = b"the state of a TPM"


def add_firmware(guest: bed.Guest) -> tuple[Path, Path]:
    """A variable store and a TPM, as libvirt's XML names them. Nothing boots from it."""
    store = guest.dir / "nvram of it.fd"
    store.write_bytes(NVRAM)
    state = Path("/var/lib/libvirt/swtpm") / guest.uuid / "tpm2" / "tpm2-00.permall"
    state.parent.mkdir(parents=True)
    state.write_bytes(TPM)
    root = guest.xml(inactive=True)
    boot = root.find("os")
    ET.SubElement(boot, "loader", readonly="yes", type="pflash").text = "/usr/share/no-code.fd"
    ET.SubElement(boot, "nvram").text = str(store)
    tpm = ET.SubElement(root.find("devices"), "tpm", model="tpm-crb")
    ET.SubElement(tpm, "backend", type="emulator", version="2.0")
    bed.connection().defineXML(ET.tostring(root, encoding="unicode"))
    return store, state


### Rows of the tree

@dataclass(frozen=True)
class Row:
    path: str
    mode: int
    kind: str
    flags: frozenset[str]

    def at(self, root: Path, **names: str) -> Path:
        """The row in a real mount; vm=, name=, target= stand for <vm>..."""
        path = self.path
        for key, value in names.items():
            path = path.replace(f"<{key}>", value)
        return root if path == "/" else root / path


def tree_rows() -> list[Row]:
    text = subprocess.run([str(bed.VMSNAPFS), "--dump-tree"], check=True,
                          capture_output=True, text=True).stdout
    rows = []
    for line in text.splitlines():
        mode, kind, path, *flags = line.split()
        rows.append(Row(path, int(mode, 8), kind, frozenset(flags)))
    return rows


### Errors

@dataclass(frozen=True)
class Failure:
    """One line of an `error` file."""
    sequence: int
    time: str
    who: str
    operation: str
    errno: str
    text: str


FAILURE = re.compile(r"(\d+) (\d{4}-\d\d-\d\dT[\d:.]+Z) (vmsnapfs|pid=\d+ uid=\d+) '(.*)' "
                     r"([A-Z0-9]+): (.+)")


def failures(directory: Path) -> list[Failure]:
    found = []
    for line in (directory / "error").read_text().splitlines():
        match = FAILURE.fullmatch(line)
        assert match, f"no line of an error file: {line!r}"
        sequence, *rest = match.groups()
        found.append(Failure(int(sequence), *rest))
    return found


def last_failure(directory: Path) -> Failure:
    return failures(directory)[-1]


### Callers

def process_state(pid: int) -> str:
    """The letter that ps shows; "" when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat[stat.rindex(")") + 2]


def is_waiting(pid: int, where: str) -> bool:
    """Whether it waits for a FUSE file system, inside that function of the kernel."""
    with contextlib.suppress(OSError):
        stack = Path(f"/proc/{pid}/stack").read_text()
        return "request_wait_answer" in stack and where in stack
    return False


# What a system call becomes in the kernel.
MKDIR, RMDIR, WRITE, READ, STAT = (
    "fuse_mkdir", "fuse_rmdir", "_write_iter", "_read_iter", "fuse_do_getattr")


class Caller:
    """A process that does one thing in the mount and tells the errno."""

    _all: ClassVar[list[Caller]] = []

    def __init__(self, where: str, code: str, *args: str | Path, prepare: str = "") -> None:
        self.where = where
        program = f"import os, signal, sys\n{prepare}\ntry:\n    {code}\n" \
                  "except OSError as e:\n    print(e.errno)\nelse:\n    print(0)\n"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, args)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        Caller._all.append(self)

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_blocked(self, timeout: float = 10) -> None:
        def blocked() -> bool:
            if self.process.poll() is not None:
                out, err = self.process.communicate()
                raise AssertionError(f"it did not wait: {out}{err}")
            return is_waiting(self.pid, self.where)
        wait_for(blocked, timeout, f"process {self.pid} waits in {self.where}")

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def errno(self, timeout: float = 30) -> int:
        out, err = self.process.communicate(timeout=patient(timeout))
        assert self.process.returncode == 0, f"{self.process.returncode}: {out}{err}"
        return int(out.split()[-1])

    @classmethod
    def end_all(cls) -> None:
        while cls._all:
            process = cls._all.pop().process
            process.kill()
            process.communicate(timeout=30)


def mkdir(path: Path, prepare: str = "") -> Caller:
    return Caller(MKDIR, "os.mkdir(sys.argv[1])", path, prepare=prepare)


def rmdir(path: Path) -> Caller:
    return Caller(RMDIR, "os.rmdir(sys.argv[1])", path)


def write(path: Path, command: str, prepare: str = "") -> Caller:
    return Caller(WRITE, "os.write(os.open(sys.argv[1], os.O_WRONLY), sys.argv[2].encode())",
                  path, command, prepare=prepare)


def command(directory: Path, line: str) -> None:
    """One command, by one write."""
    fd = os.open(directory / "control", os.O_WRONLY)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def numbers(path: Path) -> dict[str, int]:
    """The "key: number" lines of a file."""
    found = {}
    for line in path.read_text().splitlines():
        words = line.replace(":", " ").split()
        if len(words) > 1 and words[1].isdecimal():
            found[words[0]] = int(words[1])
    return found


# What has a number, or a random name, of its own.
OWN = re.compile(r"\[\d+\]|[0-9a-f]{24}")


def kinds(paths: Iterable[Path], kind: Callable[[Path], str]) -> collections.Counter[str]:
    """How many there are of each kind; what goes meanwhile is left out."""
    found: collections.Counter[str] = collections.Counter()
    for path in paths:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[OWN.sub("*", kind(path))] += 1
    return found


def descendants(pid: int) -> set[int]:
    parents = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (directory / "stat").read_text()
            parents[int(directory.name)] = int(stat[stat.rindex(")") + 2:].split()[1])
    found: set[int] = set()
    while more := {p for p, above in parents.items() if above in found | {pid}} - found:
        found |= more
    return found
