# SPDX-License-Identifier: LGPL-2.1-or-later
"""Back to a snapshot: every form of it."""

from __future__ import annotations

import errno
import os
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import libvirt
import pytest

from bare import Bare, bare, bare2, blocks, image_blocks, pair, revert, snapshots  # noqa: F401
from bed import QEMU_USER, Disk, Mount, raises_errno, sh, wait_for
from fsutil import command, last_failure


RUNNING, PAUSED, OFF = (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED,
                        libvirt.VIR_DOMAIN_SHUTOFF)
STEPS = ["record", "images", "define", "current", "stop", "keep", "start", "stand"]


### The matrix

@pytest.mark.parametrize("was", ["running", "off"])
@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("internal", [True, False])
def test_matrix(bare2: Bare, mnt: Mount, was: str, memory: bool, internal: bool) -> None:
    """A snapshot with or without memory, of a machine that runs or is off at the revert."""
    if internal:
        xml = bare2.xml(inactive=True)       # no internal snapshots in raw
        disk = xml.findall("devices/disk")[1]
        xml.find("devices").remove(disk)
        bare2.domain.connect().defineXML(ET.tostring(xml).decode())
        bare2.disks = bare2.disks[:1]
    if memory or not internal:
        bare2.start()
    for target in bare2.targets:
        bare2.write(0, 1, target)
    bare2.snapshot("s", internal=internal, memory=memory)
    if not bare2.domain.isActive() and was == "running":
        bare2.start()
    for target in bare2.targets:
        bare2.write(0, 2, target)
        bare2.write(1, 3, target)
    if bare2.domain.isActive() and was == "off":
        bare2.destroy()
    uuid = bare2.uuid
    for _ in range(2):
        revert(mnt, bare2, "s")
        assert bare2.state == (RUNNING if memory else OFF)
        assert bare2.uuid == uuid
        for target in bare2.targets:
            assert bare2.blocks(target) == blocks(b0=1), target
            bare2.write(5, 9, target)
        assert bare2.current() == "s"
        assert os.readlink(snapshots(mnt, bare2) / "current") == "s"


@pytest.mark.parametrize("word, state", [("running", RUNNING), ("paused", PAUSED), ("off", OFF)])
@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("internal", [True, False])
def test_state_as_asked(bare: Bare, mnt: Mount, word: str, state: int, memory: bool,
                        internal: bool) -> None:
    if memory or not internal:
        bare.start()
    bare.write(0, 1)
    bare.snapshot("s", internal=internal, memory=memory)
    bare.write(0, 2)
    revert(mnt, bare, "s", word)
    assert bare.state == state
    assert bare.blocks() == blocks(b0=1)


def test_memory_comes_back_and_is_thawed(make_guest, mnt: Mount) -> None:
    """The guest's memory, not only its disk; and file systems that were frozen then."""
    guest = make_guest(Disk(), writer=True)
    guest.run("echo before > /run/token")
    guest.domain.fsFreeze()
    path = guest.dir / "s.mem"
    guest.domain.snapshotCreateXML(
        f"<domainsnapshot><name>s</name><memory snapshot='external' file='{path}'/>"
        "</domainsnapshot>", 0)
    guest.domain.fsThaw()
    guest.run("echo after > /run/token")
    counter = guest.counter()
    revert(mnt, guest, "s")
    wait_for(guest.is_healthy, 20, "thawed")
    assert guest.run("cat /run/token") == "before\n"
    wait_for(lambda: guest.counter() > counter, 30, "the writer goes on")
    revert(mnt, guest, "s", "paused")
    assert guest.state == PAUSED
    guest.resume()
    guest.wait_agent()
    guest.domain.fsThaw()
    assert guest.run("cat /run/token") == "before\n"


### A tree

@pytest.mark.parametrize("active", [True, False])
def test_branches(bare2: Bare, mnt: Mount, active: bool) -> None:
    """A chain of five, and back and forth between its branches; nothing else is touched."""
    bare2.start()
    state = {}
    for i in range(5):
        bare2.write(i, i + 1)
        bare2.write(i, i + 11, "vdb")
        bare2.snapshot(f"s{i}", memory=i % 2 == 1)
        state[f"s{i}"] = {t: bare2.blocks(t) for t in bare2.targets}
    bare2.write(9, 99)
    sums = {name: [sh(["sha256sum", bare2.base(name, t)[0]]).stdout for t in bare2.targets]
            for name in state}
    for step, name in enumerate(["s2", "s4", "s0", "s3", "s2", "s1", "s4"]):
        if not active and bare2.domain.isActive():
            bare2.destroy()
        revert(mnt, bare2, name, "running" if active else "off")
        assert bare2.state == (RUNNING if active else OFF)
        assert {t: bare2.blocks(t) for t in bare2.targets} == state[name]
        assert bare2.current() == name
        bare2.write(10, 50 + step)
        branch = f"b{step}"
        bare2.snapshot(branch)
        assert bare2.parent(branch) == name
        state[branch] = {t: bare2.blocks(t) for t in bare2.targets}
        bare2.write(11, 50 + step)
    for name, expected in state.items():
        for target in bare2.targets:
            assert image_blocks(*bare2.base(name, target)) == expected[target], name
    for name, before in sums.items():
        assert [sh(["sha256sum", bare2.base(name, t)[0]]).stdout
                for t in bare2.targets] == before, f"{name} was written to"
    known = {Path(bare2.base(n, t)[0]).name for n in state for t in bare2.targets}
    known |= {Path(bare2.top(t)[0]).name for t in bare2.targets}
    memories = {f for f in bare2.files() if f.endswith(".mem")}
    assert bare2.files() == known | memories, "what is left of a revert is dropped"


@pytest.mark.parametrize("active", [True, False])
def test_internal_chain_of_five(pair: Bare, mnt: Mount, active: bool) -> None:
    """Back and forth, then one after the other goes; what is left holds what it held."""
    if active:
        pair.start()
    state = {}
    for i in range(5):
        for number, target in enumerate(pair.targets):
            pair.write(i, i + 1 + 10 * number, target)
        pair.snapshot(f"s{i}", internal=True, memory=active)
        state[f"s{i}"] = {t: pair.blocks(t) for t in pair.targets}
    for name in ("s2", "s4", "s0", "s3", "s1"):
        revert(mnt, pair, name)
        assert pair.state == (RUNNING if active else OFF)
        assert {t: pair.blocks(t) for t in pair.targets} == state[name]
        assert pair.current() == name
        pair.write(9, 99)
    for name in ("s2", "s4", "s0", "s1", "s3"):
        command(snapshots(mnt, pair) / name, "delete")
        del state[name]
        assert set(pair.snapshots()) == set(state)
        for other, expected in state.items():
            revert(mnt, pair, other)
            assert {t: pair.blocks(t) for t in pair.targets} == expected
    assert pair.state == (RUNNING if active else OFF)


@pytest.mark.parametrize("active", [True, False])
def test_images_of_another_user(bare2: Bare, mnt: Mount, active: bool) -> None:
    """Owned by QEMU's user: what we make can be opened by it, and by nobody else."""
    images = [Path(bare2.top(t)[0]) for t in bare2.targets]
    for image in images:
        shutil.chown(image, QEMU_USER, QEMU_USER)
        image.chmod(0o600)
    if active:
        bare2.start()
    bare2.write(0, 1)
    (snapshots(mnt, bare2) / "s").mkdir()
    bare2.write(0, 2)
    (snapshots(mnt, bare2) / "t").mkdir()
    revert(mnt, bare2, "s", "running")
    assert bare2.blocks() == blocks(b0=1)
    for target in bare2.targets:
        assert Path(bare2.top(target)[0]).stat().st_mode & 0o077 == 0
    revert(mnt, bare2, "t", "running" if active else "off")
    assert bare2.blocks() == blocks(b0=2)
    for name in ("s", "t"):
        command(snapshots(mnt, bare2) / name, "delete")
    if not active:
        bare2.start()
    bare2.write(1, 3)
    assert bare2.blocks() == blocks(b0=2, b1=3)
    assert bare2.files() == {image.name for image in images}
    assert {image.stat().st_mode & 0o777 for image in images} == {0o600}


def test_pflash_keeps_its_variables(bare: Bare, mnt: Mount) -> None:
    """The firmware's variables are no disk: a revert leaves them as they are."""
    code, variables = bare.dir / "code.fd", bare.dir / "vars.fd"
    for path in (code, variables):
        path.write_bytes(bytes(64 * 1024))
    xml = bare.xml(inactive=True)
    boot = xml.find("os")
    ET.SubElement(boot, "loader", readonly="yes", type="pflash").text = str(code)
    ET.SubElement(boot, "nvram").text = str(variables)
    bare.domain.connect().defineXML(ET.tostring(xml).decode())
    bare.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    bare.write(0, 1)
    bare.snapshot("s")
    bare.write(0, 2)
    bare.destroy()
    variables.write_bytes(b"set" + bytes(64 * 1024 - 3))
    for word, state in (("off", OFF), ("paused", PAUSED), ("off", OFF)):
        revert(mnt, bare, "s", word)
        assert bare.state == state
        assert bare.blocks() == blocks(b0=1)
        assert variables.read_bytes()[:3] == b"set"
        found = bare.xml(inactive=True).find("os")
        assert found.findtext("loader") == str(code)
        assert found.findtext("nvram") == str(variables)
        assert found.find("loader").get("type") == "pflash"


def test_overlay_is_as_libvirt_makes_it(bare: Bare, mnt: Mount) -> None:
    bare.start()
    bare.snapshot("s")
    revert(mnt, bare, "s", "running")
    path, fmt = bare.top("vda")
    assert (Path(path).name, fmt) == ("vda.s-r1", "qcow2")
    assert Path(path).stat().st_mode & 0o777 == 0o600
    info = sh(["qemu-img", "info", "-U", path]).stdout
    assert "backing file format: qcow2" in info
    bare.destroy()
    assert sh(["qemu-img", "check", "-q", path]).returncode == 0
    bare.start()


def test_libvirt_deletes_what_is_one_line(bare: Bare, mnt: Mount) -> None:
    """And refuses where it would write into what another branch stands on."""
    bare.start()
    bare.write(0, 1)
    bare.snapshot("root")
    bare.write(1, 2)
    bare.snapshot("one")
    revert(mnt, bare, "root", "running")
    bare.write(2, 3)
    bare.snapshot("two")
    with pytest.raises(libvirt.libvirtError,
                       match="could not find base disk source|multiple children"):
        bare.domain.snapshotLookupByName("root").delete()
    bare.domain.snapshotLookupByName("two").delete()
    assert bare.blocks() == blocks(b0=1, b2=3)
    revert(mnt, bare, "one", "running")
    assert bare.blocks() == blocks(b0=1, b1=2)


### What is left

@pytest.mark.parametrize("active", [True, False])
def test_keep(bare: Bare, mnt: Mount, active: bool) -> None:
    if active:
        bare.start()
    bare.snapshot("s")
    bare.write(3, 7)
    revert(mnt, bare, "s", "keep=left")
    here = snapshots(mnt, bare) / "left"
    assert here.is_dir()
    assert (here / "state").read_text() == ("running\n" if active else "shutoff\n")
    assert (here / "parent").read_text() == "s\n"
    assert bare.blocks() == blocks()
    revert(mnt, bare, "left")
    assert bare.state == (RUNNING if active else OFF)
    assert bare.blocks() == blocks(b3=7)
    with raises_errno(errno.EEXIST):
        revert(mnt, bare, "s", "keep=left")
    assert "a snapshot of that name exists" in last_failure(here.parent / "s").text


def test_keep_internal(bare: Bare, mnt: Mount) -> None:
    bare.start()
    bare.snapshot("s", internal=True, memory=True)
    bare.write(3, 7)
    revert(mnt, bare, "s", "keep=left")
    assert bare.blocks() == blocks()
    revert(mnt, bare, "left")
    assert bare.blocks() == blocks(b3=7)
    assert bare.state == RUNNING


def test_keep_internal_off(bare: Bare, mnt: Mount) -> None:
    bare.snapshot("s", internal=True)
    bare.write(3, 7)
    revert(mnt, bare, "s", "keep=left")
    assert bare.blocks() == blocks()
    revert(mnt, bare, "left")
    assert bare.blocks() == blocks(b3=7)
