# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's names as file names, and the names that mkdir takes (faults.md 21 to 29)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

import bed
import fsutil
from bed import Guest, Mount, raises_errno, wait_for
from conftest import MakeMount
from fsutil import defined, driver_uri

# libvirt's name -> the directory's.
SHOWN = {
    "plain": "plain",
    "-rf": "-rf",
    "a b": "a b",
    "trailing ": "trailing%20",
    ".hidden": "%2Ehidden",
    "..": "%2E.",
    "...": "%2E..",
    "100%": "100%25",
    "%2F": "%252F",
    "%41": "%2541",
    "caf\u00e9": "caf\u00e9",
    "cafe\u0301": "cafe\u0301",
    "\U0001f427": "\U0001f427",
    "a<b&c>\"d'e": "a<b&c>\"d'e",
    "]]>": "]]>",
    "$(reboot);`x`": "$(reboot);`x`",
    "a\\b": "a\\b",
    "*?[x]": "*?[x]",
    "~": "~",
    "Web1": "Web1",
    "web1": "web1",
    "latest": "latest",
    "control": "control",
    "x" * 200: "x" * 200,
}


# faults.md 22, 23, 26, 27, 28
def test_names_of_the_test_driver(mount: MakeMount) -> None:
    """libvirt itself refuses '/' and line breaks; test-name.c has those."""
    names = {**SHOWN, "tab\there": "tab%09here"}
    domains = mount(driver_uri(*names)).domains
    assert sorted(os.listdir(domains)) == sorted(names.values())
    uuids = {name: (domains / shown / "uuid").read_text() for name, shown in names.items()}
    assert len(set(uuids.values())) == len(names)
    for name, shown in names.items():
        assert (domains / shown).stat().st_ino == os.lstat(domains / shown).st_ino
        fsutil.command(domains / shown, "suspend")
        assert (domains / shown / "state").read_text() == "paused\n"


# Each name has one spelling.
def test_other_spellings_are_not_there(mount: MakeMount) -> None:
    domains = mount(driver_uri("web1", "a b", "100%", ".x")).domains
    for name in ("%77eb1", "web%31", "a%20b", "100%", "100%2525", ".x", "%2ex", "web1%00", "%"):
        assert not (domains / name).exists(), name


def test_names_of_a_real_libvirtd(mnt: Mount) -> None:
    """Those that it lets us define."""
    made: dict[str, libvirt.virDomain] = {}
    try:
        for name in SHOWN:
            try:
                made[name] = fsutil.define(name)
            except libvirt.libvirtError:
                continue
        assert len(made) >= 18, sorted(set(SHOWN) - set(made))
        wait_for(lambda: {SHOWN[name] for name in made} <= set(os.listdir(mnt.domains)), 5, "shown")
        for name, domain in made.items():
            path = mnt.domains / SHOWN[name]
            assert (path / "uuid").read_text() == domain.UUIDString() + "\n"
            assert (path / "domain.xml").read_text() == domain.XMLDesc()
    finally:
        for domain in made.values():
            domain.undefine()


# faults.md 25
def test_long_names_are_shortened(mount: MakeMount) -> None:
    """A UUID at the end tells two apart that begin alike."""
    names = ["n" * 255, "n" * 256, "n" * 300 + "1", "n" * 300 + "2", "\u00e9" * 200, "%" * 100]
    domains = mount(driver_uri(*names)).domains
    shown = os.listdir(domains)
    assert len(shown) == len(set(shown)) == len(names)
    assert all(len(name.encode()) <= 255 for name in shown)
    assert "n" * 255 in shown
    for name in shown:
        uuid = (domains / name / "uuid").read_text().strip()
        assert len(name) == 255 and "~" not in name or name.endswith(f"%~{uuid}")


### New names

@pytest.fixture(scope="module")
def machine() -> Iterator[Guest]:
    guest = Guest("names1")
    guest.define()
    yield guest
    guest.undefine()


@pytest.fixture
def backups(machine: Guest, mnt: Mount) -> Path:
    path = mnt.domains / machine.name / "backups"
    wait_for(path.exists, 5, "shown")
    return path


GOOD = ["a", "-rf", "--help", "2026-11-21 02:00", "a<b&c>\"d'e", "]]>", "caf\u00e9", "\U0001f427",
        "$(reboot)", "a\\b", "a..b", "a.", " a", "*", "a=b", "b'", "x" * 251, "only=vda"]


# faults.md 22, 23, 25
def test_mkdir_takes_and_gives_back(backups: Path) -> None:
    for name in GOOD:
        (backups / name).mkdir()
        assert sorted(os.listdir(backups)) == sorted([name, "latest"])
        assert os.readlink(backups / "latest") == name
        assert (backups / "latest" / "state").read_text() == "running\n"
        (backups / name).rmdir()
        assert os.listdir(backups) == []


BAD = [
    (b"a\nb", errno.EINVAL), (b"a\tb", errno.EINVAL), (b"\x01", errno.EINVAL),    # 21
    (b"\x1f", errno.EINVAL), (b"\x7f", errno.EINVAL), (b"\xc2\x85", errno.EINVAL),
    (b".x", errno.EINVAL), (b"...", errno.EINVAL), (b"a ", errno.EINVAL),         # 23
    (b" ", errno.EINVAL), (b"100%", errno.EINVAL), (b"%2F", errno.EINVAL),
    (b"%41", errno.EINVAL), (b"\xef\xbf\xbf", errno.EINVAL),
    (b"\xff", errno.EILSEQ), (b"a\xc3", errno.EILSEQ),                            # 24
    (b"\xed\xa0\x80", errno.EILSEQ), (b"\xc0\xaf", errno.EILSEQ),
    (b"x" * 252, errno.ENAMETOOLONG), (b"x" * 255, errno.ENAMETOOLONG),           # 25
    (b"x" * 256, errno.ENAMETOOLONG), (b"\xc3\xa9" * 126, errno.ENAMETOOLONG),
    (b"latest", errno.EINVAL), (b"current", errno.EINVAL),                        # 29
]


@pytest.fixture(scope="module")
def quiet() -> Iterator[Path]:
    """A machine where nothing is ever made."""
    mount = Mount(driver_uri("one"))
    mount.wait_mounted()
    yield mount.domains / "one"
    mount.finish()


@pytest.mark.parametrize("name, number", BAD, ids=[repr(name)[:24] for name, _ in BAD])
def test_mkdir_refuses(quiet: Path, name: bytes, number: int) -> None:
    with raises_errno(number):
        os.mkdir(bytes(quiet / "backups") + b"/" + name)
    assert os.listdir(quiet / "backups") == []
    if len(name) <= 255:                    # a longer one ends in the kernel
        failure = fsutil.last_failure(quiet)
        assert failure.errno == errno.errorcode[number]
        assert failure.operation.startswith("mkdir domains/one/backups/")


# The same rules for a name that a command gives.
@pytest.mark.parametrize("name", ["latest", "a/b", "../x", ".x", "''", "'a '", "100%", "x" * 252])
def test_command_refuses(quiet: Path, name: str) -> None:
    with raises_errno(errno.ENAMETOOLONG if len(name) > 250 else errno.EINVAL):
        fsutil.command(quiet, f"backup {name}")


def test_command_takes_quoted_names(backups: Path) -> None:
    fsutil.command(backups.parent, "backup 'a b' async")
    wait_for((backups / "a b").exists, 5, "made")
    fsutil.command(backups / "a b", "end")


# faults.md 29: libvirt may have a domain of any name, our links notwithstanding.
def test_domain_names_of_the_tree_are_only_names(mount: MakeMount) -> None:
    domains = mount(driver_uri("latest", "domains", ".vmsnapfs", "<vm>")).domains
    assert sorted(os.listdir(domains)) == ["%2Evmsnapfs", "<vm>", "domains", "latest"]
    for name in os.listdir(domains):
        assert (domains / name / "state").read_text() == "running\n"


def test_xml_of_a_strange_name_is_sound(mnt: Mount) -> None:
    with defined("a<b&c>'") as [domain]:
        wait_for((mnt.domains / "a<b&c>'").exists, 5, "shown")
        assert (mnt.domains / "a<b&c>'/domain.xml").read_text() == domain.XMLDesc()
    assert bed.is_libvirtd_up()
