# SPDX-License-Identifier: LGPL-2.1-or-later
"""contrib/recipes: a week of backups of a running guest, each day restored to the byte."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bed
from bed import MIB, REPO, Disk, Guest, Mount, bed_dir, sh
from conftest import MakeGuest, MakeMount
from test_incremental import forget  # an autouse fixture

__all__ = ["forget"]

RECIPES = REPO / "contrib" / "recipes"
DAYS = tuple(f"2026-11-{day:02}" for day in range(1, 8))
SIZE = 64 * MIB


@pytest.fixture
def store() -> Iterator[Path]:
    path = bed_dir() / "store"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def recipe(name: str, *args: str | Path, env: dict[str, str] | None = None,
           check: bool = True) -> subprocess.CompletedProcess[str]:
    return sh([str(RECIPES / name), *map(str, args)], timeout=120, check=check,
              env=os.environ | (env or {}))


def reference(guest: Guest, path: Path) -> Path:
    """The disk as the guest has it, while it does not run."""
    sh(["qemu-img", "convert", "-U", "-O", "raw", str(guest.disk_path("vda")), str(path)])
    return path


def a_week(guest: Guest, store: Path, back_up: Callable[[str], None]) -> list[Path]:
    """Writes, backs up, and keeps what the disk was at that moment."""
    days = []
    for number, day in enumerate(DAYS):
        guest.run(f"echo {day} >/data/day; head -c {number + 1}M /dev/urandom >/data/f{number};"
                  f" rm -f /data/f{number - 2}; sync")
        guest.suspend()
        try:
            days.append(reference(guest, store / f".reference-{day}"))
            back_up(day)
        finally:
            guest.resume()
    return days


def assert_same(image: Path, wanted: Path, image_format: str) -> None:
    sh(["qemu-img", "compare", "-f", image_format, "-F", "raw", str(image), str(wanted)])


@pytest.fixture
def web(make_guest: MakeGuest) -> Guest:
    return make_guest(Disk("vda", size=SIZE))


@pytest.fixture
def host(mount: MakeMount, web: Guest) -> Mount:
    """Shows no other machine of the tests."""
    return mount("qemu:///system", f"domains={web.name}", "checkpoint=auto")


def backups(host: Mount, guest: Guest) -> Path:
    return host.domains / guest.name / "backups"


def test_increments(host: Mount, web: Guest, store: Path) -> None:
    days = a_week(web, store,
                  lambda day: recipe("increments", backups(host, web), store / "web", day))
    for day, wanted in zip(DAYS, days, strict=True):
        folder = store / "web" / day
        assert (folder / "domain.xml").exists() and (folder / "initrd").exists()
        sh(["qemu-img", "check", str(folder / "vda.qcow2")])
        assert_same(folder / "vda.qcow2", wanted, "qcow2")
    # Later days hold what changed, and stand on the day before.
    for before, day in zip(DAYS, DAYS[1:]):
        image = store / "web" / day / "vda.qcow2"
        assert image.stat().st_size < SIZE // 4
        assert f"../{before}/vda.qcow2" in sh(["qemu-img", "info", str(image)]).stdout
    assert os.listdir(backups(host, web)) == []


def test_increment_that_fails_is_not_taken(host: Mount, web: Guest, store: Path) -> None:
    recipe("increments", backups(host, web), store / "web", DAYS[0])
    web.run("head -c 3M /dev/urandom >/data/big; sync")
    small = store / "small"
    small.mkdir()
    sh(["mount", "-t", "tmpfs", "-o", "size=1M", "small", str(small)])
    try:
        done = recipe("increments", backups(host, web), small / "web", DAYS[1], check=False)
        assert done.returncode != 0
        assert "No space left" in done.stderr
        assert os.listdir(small / "web") == []
    finally:
        sh(["umount", str(small)])
    assert os.listdir(backups(host, web)) == []
    # The next one stands on the last that was kept.
    web.suspend()
    wanted = reference(web, store / "reference")
    recipe("increments", backups(host, web), store / "web", DAYS[2])
    web.resume()
    assert_same(store / "web" / DAYS[2] / "vda.qcow2", wanted, "qcow2")
    info = sh(["qemu-img", "info", str(store / "web" / DAYS[2] / "vda.qcow2")]).stdout
    assert f"../{DAYS[0]}/vda.qcow2" in info


def test_rsync_history(host: Mount, web: Guest, store: Path) -> None:
    days = a_week(web, store,
                  lambda day: recipe("rsync-history", backups(host, web), store / "web", day))
    for day, wanted in zip(DAYS, days, strict=True):
        assert (store / "web" / day / "domain.xml").exists()
        assert_same(store / "web" / day / "disks" / "vda.raw", wanted, "raw")


def test_tar_stream(host: Mount, web: Guest, store: Path) -> None:
    def back_up(day: str) -> None:
        with (store / f"{day}.tar").open("wb") as archive:
            subprocess.run([RECIPES / "tar-stream", backups(host, web), day], stdout=archive,
                           check=True, timeout=120)

    days = a_week(web, store, back_up)
    for day, wanted in zip(DAYS, days, strict=True):
        assert (store / f"{day}.tar").stat().st_size < SIZE // 2
        sh(["tar", "-C", str(store), "-xSf", str(store / f"{day}.tar")])
        assert_same(store / day / "disks" / "vda.raw", wanted, "raw")


def test_restic(host: Mount, web: Guest, store: Path) -> None:
    env = {"RESTIC_REPOSITORY": str(store / "repo"), "RESTIC_PASSWORD": "secret",
           "RESTIC_CACHE_DIR": str(store / "cache")}
    sh(["restic", "init", "--quiet"], env=os.environ | env)
    days = a_week(web, store,
                  lambda day: recipe("restic", backups(host, web), day, env=env))
    for day, wanted in zip(DAYS, days, strict=True):
        sh(["restic", "restore", "latest", "--tag", day, "--host", web.name, "--target",
            str(store / day)], env=os.environ | env)
        found = list((store / day).rglob("vda.raw"))
        assert len(found) == 1
        assert_same(found[0], wanted, "raw")


def test_borg(host: Mount, web: Guest, store: Path) -> None:
    env = {"BORG_REPO": str(store / "repo"), "BORG_PASSPHRASE": "secret",
           "BORG_BASE_DIR": str(store / "home")}
    sh(["borg", "init", "--encryption=repokey"], env=os.environ | env)
    days = a_week(web, store, lambda day: recipe("borg", backups(host, web), day, env=env))
    for day, wanted in zip(DAYS, days, strict=True):
        place = store / day
        place.mkdir()
        sh(["borg", "extract", "--sparse", f"::{web.name}-{day}"], env=os.environ | env, cwd=place)
        assert_same(place / "disks" / "vda.raw", wanted, "raw")


def test_nightly(host: Mount, web: Guest, store: Path) -> None:
    nights = ("2026-10-01", "2026-10-02", "2026-11-01", "2026-11-02", "2026-12-02")
    for night in nights:
        web.run(f"echo {night} >/data/day; sync")
        done = recipe("nightly", host.path, store / "all", 30, night)
        assert f"{web.name}: " in done.stdout
    # On 12-02 nothing of October is needed: the image of 11-01 stands on nothing.
    assert "removed 2026-10-01" in done.stdout and "removed 2026-10-02" in done.stdout
    assert sorted(os.listdir(store / "all" / web.name)) == list(nights[2:])
    flat = store / "flat"
    sh(["qemu-img", "convert", "-O", "raw",
        str(store / "all" / web.name / nights[-1] / "vda.qcow2"), str(flat)])
    assert bed.read_ext4(flat, "day") == nights[-1] + "\n"


def test_nightly_tells_of_failures(host: Mount, web: Guest, store: Path) -> None:
    (backups(host, web) / "busy").mkdir()
    done = recipe("nightly", host.path, store / "all", 30, DAYS[0], check=False)
    assert done.returncode == 1
    assert f"{web.name}: FAILED" in done.stdout
    assert "backup 'busy' is running" in done.stdout
    (backups(host, web) / "busy").rmdir()


HELPFUL = [*RECIPES.iterdir(), *(RECIPES.parent / name for name in (
    "restore", "boot-test", "appliance", "vmctl", "demo", "check", "deps", "bed/enter"))]


@pytest.mark.parametrize("script", HELPFUL, ids=lambda path: path.name)
def test_each_says_how(script: Path) -> None:
    """And does nothing else."""
    done = sh([str(script), "--help"], check=False, env=os.environ | {"BED_DIR": ""})
    said = done.stdout + done.stderr
    assert done.returncode == (2 if script.parent == RECIPES else 0), said
    assert said.removeprefix("usage: ").startswith(f"{script.name} ") or "appliance" in said
    assert "set -" not in said and "unbound" not in said and "#" not in said


def test_each_is_short() -> None:
    for path in RECIPES.iterdir():
        assert len(path.read_text().splitlines()) <= 40, path
