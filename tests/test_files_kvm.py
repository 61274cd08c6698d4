# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host on which KVM is there and a machine under it hangs (faults.md 47, facts.md 1)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bed import MIB, VMSNAPFS, Disk, sh
from conftest import MakeGuest, MakeMount
from guestfiles import environment

QEMU = Path("/usr/bin/qemu-system-x86_64")
# A directory that every Debian has, and in which we put up something of our own.
AWAY = Path("/usr/src")

# Number 1 in an appliance's PID namespace is vmsnapfs-files, whose first argument says how.
WRAPPER = f"""#!/bin/sh
case " $* " in
    *" -kernel "*) ! tr '\\0' ' ' </proc/1/cmdline | grep -q 'vmsnapfs-files kvm ' || exec sleep 1000 ;;
esac
exec {AWAY}/{QEMU.name} "$@"
"""


@pytest.fixture
def hanging_kvm(leftovers: None, tmp_path: Path) -> Iterator[dict[str, str]]:
    wrapper = tmp_path / "qemu"
    wrapper.write_text(WRAPPER)
    wrapper.chmod(0o755)
    sh(["mount", "-t", "tmpfs", "-o", "mode=755", "away", str(AWAY)])
    try:
        sh(["cp", str(QEMU), str(AWAY)])
        sh(["mount", "--bind", str(wrapper), str(QEMU)])
        try:
            found = environment()
            del found["LIBGUESTFS_BACKEND_SETTINGS"]
            yield found | {"LD_PRELOAD": str(VMSNAPFS.parent.parent / "tests/kvm.so")}
        finally:
            sh(["umount", "-l", str(QEMU)])
    finally:
        sh(["umount", "-l", str(AWAY)])


def test_kvm_that_hangs_is_given_up(hanging_kvm: dict[str, str], off_guest: MakeGuest,
                                    mount: MakeMount) -> None:
    guests = [off_guest(Disk("vda", "raw", 16 * MIB)) for _ in range(2)]
    mnt = mount("qemu:///system", env=hanging_kvm)
    backups = [mnt.domains / guest.name / "backups/now" for guest in guests]
    stats = mnt.path / ".vmsnapfs/stats"
    for backup in backups:
        backup.mkdir()
    assert "appliance-kvm: if it works\n" in stats.read_text()
    start = time.monotonic()
    assert os.listdir(backups[0] / "files/vda") == ["lost+found"]
    took = time.monotonic() - start
    # 20 s for KVM; what a start takes without; and the build, where it is the first of all.
    assert 20 <= took < 20 + 120 + 300
    assert "appliance-kvm: no\n" in stats.read_text()
    # It is not tried again.
    assert os.listdir(backups[1] / "files/vda") == ["lost+found"]
    assert mnt.log().count("does not start under KVM") == 1
    assert mnt.log().count("did not start within 20 s") == 1
    for backup in backups:
        backup.rmdir()
