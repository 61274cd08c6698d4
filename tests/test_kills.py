# SPDX-License-Identifier: LGPL-2.1-or-later
"""kill -9 at random moments of snapshot, revert, delete and commit, again and again.

After each start the machine, its snapshots and its images are those of the model
(test_model.py) before or after the action that was under way: nothing is lost, doubled
or half done.  Short here; STRESS=long goes on for 300 kills, STRESS_SECONDS ends it
earlier, MODEL_SEED repeats a walk as far as the moments allow.
"""

from __future__ import annotations

import copy
import errno
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from bare import BLOCKS, Bare
from bed import Mount, sh, wait_for
from fsutil import command, last_failure
from test_model import SNAPSHOTS_MAX, Model, Walk

LONG = os.environ.get("STRESS") == "long"
KILLS = 300 if LONG else 20
SECONDS = float(os.environ.get("STRESS_SECONDS", "3600" if LONG else "30"))
STATES = {"running": libvirt.VIR_DOMAIN_RUNNING, "paused": libvirt.VIR_DOMAIN_PAUSED,
          "off": libvirt.VIR_DOMAIN_SHUTOFF}
DEAD = (errno.ENOTCONN, errno.ECONNABORTED)

Action = Callable[[], None]


def settled() -> bool:
    return not [p for kind in ("snapshots", "reverts", "deletes", "journal")
                for p in Path("/var/lib/vmsnapfs").glob(f"*/{kind}/*")]


class Killed(Walk):
    """A walk whose daemon dies of it."""

    def __init__(self, guest: Bare, seed: int) -> None:
        self.guest, self.random, self.model, self.log = guest, random.Random(seed), Model(), []
        self.slowest = 0.0

    def enter(self, mnt: Mount) -> None:
        self.here = mnt.domains / self.guest.name / "snapshots"

    # What it would be afterwards, and what does it.

    def plan_snapshot(self) -> tuple[Model, Action]:
        after = copy.deepcopy(self.model)
        name, memory = after.name(), "none"
        if after.state != libvirt.VIR_DOMAIN_SHUTOFF and self.random.random() < 0.4:
            memory = "external"
        after.keep(name, after.state if memory == "external" else libvirt.VIR_DOMAIN_SHUTOFF)
        after.current = name
        line = f"snapshot {name} memory={memory}"
        self.log.append(line)
        return after, lambda: command(self.here.parent, line)

    def plan_revert(self, name: str) -> tuple[Model, Action]:
        after = copy.deepcopy(self.model)
        state = after.snapshots[name].state
        words = ["revert"]
        asked = self.random.choice([None, *STATES])
        if asked:
            words.append(asked)
            state = STATES[asked]
        if self.random.random() < 0.3 and len(after.snapshots) < SNAPSHOTS_MAX:
            kept = after.name()
            words.append(f"keep={kept}")
            after.keep(kept, after.state)
        after.blocks = list(after.snapshots[name].blocks)
        after.current, after.state = name, state
        return after, self.verb(name, " ".join(words))

    def plan_forget(self, name: str, line: str) -> tuple[Model, Action]:
        after = copy.deepcopy(self.model)
        after.forget(name)
        return after, self.verb(name, line)

    def verb(self, name: str, line: str) -> Action:
        self.log.append(f"{name}: {line}")
        return lambda: command(self.here / name, line)

    def plan(self) -> tuple[Model, Action]:
        name, dice = self.any(), self.random.random()
        if not name or (dice < 0.35 and len(self.model.snapshots) < SNAPSHOTS_MAX):
            return self.plan_snapshot()
        if dice < 0.7:
            return self.plan_revert(name)
        if self.model.current and dice > 0.9:
            return self.plan_forget(self.model.current, "commit")
        return self.plan_forget(name, "delete")

    # Life and death

    def work(self, mnt: Mount) -> Model | None:
        """Until it is dead; what the last action would have made of it."""
        while mnt.process.poll() is None:
            if self.random.random() < 0.5:
                self.write()
            after, act = self.plan()
            try:
                act()
            except OSError as error:
                if error.errno in DEAD or mnt.process.poll() is not None:
                    return after
                # A commit that the place in the tree does not allow.
                assert error.errno == errno.EINVAL, (self.log[-1], last_failure(self.here.parent))
                self.log.append("... refused")
            else:
                self.model = after
        return None

    def live(self, mnt: Mount) -> Model | None:
        timer = threading.Timer(self.random.uniform(0, 0.7), mnt.signal, (signal.SIGKILL,))
        timer.start()
        try:
            return self.work(mnt)
        finally:
            timer.join()
            mnt.process.wait(10)
            self.log.append("*** kill -9")

    def check(self) -> None:
        """Also where it stands: a revert may change nothing else."""
        super().check()
        assert self.guest.current() == self.model.current

    def settle(self, after: Model | None) -> None:
        begin = time.monotonic()
        wait_for(settled, 60, "settled")
        job = self.here.parent / "job"
        wait_for(lambda: not job.read_text(), 60, "nothing is under way")
        self.slowest = max(self.slowest, time.monotonic() - begin)
        before = self.model
        try:
            self.check()
        except AssertionError:
            if not after:
                raise
            self.log.append("... it is as after it")
            self.model = after
            self.check()
        self.model.made = max(self.model.made, before.made, after.made if after else 0)


@pytest.fixture
def victim(leftovers: None) -> Iterator[Bare]:
    guest = Bare("victim")
    guest.define()
    guest.start()
    yield guest
    guest.undefine()


def start(*, again: bool = False) -> Mount:
    mnt = Mount("qemu:///system", "checkpoint=none")
    if not again:
        mnt.wait_mounted()
    return mnt


def bury(mnt: Mount) -> None:
    sh(["umount", "-l", str(mnt.path)], check=False)
    mnt.finish()


def test_daemon_is_killed_at_random_moments_of_snapshots(victim: Bare) -> None:
    seed = int(os.environ.get("MODEL_SEED", random.randrange(1 << 32)))
    walk = Killed(victim, seed)
    walk.model.state = libvirt.VIR_DOMAIN_RUNNING
    assert victim.blocks() == [0] * BLOCKS
    begin, kills, after = time.monotonic(), 0, None
    mnt = start()
    try:
        while kills < KILLS and (kills < 5 or time.monotonic() - begin < SECONDS):
            walk.enter(mnt)
            after = walk.live(mnt)
            bury(mnt)
            kills += 1
            if walk.random.random() < 0.25:        # the one that puts it in order dies, too
                mnt = start(again=True)
                time.sleep(walk.random.uniform(0, 0.4))
                mnt.signal(signal.SIGKILL)
                mnt.process.wait(10)
                bury(mnt)
                kills += 1
            mnt = start()
            walk.enter(mnt)
            walk.settle(after)
        for name in list(walk.model.snapshots):
            command(walk.here / name, "delete")
        assert victim.blocks() == walk.model.blocks
        assert victim.files() == {"vda.qcow2"}
    except BaseException:
        print(f"MODEL_SEED={seed}, kill {kills}:\n" + "\n".join(walk.log[-60:]))
        raise
    finally:
        bury(mnt)
    print(f"{kills} kills, {len(walk.log)} lines in {time.monotonic() - begin:.0f} s; "
          f"settled within {walk.slowest:.1f} s")
