# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every byte of every view, read at random by several processes and whole by tools.

VMSNAPFS_READS=N reads N times in all instead of as often as fits into a short run.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bed import MIB, Disk, Guest, Mount, sh, wait_for
from conftest import session_guests
from test_backup import collection
from test_offline import use_image

# A disk of a running machine, a chain of images that is off, and a raw image that is off.
SOURCES = ("live", "chain", "raw")
VIEWS = ("disks/{}.raw", "full/{}.qcow2")
MODES = ("cached", "direct", "mapped")
READS = int(os.environ.get("VMSNAPFS_READS", "9000"))
SIZE = 96 * MIB

READER = """
import mmap, os, random, sys
view, copy, mode, seed, count = sys.argv[1:]
rng = random.Random(int(seed))
fd = os.open(view, os.O_RDONLY | (os.O_DIRECT if mode == "direct" else 0))
reference = os.open(copy, os.O_RDONLY)
size = os.fstat(reference).st_size
assert os.fstat(fd).st_size == size
mapped = mmap.mmap(fd, size, prot=mmap.PROT_READ) if mode == "mapped" else None
for _ in range(int(count)):
    offset = rng.randrange(size)
    length = rng.choice((1, 512, 4096, 4096, 65536, 131072, rng.randrange(1, 1 << 20)))
    expected = os.pread(reference, length, offset)
    found = mapped[offset:offset + length] if mapped else os.pread(fd, length, offset)
    assert found == expected, f"{length} bytes at {offset} of {view} are wrong ({mode})"
"""


def write(image: Path, fmt: str, seed: int) -> None:
    """Pieces of data, zeroes and holes all over a disk, many of them unaligned."""
    commands = []
    for i in range(60):
        start, length = (i * 2654435761 + seed * 97) % (SIZE - MIB), 1000 + i * i * 97
        commands += ["-c", f"write -P {(i + seed) % 250 + 1} {start} {length}"]
    for i in range(8):
        commands += ["-c", f"write -z {(i * 11 + seed) * MIB} 300k",
                     "-c", f"discard {(i * 11 + 5 + seed) * MIB} 1M"]
    sh(["qemu-io", "-d", "unmap", "-f", fmt, *commands, str(image)])


def chain_on(base: Path) -> Path:
    """Three images, the lowest of them compressed."""
    packed = base.with_name("packed.qcow2")
    sh(["qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", str(base), str(packed)])
    top = packed
    for level, cluster in enumerate(("4k", "64k")):
        overlay = base.with_name(f"overlay{level}.qcow2")
        sh(["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}",
            "-b", str(top), "-F", "qcow2", str(overlay)])
        write(overlay, "qcow2", level + 7)
        top = overlay
    return top


class Source:
    """A machine with one disk, and what the disk is."""

    def __init__(self, kind: str, reference: Path) -> None:
        fmt = "raw" if kind == "raw" else "qcow2"
        self.guest = Guest(f"reads-{kind}")
        self.guest.define(Disk("vda", fmt, size=SIZE, fs=False))
        image = self.guest.disk_path("vda")
        write(image, fmt, 1)
        if kind == "chain":
            image = chain_on(image)
            use_image(self.guest, image)
        sh(["qemu-img", "convert", "-f", fmt, "-O", "raw", str(image), str(reference)])
        if kind == "live":
            session_guests.append(self.guest)
            self.guest.start()
            self.guest.suspend()

    def end(self) -> None:
        if self.guest in session_guests:
            session_guests.remove(self.guest)
        self.guest.undefine()


@pytest.fixture(scope="module", params=SOURCES)
def source(request: pytest.FixtureRequest,
           tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Guest, Path]]:
    reference = tmp_path_factory.mktemp("reference") / "disk.raw"
    found = Source(request.param, reference)
    yield found.guest, reference
    found.end()


@pytest.fixture
def backup(source: tuple[Guest, Path], mnt: Mount) -> Iterator[Path]:
    path = collection(mnt, source[0]) / "now"
    path.mkdir()
    yield path
    (path / "control").write_text("end force\n")
    wait_for(lambda: not path.exists(), 30, "ended")


def reference_of(view: Path, raw: Path, tmp_path: Path) -> Path:
    """The bytes that the view should have: for qcow2 those of a copy that QEMU finds equal."""
    if view.suffix == ".raw":
        return raw
    copy = tmp_path / view.name
    shutil.copyfile(view, copy)
    sh(["qemu-img", "check", "-f", "qcow2", str(copy)])
    sh(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(copy), str(raw)])
    return copy


def test_reads_at_random_by_several(source: tuple[Guest, Path], backup: Path,
                                    tmp_path: Path) -> None:
    each = max(READS // (len(SOURCES) * len(VIEWS) * len(MODES)), 1)
    readers = []
    for number, pattern in enumerate(VIEWS):
        view = backup / pattern.format("vda")
        copy = reference_of(view, source[1], tmp_path)
        readers += [subprocess.Popen([sys.executable, "-c", READER, str(view), str(copy), mode,
                                      str(number), str(each)])
                    for mode in MODES]
    for reader in readers:
        assert reader.wait(600) == 0


def borg(view: Path, target: Path) -> str:
    return (f"export BORG_BASE_DIR={target} && borg init -e none {target}/repo && "
            f"borg create --sparse {target}/repo::a {view} && cd {target} && "
            f"borg extract --sparse repo::a && mv {target}/{view} {target}/copy")


def restic(view: Path, target: Path) -> str:
    return (f"export RESTIC_PASSWORD=x RESTIC_CACHE_DIR={target}/cache && cd {target} && "
            f"restic -q -r repo init && restic -q -r repo backup {view} && "
            f"restic -q -r repo restore latest --target out && mv out/{view} copy")


TOOLS = {
    "cp": lambda view, target: f"cp --sparse=always {view} {target}/copy",
    "tar": lambda view, target: (f"tar -C {view.parent} -S -cf - {view.name} | "
                                 f"tar -C {target} -xf - && mv {target}/{view.name} {target}/copy"),
    "rsync": lambda view, target: f"rsync -S {view} {target}/copy",
    "dd": lambda view, target: (f"dd if={view} of={target}/copy bs=1M conv=sparse status=none && "
                                f"truncate -r {view} {target}/copy"),
    "qemu-img": lambda view, target: (
        f"qemu-img convert -f raw -O raw {view} {target}/copy"),
    "borg": borg,
    "restic": restic,
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("pattern", VIEWS, ids=("raw", "qcow2"))
def test_tools_keep_every_byte(source: tuple[Guest, Path], backup: Path, tmp_path: Path,
                               tool: str, pattern: str) -> None:
    view = backup / pattern.format("vda")
    target = tmp_path / "out"
    target.mkdir()
    sh(TOOLS[tool](view, target), timeout=120)
    copy = target / "copy"
    assert copy.stat().st_size == view.stat().st_size
    if view.suffix == ".raw":
        assert filecmp.cmp(copy, source[1], shallow=False)
    else:
        sh(["qemu-img", "check", "-f", "qcow2", str(copy)])
        sh(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(copy), str(source[1])])
