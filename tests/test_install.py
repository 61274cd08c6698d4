# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is installed, and the shell's helpers: vmctl and its completion."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bed import REPO, VMSNAPFS, Guest, Mount, sh

VMCTL = str(REPO / "contrib" / "vmctl")


def test_all_is_installed(tmp_path: Path) -> None:
    build = VMSNAPFS.parent.parent
    sh(["meson", "install", "-C", str(build), "--no-rebuild", "--destdir", str(tmp_path)])
    prefix = tmp_path / "usr/local"
    files = {str(p.relative_to(prefix)) for p in prefix.rglob("*") if p.is_file()}
    assert {"bin/vmsnapfs", "bin/vmsnapfs-mountd", "bin/vmctl", "share/man/man5/vmsnapfs.5",
            "share/vmsnapfs/restore", "lib/systemd/system/vmsnapfs@.service"} <= files
    recipes = {p.name for p in (REPO / "contrib/recipes").iterdir()}
    assert recipes == {Path(f).name for f in files if "/recipes/" in f}
    for path in prefix.rglob("*.service"):
        assert "@" not in path.read_text().replace("vmsnapfs@", "")
        start = next(line for line in path.read_text().splitlines()
                     if line.startswith("ExecStart="))
        program = start.split("=", 1)[1].split()[0]
        assert os.access(f"{tmp_path}{program}", os.X_OK)


def vmctl(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([VMCTL, *map(str, words)], capture_output=True, text=True, check=False,
                          timeout=60)


def test_vmctl(mnt: Mount, guest: Guest) -> None:
    vm = mnt.domains / guest.name
    assert vmctl(vm).stdout == (vm / "control").read_text()
    assert vmctl(vm, "suspend").returncode == 0
    assert not guest.is_running()
    assert vmctl(vm, "resume").returncode == 0
    assert guest.is_running()
    done = vmctl(vm, "nonsense")
    assert (done.returncode, done.stdout) == (1, "")
    assert "'nonsense'" in done.stderr
    assert vmctl(vm / "nothing", "thaw").returncode == 1
    assert vmctl().returncode == 2


def complete(*words: str) -> list[str]:
    """What bash offers for the last word."""
    script = (f"source {REPO}/contrib/completion/vmctl; COMP_WORDS=(\"$@\"); "
              "COMP_CWORD=$(($# - 1)); compopt() { :; }; _vmctl; printf '%s\\n' \"${COMPREPLY[@]}\"")
    return sh(["bash", "-c", script, "bash", *words]).stdout.split()


@pytest.mark.parametrize("typed, offered", [
    (("fre",), ["freeze"]),
    (("su",), ["suspend"]),
    (("freeze", "ti"), ["timeout="]),
    (("backup", "x", "qui"), ["quiesce="]),
    (("backup", "x", "asy"), ["async"]),
    (("nonsense", "x"), []),
])
def test_completion(mnt: Mount, guest: Guest, typed: tuple[str, ...],
                    offered: list[str]) -> None:
    assert complete("vmctl", str(mnt.domains / guest.name), *typed) == offered
