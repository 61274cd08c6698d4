# SPDX-License-Identifier: LGPL-2.1-or-later
"""virtnbdbackup, the real one, beside us on the same machine: neither breaks the other."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import fsutil
from bed import Disk, Mount, bed_dir, raises_errno, sh, wait_for
from chain import SIZE, Chain
from fsutil import last_failure
from test_checkpoints import names, text

URI = "qemu:///system"


class Other:
    """The other program, as its user has it: a directory with one chain."""

    def __init__(self, chain: Chain, store: Path) -> None:
        self.chain = chain
        self.store = store
        # QEMU makes both, and its user may enter only these.
        self.socket = bed_dir() / "tmp/virtnbdbackup.socket"
        self.scratch = bed_dir() / "tmp"

    def run(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        try:
            return sh(["virtnbdbackup", "-U", URI, "-d", self.chain.guest.name, "-n", "-o",
                       str(self.store), "-f", str(self.socket), "-S", str(self.scratch), *args],
                      check=check, timeout=120)
        finally:
            # It leaves what QEMU has made of it when the job was not its own to end.
            if "-s" not in args:
                self.socket.unlink(missing_ok=True)

    def backup(self, level: str, *args: str) -> None:
        done = self.run("-l", level, *args)
        assert "Finished successfully" in done.stdout + done.stderr
        wait_for(lambda: not self.chain.guest.has_job(), 60, "its job has ended")

    def refused(self, level: str) -> str:
        done = self.run("-l", level, check=False)
        assert done.returncode != 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def restore(self, place: Path) -> Path:
        """The disk as of its newest link."""
        sh(["virtnbdrestore", "-n", "-i", str(self.store), "-o", str(place)], timeout=120)
        return place / "vda.qcow2"


@pytest.fixture
def chain(mount, off_guest, tmp_path: Path) -> Iterator[Chain]:
    mnt: Mount = mount(URI, "checkpoint=auto")
    chain = Chain(off_guest(Disk(size=SIZE, fs=False), agent=False), mnt, tmp_path)
    chain.start()
    chain.write("-P 1 0 256k")
    chain.write("-P 2 8M 1M")
    yield chain
    for checkpoint in chain.guest.domain.listAllCheckpoints():
        checkpoint.delete()


@pytest.fixture
def other(chain: Chain, tmp_path: Path) -> Other:
    return Other(chain, tmp_path / "other")


def reference(chain: Chain, path: Path) -> Path:
    """The disk as the guest, which stands still, has it."""
    chain.monitor("flush")
    sh(["qemu-img", "convert", "-U", "-O", "raw", str(chain.images["vda"]), str(path)])
    return path


def assert_same(image: Path, image_format: str, raw: Path) -> None:
    sh(["qemu-img", "compare", "-f", image_format, "-F", "raw", str(image), str(raw)])


def test_its_chain_goes_on_beside_our_backups(chain: Chain, other: Other,
                                              tmp_path: Path) -> None:
    checkpoints = chain.path / "checkpoints"
    other.backup("full")
    chain.write("-P 3 1M 64k")
    assert chain.backup("a", "checkpoint=none") == "none"
    other.backup("inc")
    wait_for(lambda: names(checkpoints) == ["virtnbdbackup.0", "virtnbdbackup.1"], 5, "shown")
    assert text(checkpoints / "virtnbdbackup.1/parent") == "virtnbdbackup.0"
    for name in ("virtnbdbackup.0", "virtnbdbackup.1"):
        assert text(checkpoints / name / "valid") == "yes"
        for refused in ((checkpoints / name).rmdir,
                        lambda name=name: fsutil.command(checkpoints / name, "delete metadata")):
            with raises_errno(errno.EPERM):
                refused()
    assert "made by another program" in last_failure(chain.path).text
    # Ours stands on its checkpoint when it is asked to, and on what was copied that day.
    day = reference(chain, chain.copies / "virtnbdbackup.1.raw")
    chain.write("-P 4 2M 64k")
    (chain.copies / "virtnbdbackup.1").mkdir()
    sh(["qemu-img", "convert", "-O", "qcow2", str(day),
        str(chain.copies / "virtnbdbackup.1/vda.qcow2")])
    assert chain.backup("b", "since=virtnbdbackup.1", "checkpoint=none") == "virtnbdbackup.1"
    # And nothing of that was to its harm.
    chain.write("-P 5 3M 64k")
    other.backup("inc")
    assert chain.guest.checkpoints() == [f"virtnbdbackup.{n}" for n in range(3)]
    assert_same(other.restore(tmp_path / "restored"), "qcow2",
                reference(chain, tmp_path / "now.raw"))


def test_one_waits_for_no_other(chain: Chain, other: Other) -> None:
    backups = chain.path / "backups"
    (backups / "ours").mkdir()
    assert "active backup operation" in other.refused("copy")
    assert text(backups / "ours/state") == "running"
    shutil.copyfile(backups / "ours/disks/vda.raw", chain.copies / "ours.raw")
    assert_same(chain.copies / "ours.raw", "raw", reference(chain, chain.copies / "now.raw"))
    fsutil.command(backups / "ours", "end drop")
    # The other way round; -s: it begins, and leaves the job running.
    other.run("-l", "full", "-s")
    try:
        assert chain.guest.has_job()
        with raises_errno(errno.EBUSY):
            (backups / "tue").mkdir()
        assert names(backups) == []
        assert chain.guest.checkpoints() == ["virtnbdbackup.0"]
    finally:
        other.run("-k")
    wait_for(lambda: not chain.guest.has_job(), 60, "its job has ended")
    chain.assert_goes_on("tue", "none")
    chain.forget()


def test_ours_stop_it_no_more_than_its_own_rules(chain: Chain, other: Other,
                                                 tmp_path: Path) -> None:
    """It makes no chain where it sees a checkpoint that is not its own; copies it makes."""
    other.backup("full")
    chain.write("-P 3 1M 64k")
    assert chain.backup("a") == "none"
    assert "Foreign checkpoint found: [a]" in other.refused("inc")
    assert "Foreign checkpoint found: [a]" in Other(chain, tmp_path / "new").refused("full")
    Other(chain, tmp_path / "copy").backup("copy")
    # What it refuses it leaves as it was, and so do we.
    assert chain.guest.checkpoints() == ["a", "virtnbdbackup.0"]
    chain.write("-P 4 2M 64k")
    chain.assert_goes_on("b", "a")
    chain.forget()
    chain.write("-P 5 3M 64k")
    other.backup("inc")
    assert_same(other.restore(tmp_path / "restored"), "qcow2",
                reference(chain, tmp_path / "now.raw"))
    # Its next full backup begins anew, in its next directory, and takes its own away.
    assert chain.backup("c") == "none"
    ours = chain.guest.domain.checkpointLookupByName("c")
    assert ours.getParent().getName() == "virtnbdbackup.1"
    for checkpoint in chain.guest.domain.listAllCheckpoints():
        if checkpoint.getName().startswith("virtnbdbackup"):
            checkpoint.delete()
    chain.write("-P 6 4M 64k")
    chain.assert_goes_on("d", "c")
    chain.forget()
    other.store = tmp_path / "again"
    other.backup("full")
    assert chain.guest.checkpoints() == ["virtnbdbackup.0"]
    assert os.listdir(chain.path / "backups") == []
