# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest's own files as of its snapshots: true, in nobody's way, and there again."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bed import MIB, Disk, Guest, Mount, raises_errno, sh, wait_for
from conftest import MakeGuest, MakeMount
from fsutil import command, last_failure
from guestfiles import appliance_processes, environment, host_traces, kill, starts

LONG = os.environ.get("STRESS") == "long"
# So often each of them dies.
DEATHS = int(os.environ.get("STRESS_RUNS", "20" if LONG else "1"))


def servers() -> list[int]:
    """Processes that serve images, by PID."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text() == "qemu-nbd\n":
                found.append(int(path.parent.name))
    return found


def raw(tmp: Path, word: str) -> Path:
    """An image with one ext4 and in it one tree."""
    source, image = tmp / f"{word}.d", tmp / f"{word}.raw"
    (source / "a/b").mkdir(parents=True)
    (source / "word").write_text(f"{word}\n")
    for number in range(200):
        (source / f"a/b/{number}").write_text(f"{word} {number}\n")
    (source / "long").write_bytes(hashlib.sha256(word.encode()).digest() * (4 * MIB // 32))
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    sh(["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(source), str(image)])
    return image


def write(guest: Guest, image: Path) -> None:
    """The machine, while it is off, gets other data; what holds a snapshot stays."""
    sh(["qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", str(image),
        str(guest.disk_path("vda"))])


def check_tree(top: Path, word: str) -> None:
    assert (top / "word").read_text() == f"{word}\n"
    assert sorted(os.listdir(top / "a/b")) == sorted(str(number) for number in range(200))
    assert (top / "a/b/77").read_text() == f"{word} 77\n"
    assert (top / "long").read_bytes() == hashlib.sha256(word.encode()).digest() * (4 * MIB // 32)


### A machine that is off

def test_internal_and_external_of_a_machine_that_is_off(
        off_guest: MakeGuest, mount: MakeMount, tmp_path: Path) -> None:
    guest = off_guest(Disk("vda", size=32 * MIB, fs=False))
    mnt = mount("qemu:///system", "appliance-idle=600", env=environment())
    domain = mnt.domains / guest.name
    write(guest, raw(tmp_path, "one"))
    command(domain, "snapshot inner disk=internal")
    write(guest, raw(tmp_path, "two"))
    (domain / "snapshots/outer").mkdir()
    write(guest, raw(tmp_path, "three"))
    inner, outer = (domain / "snapshots" / name for name in ("inner", "outer"))
    # Nothing starts by looking.
    assert "files" not in os.listdir(outer)
    assert stat.S_ISDIR((outer / "files/vda").stat().st_mode)
    with raises_errno(errno.ENOENT):
        (outer / "files/nonsense").stat()
    sh(["find", str(mnt.path), "-ls"])
    assert starts(mnt) == 0 and not servers()
    check_tree(inner / "files/vda", "one")
    check_tree(outer / "files/vda", "two")
    assert sorted(os.listdir(outer / "files")) == ["root", "vda"]
    with raises_errno(errno.ENOENT):
        os.listdir(outer / "files/root")
    assert "no operating system" in last_failure(outer).text
    assert starts(mnt) == 2
    # An appliance that sleeps keeps no server and no lock of an image.
    wait_for(lambda: not servers(), 60, "no server is left")
    image = guest.dir / "vda.qcow2"
    wait_for(lambda: can_be_written(image), 60, "its owner can write to the image")
    assert appliance_processes()
    assert (outer / "files/vda/a/b/11").read_text() == "two 11\n"
    # A file that somebody reads keeps the snapshot, the appliance alone does not.
    with (inner / "files/vda/long").open("rb"):
        with raises_errno(errno.EBUSY):
            inner.rmdir()
    wait_for(lambda: gone(inner), 60, "it is deleted")
    wait_for(lambda: guest.snapshots() == ["outer"], 60, "and the other one stays")
    assert (outer / "files/vda/a/b/12").read_text() == "two 12\n"
    assert starts(mnt) == 3
    wait_for(lambda: gone(outer), 60, "it is deleted")
    wait_for(lambda: guest.snapshots() == [], 60, "none is left")
    assert not [name for name in appliance_processes().values() if "qemu" in name]


def can_be_written(image: Path) -> bool:
    """Whether QEMU gets its lock; nothing is written."""
    return sh(["qemu-io", "-f", "qcow2", "-c", "quit", str(image)], check=False).returncode == 0


def gone(snapshot: Path) -> bool:
    """The kernel tells late of a file's last close."""
    try:
        snapshot.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
    return not snapshot.exists()


### A machine that runs

LOOK = ("cd /data/t && find . ! -type l -exec stat -c '%n %f %u %g %h %Y' {} + | sort && "
        "find . -type f -exec sha256sum {} + | sort && find . -type l -exec readlink {} + | sort")


def host_look(top: Path) -> str:
    """The same, of the mount; links are compared as the guest wrote them."""
    return sh(LOOK.replace("/data/t", f"'{top}/t'")).stdout


def test_running_machine(make_guest: MakeGuest, mount: MakeMount) -> None:
    guest = make_guest(Disk("vda", size=48 * MIB))
    mnt = mount("qemu:///system", "appliance-idle=600", "links=raw", env=environment())
    domain = mnt.domains / guest.name
    guest.run("mkdir -p /data/t/d && cd /data/t && cp /bin/busybox d/ && chmod 755 d/busybox && "
              "ln -s /etc/passwd link && ln d/busybox hard && echo x >'a name' && "
              "chown 1000:12 'a name' && chmod 1640 'a name' && touch -d '2001-02-03' d && sync")
    seen = guest.run(LOOK)
    command(domain, "snapshot inner memory=internal")
    guest.run("rm -r /data/t/d; echo later >/data/t/later; sync")
    later = guest.run(LOOK)
    (domain / "snapshots/outer").mkdir()
    guest.run("rm -r /data/t; sync")
    inner, outer = (domain / "snapshots" / name for name in ("inner", "outer"))
    assert host_look(outer / "files/vda") == later
    assert host_look(inner / "files/vda") == seen
    # The images are merged under the appliance's feet.
    command(outer, "commit")
    wait_for(lambda: not outer.exists(), 60, "it is committed")
    assert guest.run("ls /data") == "lost+found\n"
    assert host_look(inner / "files/vda") == seen
    wait_for(lambda: gone(inner), 60, "it is deleted")
    assert guest.is_running()


### Deaths in the middle of a walk

class Walker:
    """Reads all of a tree again and again, and notes what goes wrong."""

    def __init__(self, top: Path, word: str) -> None:
        self.top, self.word = top, word
        self.stop = threading.Event()
        self.rounds = 0
        self.good = 0                           # of them, without an error
        self.errors: list[int] = []
        self.wrong: list[str] = []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.stop.is_set():
            errors = len(self.errors)
            for number in range(200):
                try:
                    text = (self.top / f"a/b/{number}").read_text()
                except OSError as error:
                    self.errors.append(error.errno or 0)
                    continue
                if text != f"{self.word} {number}\n":
                    self.wrong.append(text)
            drop_caches(self.top)
            self.rounds += 1
            self.good += len(self.errors) == errors

    def end(self) -> None:
        self.stop.set()
        self.thread.join(120)
        assert not self.thread.is_alive()
        assert self.wrong == []
        assert set(self.errors) <= {errno.EIO}


def drop_caches(top: Path) -> None:
    """What the kernel keeps of the walk: its next round asks the appliance."""
    for number in range(200):
        path = top / f"a/b/{number}"
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def kill_servers() -> None:
    for pid in servers():
        os.kill(pid, signal.SIGKILL)


VICTIMS: dict[str, Callable[[], None]] = {
    "the appliance's QEMU": lambda: kill("qemu-system"),
    "the appliance's program": lambda: kill("vmsnapfs-files"),
    "the server of the images": kill_servers,
}


def make_object(kind: str, domain: Path, guest: Guest, tmp: Path) -> Path:
    path = domain / kind / "now"
    path.mkdir()
    if kind == "snapshots":
        write(guest, raw(tmp, "after"))
    return path


def die_in_a_walk(top: Path, name: str) -> None:
    """Whoever dies: what is read is right or EIO, and then there is another one."""
    walker = Walker(top, "word")
    for _ in range(DEATHS):
        good = walker.good
        wait_for(lambda: walker.good > good, 120, f"it walks, before {name} dies")
        VICTIMS[name]()
        good = walker.good
        # After three deaths in a minute the next start waits some seconds.
        wait_for(lambda: walker.good > good + 1, 120, f"it walks again after {name} died")
    walker.end()
    print(f"{name}: {DEATHS} deaths, {walker.good} good walks, {len(walker.errors)} times EIO")
    assert walker.errors or DEATHS < 5 or "server" in name, "no death was noticed"
    check_tree(top, "word")


def kill_daemon_in_a_walk(mnt: Mount, top: Path) -> None:
    walker = Walker(top, "word")
    wait_for(lambda: walker.rounds > 0, 60, "it walks, before the daemon dies")
    mnt.signal(signal.SIGKILL)
    mnt.process.wait(10)
    walker.stop.set()
    walker.thread.join(60)
    assert not walker.thread.is_alive() and walker.wrong == []
    wait_for(lambda: not appliance_processes(), 10, "the appliance dies with the daemon")
    sh(["umount", "-l", str(mnt.path)], check=False)


# That of backups is in test_files.py, too.
@pytest.mark.parametrize("kind", ["snapshots", *(["backups"] if LONG else [])])
def test_deaths_during_a_walk(off_guest: MakeGuest, mount: MakeMount, tmp_path: Path,
                              kind: str) -> None:
    guest = off_guest(Disk("vda", size=32 * MIB, fs=False))
    write(guest, raw(tmp_path, "word"))
    traces = host_traces()
    mnt = mount("qemu:///system", env=environment())
    now = make_object(kind, mnt.domains / guest.name, guest, tmp_path)
    check_tree(now / "files/vda", "word")
    for name in list(VICTIMS) if LONG else list(VICTIMS)[:1]:
        if kind == "snapshots" or name != "the server of the images":
            die_in_a_walk(now / "files/vda", name)
    for _ in range(DEATHS):
        kill_daemon_in_a_walk(mnt, now / "files/vda")
        path = now.relative_to(mnt.path)
        mnt = mount("qemu:///system", env=environment())
        now = mnt.path / path
        if kind == "backups":
            assert not now.exists(), "as of any machine that is off"
            now.mkdir()
        check_tree(now / "files/vda", "word")
    assert host_traces() == traces
    wait_for(lambda: gone(now), 60, "deleted")


def test_death_of_the_guest_during_a_walk(make_guest: MakeGuest, mount: MakeMount) -> None:
    """Its QEMU serves the backup; a snapshot does not need it."""
    guest = make_guest(Disk("vda", size=48 * MIB))
    guest.run("mkdir -p /data/a/b && cd /data/a/b && for i in $(seq 0 199); do "
              "echo word $i >$i; done; sync")
    mnt = mount("qemu:///system", env=environment())
    domain = mnt.domains / guest.name
    (domain / "snapshots/outer").mkdir()
    (domain / "backups/now").mkdir()
    walkers = [Walker(domain / kind / "files/vda", "word")
               for kind in ("snapshots/outer", "backups/now")]
    wait_for(lambda: all(w.rounds > 0 or w.errors for w in walkers), 120, "both walk")
    assert [walker.errors for walker in walkers] == [[], []]
    os.kill(guest.qemu_pid() or 0, signal.SIGKILL)
    wait_for(lambda: errno.EIO in walkers[1].errors, 60, "the backup is told to have failed")
    for walker in walkers:
        walker.end()
    assert walkers[0].errors == []
    with raises_errno(errno.EIO):
        os.listdir(domain / "backups/now/files/vda/lost+found")
    (domain / "backups/now").rmdir()
    assert (domain / "snapshots/outer/files/vda/a/b/7").read_text() == "word 7\n"
    wait_for(lambda: gone(domain / "snapshots/outer"), 60, "it is deleted")


### Whoever waits

def waits_for_mount(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "request_wait_answer" in Path(f"/proc/{pid}/stack").read_text()
    return False


def interrupted_after(argv: list[str]) -> float:
    """Seconds from Ctrl-C to the end of a command that waits for an appliance."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: waits_for_mount(process.pid), 60, f"{argv} waits")
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == -signal.SIGINT
    return time.monotonic() - start


def test_interrupt_works_at_once(off_guest: MakeGuest, mount: MakeMount,
                                 tmp_path: Path) -> None:
    guest = off_guest(Disk("vda", size=32 * MIB, fs=False))
    write(guest, raw(tmp_path, "word"))
    mnt = mount("qemu:///system", env=environment())
    now = mnt.domains / guest.name / "snapshots/now"
    now.mkdir()
    files = now / "files"
    # While it starts.
    times = [interrupted_after(["ls", str(files)])]
    assert (files / "vda/word").read_text() == "word\n"
    kill("qemu-system", signal.SIGSTOP)
    for argv in (["ls", str(files / "vda/a")], ["stat", str(files / "vda/a/b/1")],
                 ["cat", str(files / "vda/long")], ["getfattr", "-d", str(files / "vda/word")],
                 ["find", str(files / "vda/lost+found")]):
        times.append(interrupted_after(argv))
    kill("qemu-system", signal.SIGCONT)
    # Nobody's later call suffers.
    check_tree(files / "vda", "word")
    assert sorted(times)[len(times) // 2] < 0.2, times
    assert max(times) < 5, times
    wait_for(lambda: gone(now), 60, "deleted")
