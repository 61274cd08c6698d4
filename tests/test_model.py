# SPDX-License-Identifier: LGPL-2.1-or-later
"""Random sequences of all that can be done with snapshots, against a model of the disk.

After each step the machine's bytes and the image of every snapshot hold what the model
says, no image is there that nothing needs, and libvirt's tree is the model's.  With
backups between the steps the copy of each, on those that it stands on, holds what the disk
held.  MODEL_STEPS and MODEL_SEED choose a longer walk or another one; a failure prints both.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import libvirt
import pytest

from bare import BLOCKS, Bare, image_blocks
from bed import Mount, wait_for
from fsutil import command, last_failure
from test_delete import needed, no_records

STEPS = int(os.environ.get("MODEL_STEPS", "300"))
SEED = int(os.environ.get("MODEL_SEED", "20261121"))
SNAPSHOTS_MAX = 6


@dataclass
class Saved:
    blocks: list[int]
    parent: str | None
    state: int


@dataclass
class Model:
    blocks: list[int] = field(default_factory=lambda: [0] * BLOCKS)
    state: int = libvirt.VIR_DOMAIN_SHUTOFF
    current: str | None = None
    snapshots: dict[str, Saved] = field(default_factory=dict)
    made: int = 0

    def name(self) -> str:
        self.made += 1
        return f"n{self.made}"

    def keep(self, name: str, state: int) -> None:
        self.snapshots[name] = Saved(list(self.blocks), self.current, state)

    def forget(self, name: str) -> None:
        parent = self.snapshots.pop(name).parent
        for saved in self.snapshots.values():
            if saved.parent == name:
                saved.parent = parent
        if self.current == name:
            self.current = parent

    def below(self, name: str) -> list[str]:
        found = []
        for other, saved in self.snapshots.items():
            if saved.parent == name:
                found += [*self.below(other), other]
        return found


class Walk:
    """The steps; each does one thing to the machine and the same to the model."""

    def __init__(self, guest: Bare, mnt: Mount, seed: int) -> None:
        self.guest = guest
        self.there = mnt.domains / guest.name
        self.here = self.there / "snapshots"
        self.actions = ([self.write] * 5 + [self.snapshot] * 4 + [self.revert] * 4
                        + [self.delete] * 3 + [self.commit, self.start, self.start, self.stop])
        self.random = random.Random(seed)
        self.model = Model()
        self.log: list[str] = []
        self.gave_up_disks = False         # paused, and its memory was saved since

    def any(self) -> str | None:
        names = sorted(self.model.snapshots)
        return self.random.choice(names) if names else None

    def resume(self) -> None:
        self.log.append("resume")
        self.guest.resume()
        self.model.state = libvirt.VIR_DOMAIN_RUNNING
        self.gave_up_disks = False

    def write(self) -> None:
        block, value = self.random.randrange(BLOCKS), self.random.randint(1, 255)
        if self.model.state == libvirt.VIR_DOMAIN_PAUSED:
            # Only a guest that goes on writes; QEMU 7.2 aborts where its monitor writes to
            # disks that it has given up for a save.
            self.resume()
        self.log.append(f"write {block}={value}")
        self.guest.write(block, value)
        self.model.blocks[block] = value

    def snapshot(self) -> None:
        if len(self.model.snapshots) >= SNAPSHOTS_MAX:
            self.delete()
            return
        name = self.model.name()
        memory = (self.model.state != libvirt.VIR_DOMAIN_SHUTOFF and self.random.random() < 0.4
                  and not self.gave_up_disks)
        self.log.append(f"snapshot {name} memory={memory}")
        if self.guest.checkpoints() and self.model.state == libvirt.VIR_DOMAIN_SHUTOFF:
            (self.here / name).mkdir()      # libvirt 9.0 refuses
        else:
            self.guest.snapshot(name, memory=memory)
        self.model.keep(name, self.model.state if memory else libvirt.VIR_DOMAIN_SHUTOFF)
        self.model.current = name
        self.gave_up_disks |= memory and self.model.state == libvirt.VIR_DOMAIN_PAUSED

    def revert(self) -> None:
        name = self.any()
        if not name:
            return
        words = ["revert"]
        state = self.model.snapshots[name].state
        asked = self.random.choice([None, None, "running", "paused", "off"])
        if asked:
            words.append(asked)
            state = {"running": libvirt.VIR_DOMAIN_RUNNING, "paused": libvirt.VIR_DOMAIN_PAUSED,
                     "off": libvirt.VIR_DOMAIN_SHUTOFF}[asked]
        kept = None
        if self.random.random() < 0.3 and len(self.model.snapshots) < SNAPSHOTS_MAX:
            kept = self.model.name()
            words.append(f"keep={kept}")
        self.log.append(f"{name}: {' '.join(words)}")
        self.command(name, " ".join(words))
        if kept:
            self.model.keep(kept, self.model.state)
        self.gave_up_disks = False
        self.model.blocks = list(self.model.snapshots[name].blocks)
        self.model.current = name
        self.model.state = state

    def delete(self) -> None:
        name = self.any()
        if not name:
            return
        line = self.random.choice(["delete", "delete", "delete", "delete children"])
        self.log.append(f"{name}: {line}")
        self.command(name, line)
        for gone in [*(self.model.below(name) if "children" in line else []), name]:
            self.model.forget(gone)

    def command(self, name: str, line: str) -> None:
        """QEMU writes to no disk of a paused machine whose memory was saved, and does not
        save it again."""
        try:
            command(self.here / name, line)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            assert self.model.state == libvirt.VIR_DOMAIN_PAUSED
            assert "memory of the paused machine was saved" in last_failure(self.here / name).text
            self.resume()
            command(self.here / name, line)

    def commit(self) -> None:
        name = self.model.current
        if not name:
            return
        self.log.append(f"{name}: commit")
        try:
            self.command(name, "commit")
        except OSError as error:
            assert error.errno == errno.EINVAL, last_failure(self.here / name)
            assert "does not go on from" in last_failure(self.here / name).text
            self.log.append("... refused")
            return
        self.model.forget(name)

    def start(self) -> None:
        if self.model.state == libvirt.VIR_DOMAIN_SHUTOFF:
            self.log.append("start")
            self.guest.start()
            self.model.state = libvirt.VIR_DOMAIN_RUNNING

    def stop(self) -> None:
        if self.model.state != libvirt.VIR_DOMAIN_SHUTOFF:
            self.log.append("stop")
            self.guest.io("vda", "flush")
            self.guest.destroy()
            self.model.state = libvirt.VIR_DOMAIN_SHUTOFF
            self.gave_up_disks = False

    def check(self) -> None:
        guest, model = self.guest, self.model
        assert guest.state == model.state
        assert guest.blocks() == model.blocks
        assert set(guest.snapshots()) == set(model.snapshots)
        for name, saved in model.snapshots.items():
            assert image_blocks(*guest.base(name)) == saved.blocks, name
            assert guest.parent(name) == saved.parent, name
        files = {f for f in guest.files() if ".mem" not in f and "-mem" not in f}
        assert files == {f for f in needed(guest) if not f.endswith(".mem")}

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.random.choice(self.actions)()
            self.check()


class BackupWalk(Walk):
    """The same, and backups of the disk, each since the last where that can be."""

    def __init__(self, guest: Bare, mnt: Mount, seed: int, copies: Path) -> None:
        super().__init__(guest, mnt, seed)
        self.actions += [self.backup] * 5
        self.copies = copies
        self.increments = 0

    def backup(self) -> None:
        name = self.model.name()
        backup = self.there / "backups" / name
        backup.mkdir()
        since = (backup / "since").read_text().strip()
        self.log.append(f"backup {name} since {since}")
        shutil.copytree(backup / "incremental", self.copies / name)
        backup.rmdir()
        self.increments += since != "none"
        assert image_blocks(self.copies / name / "vda.qcow2") == self.model.blocks


@pytest.fixture
def walker(leftovers: None) -> Iterator[Bare]:
    guest = Bare("walker")
    guest.define()
    yield guest
    guest.undefine()


def walk_and_tidy(walk: Walk, steps: int, tidy: Callable[[], None]) -> None:
    guest = walk.guest
    try:
        walk.run(steps)
        for name in list(walk.model.snapshots):
            command(walk.here / name, "delete")
        assert guest.blocks() == walk.model.blocks
        tidy()
        assert guest.files() == {"vda.qcow2"}
        wait_for(no_records, 60, "no records")
    except BaseException:
        print(f"MODEL_SEED={SEED} MODEL_STEPS={STEPS}, after {len(walk.log)} lines:")
        print("\n".join(walk.log))
        raise


def test_random_walk(walker: Bare, mnt: Mount) -> None:
    walk_and_tidy(Walk(walker, mnt, SEED), STEPS, lambda: None)


def test_random_walk_with_backups(walker: Bare, mount, tmp_path: Path) -> None:
    mnt = mount("qemu:///system", "checkpoint=auto")
    walk = BackupWalk(walker, mnt, SEED, tmp_path)

    def tidy() -> None:
        for checkpoint in list(os.scandir(walk.there / "checkpoints")):
            if checkpoint.is_dir(follow_symlinks=False):
                os.rmdir(checkpoint.path)
        assert walk.increments or STEPS < 300

    walk_and_tidy(walk, STEPS // 3, tidy)
