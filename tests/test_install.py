# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is installed, and the shell's helpers: vmctl and its completion."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bed import REPO, VMSNAPFS, Guest, Mount, sh

VMCTL = str(REPO / "contrib" / "vmctl")


def install(tmp_path: Path) -> Path:
    build = VMSNAPFS.parent.parent
    sh(["meson", "install", "-C", str(build), "--no-rebuild", "--destdir", str(tmp_path)])
    return tmp_path / "usr/local"


def test_all_is_installed(tmp_path: Path) -> None:
    prefix = install(tmp_path)
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


def verify(units: list[Path]) -> tuple[int, str]:
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *map(str, units)],
                          capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """Every line is known to it, and every program is where the unit says."""
    prefix = install(tmp_path)
    units = []
    for path in sorted((prefix / "lib/systemd/system").iterdir()):
        units.append(tmp_path / path.name)
        units[-1].write_text(path.read_text().replace("=/usr/local/", f"={prefix}/"))
    assert len(units) == 4
    assert verify(units) == (0, "")
    units[0].write_text(units[0].read_text().replace("[Service]", "[Service]\nNonsense=yes", 1))
    assert "Nonsense" in verify(units)[1]


def test_apparmor_takes_the_drop_in(tmp_path: Path) -> None:
    """Debian's profile of every guest includes the file that it is appended to."""
    base = tmp_path / "apparmor.d"
    shutil.copytree("/etc/apparmor.d", base)
    drop_in = base / "local/abstractions/libvirt-qemu"
    drop_in.parent.mkdir(exist_ok=True)
    ours = (REPO / "contrib/apparmor/libvirt-qemu").read_text()
    drop_in.write_text(ours)
    profile = base / "machine"
    profile.write_text("abi <abi/3.0>,\n#include <tunables/global>\n"
                       "profile machine {\n  #include <abstractions/libvirt-qemu>\n}\n")
    parse = ["/usr/sbin/apparmor_parser", "-Q", "-K", "-b", str(base)]
    sh([*parse, str(profile)])
    rules = sh([*parse, "-p", str(profile)]).stdout
    assert "\n/run/vmsnapfs/** rwk,\n/var/lib/vmsnapfs/scratch/ r,\n" in rules
    drop_in.write_text(ours + "nonsense\n")
    assert sh([*parse, str(profile)], check=False).returncode != 0


def vmctl(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([VMCTL, *map(str, words)], capture_output=True, text=True, check=False,
                          timeout=60)


def test_vmctl(mnt: Mount, guest: Guest, tmp_path: Path) -> None:
    vm = mnt.domains / guest.name
    assert vmctl(vm).stdout == (vm / "control").read_text()
    assert vmctl(vm, "suspend").returncode == 0
    assert not guest.is_running()
    assert vmctl(vm, "resume").returncode == 0
    assert guest.is_running()
    done = vmctl(vm, "nonsense")
    assert (done.returncode, done.stdout) == (1, "")
    assert "'nonsense'" in done.stderr
    for words in ((vm / "nothing", "thaw"), (tmp_path, "thaw"), (tmp_path,)):
        done = vmctl(*words)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"vmctl: '{words[0]}' has no control file\n"
    assert not list(tmp_path.iterdir())
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
