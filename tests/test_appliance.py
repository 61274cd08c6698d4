# SPDX-License-Identifier: LGPL-2.1-or-later
"""contrib/appliance: a VM that reads the backups of another, by virtiofs and by disk."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from bed import MIB, REPO, Disk, Guest, Mount, bed_dir, connection, sh, wait_for
from conftest import MakeGuest, MakeMount

APPLIANCE = str(REPO / "contrib" / "appliance")
OPTIONS = ("ro", "allow_other", "data-gid=libvirt-qemu")


def read_only(mount: MakeMount, *more: str) -> Mount:
    return mount("qemu:///system", *OPTIONS, *more)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_disk(mount: MakeMount, make_guest: MakeGuest) -> None:
    """Attached while both run; the machine that is backed up never notices."""
    made = mount("qemu:///system", "allow_other", "data-gid=libvirt-qemu")
    guest = make_guest(Disk("vda", size=24 * MIB), writer=True)
    appliance = make_guest(Disk("vda", size=24 * MIB))
    backup = made.domains / guest.name / "backups" / "now"
    backup.mkdir()
    file = backup / "disks" / "vda.raw"
    xml = sh([APPLIANCE, "disk", str(file), "sdx"]).stdout
    appliance.domain.attachDevice(xml)
    device = wait_for(lambda: appliance.run("ls /sys/block | grep sd || true").strip(), 20,
                      "the disk in the appliance")
    out = appliance.run(f"cat /sys/block/{device}/ro; sha256sum /dev/{device}")
    assert out.split()[:2] == ["1", digest(file)]
    appliance.domain.detachDevice(xml)
    appliance.destroy()
    backup.rmdir()


@contextlib.contextmanager
def read_only_view(directory: Path) -> Iterator[Path]:
    """What an appliance gets that may not make or end anything."""
    view = bed_dir() / "mnt/view"
    view.mkdir(exist_ok=True)
    sh(["mount", "--bind", str(directory), str(view)])
    try:
        sh(["mount", "-o", "remount,bind,ro", str(view)])
        yield view
    finally:
        sh(["umount", str(view)])


def with_share(guest: Guest, shared: Path) -> None:
    """The parts that `appliance share` prints, in the configuration."""
    parts = ET.fromstring("<parts>" + sh([APPLIANCE, "share", str(shared)]).stdout + "</parts>")
    root = guest.xml(inactive=True)
    root.append(parts.find("memoryBacking"))
    root.find("devices").append(parts.find("filesystem"))
    connection().defineXML(ET.tostring(root, encoding="unicode"))


def test_share(mount: MakeMount, make_guest: MakeGuest, off_guest: MakeGuest) -> None:
    made = mount("qemu:///system", "allow_other", "data-gid=libvirt-qemu")
    guest = make_guest(Disk("vda", size=24 * MIB), writer=True)
    appliance = off_guest(Disk("vda", size=24 * MIB), name="appliance")
    with read_only_view(made.domains) as view:
        assert check(view) == (0, "")
        with_share(appliance, view)
        appliance.start()
        backup = made.domains / guest.name / "backups" / "now"
        backup.mkdir()
        appliance.run("mkdir -p /tmp/host; mount -t virtiofs vmsnapfs /tmp/host")
        inside = f"/tmp/host/{guest.name}"
        assert appliance.run(f"cat {inside}/state") == "running\n"
        assert guest.name in appliance.run("ls /tmp/host").split()
        out = appliance.run(f"sha256sum {inside}/backups/now/disks/vda.raw")
        assert out.split()[0] == digest(backup / "disks" / "vda.raw")
        refused = appliance.run(f"mkdir {inside}/backups/two 2>&1 || rmdir {inside}/backups/now "
                                f"2>&1 || echo end 2>&1 >{inside}/backups/now/control || true")
        assert refused.count("Read-only file system") >= 2
        appliance.run("umount /tmp/host")
        appliance.destroy()
        backup.rmdir()


def check(mount: Path) -> tuple[int, str]:
    done = subprocess.run([APPLIANCE, "check", str(mount)], capture_output=True, text=True,
                          check=False)
    return done.returncode, done.stdout


def test_check(mount: MakeMount, tmp_path: Path) -> None:
    assert check(read_only(mount, "domains=web*").path) == (0, "")
    code, said = check(mount("qemu:///system").path)
    assert code == 1
    assert "mounted without -o allow_other" in said
    assert "QEMU's group may not enter it" in said
    assert check(tmp_path) == (1, f"{tmp_path} is no mount point\n")
