# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tree as stat, read and walkers see it (faults.md 11, 20, 37 to 47; style.md c7)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import filecmp
import json
import os
import re
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

import bed
import fsutil
from bed import Guest, Mount, raises_errno, sh, wait_for
from conftest import MakeMount
from fsutil import NOBODY, Row, defined, driver_uri

ROWS = fsutil.tree_rows()
FILES = [row for row in ROWS if row.kind in ("text", "feed", "data")]
TEXTS = [row for row in ROWS if row.kind == "text"]
DIRS = [row for row in ROWS if row.kind == "dir"]
TYPES = {"dir": stat.S_IFDIR, "link": stat.S_IFLNK, "text": stat.S_IFREG,
         "control": stat.S_IFREG, "data": stat.S_IFREG, "feed": stat.S_IFREG,
         "guest": stat.S_IFDIR}
# What may have nothing to say; any other text ends in a newline.
MAY_BE_EMPTY = {"error", "job", "events", "backup.xml", "description", "parent"}
NAMES = {"vm": "tree1", "name": "b1", "target": "vda", "device": "vda"}

libc = ctypes.CDLL(None, use_errno=True)


def row_id(row: Row) -> str:
    return row.path


def each(rows: list[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=row_id)


@pytest.fixture(scope="module")
def full() -> Iterator[Mount]:
    """A mount in which every row exists: a machine that is off, with a snapshot and a backup.

    For tests that change nothing.  Of the second machine's backup nothing is
    looked at but by walkers.
    """
    guests = [Guest(NAMES["vm"], agent=False), Guest("walked", agent=False)]
    for guest in guests:
        guest.define()
        guest.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        guest.domain.snapshotCreateXML(
            f"<domainsnapshot><name>{NAMES['name']}</name>"
            f"<memory snapshot='external' file='{guest.dir}/memory'/></domainsnapshot>", 0)
        guest.domain.checkpointCreateXML(
            f"<domaincheckpoint><name>{NAMES['name']}</name></domaincheckpoint>", 0)
        guest.destroy()
        fsutil.add_firmware(guest)
    mount = Mount("qemu:///system")
    backups = [mount.domains / guest.name / "backups/b1" for guest in guests]
    try:
        mount.wait_mounted()
        for backup in backups:
            backup.mkdir()
        for row in ROWS:
            row.at(mount.path, **NAMES).lstat()     # starts what has to be started for it
        yield mount
        for backup in backups:
            fsutil.command(backup, "end force")
    finally:
        mount.finish()
        for guest in guests:
            guest.undefine()


@pytest.fixture
def host(mount: MakeMount) -> Mount:
    """A mount of three domains of the test driver."""
    return mount(driver_uri("one", "two", "three"))


### Every row

@each(ROWS)
def test_row_is_as_the_table_says(full: Mount, row: Row) -> None:
    attr = row.at(full.path, **NAMES).lstat()
    assert stat.S_IFMT(attr.st_mode) == TYPES[row.kind]
    assert oct(stat.S_IMODE(attr.st_mode)) == oct(row.mode)
    assert (attr.st_uid, attr.st_gid) == (0, 0)
    assert attr.st_nlink == 1                       # faults.md 42
    assert attr.st_blksize == (1024 if row.kind == "data" else 128) * 1024
    assert attr.st_mtime_ns == attr.st_ctime_ns > 0


def test_there_is_nothing_but_the_rows(full: Mount) -> None:
    listed = {"/"}
    for top, dirs, files in os.walk(full.path):
        if Path(top) == full.domains:
            dirs[:] = [NAMES["vm"]]                 # not those of other tests
        for name in dirs + files:
            path = str(Path(top, name).relative_to(full.path)) + "/"
            for key, value in NAMES.items():
                path = re.sub(rf"/{value}(?=[./])", f"/<{key}>", path)
            listed.add(path.rstrip("/"))
    hidden = {row.path for row in ROWS if "hidden" in row.flags}
    shown = {row.path for row in ROWS
             if not any(row.path == h or row.path.startswith(h + "/") for h in hidden)}
    assert listed == shown


def test_man_page_names_every_path() -> None:
    text = (bed.REPO / "contrib/man/vmsnapfs.5").read_text()
    named = set(re.findall(r"^\.It Pa (\S+)$", text, re.MULTILINE))
    assert named == {row.path for row in ROWS}


def test_hidden_rows_open_by_name_alone(full: Mount) -> None:
    assert os.listdir(full.path) == ["domains"]
    assert sorted(os.listdir(full.path / ".vmsnapfs")) == [
        "capabilities", "events", "stats", "uri", "version"]
    assert (full.path / ".vmsnapfs/uri").read_text() == "qemu:///system\n"
    assert (full.path / ".vmsnapfs/events.follow").exists()


def test_listing_and_stat_agree(full: Mount) -> None:
    for top, _dirs, _files in os.walk(full.path):
        with os.scandir(top) as entries:
            for entry in entries:
                attr = os.lstat(entry.path)
                assert entry.inode() == attr.st_ino
                assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(attr.st_mode)
                assert entry.is_symlink() == stat.S_ISLNK(attr.st_mode)


def test_what_is_not_there_is_enoent(full: Mount) -> None:
    for path in ("x", "domains/x", "domains/tree1/x", "domains/tree1/backups/x",
                 "domains/tree1/backups/b1/disks/vdb.raw", "domains/TREE1"):
        with raises_errno(errno.ENOENT):
            os.stat(full.path / path)


### Texts

@each(TEXTS)
def test_text_is_whole_and_its_size_true(full: Mount, row: Row) -> None:
    path = row.at(full.path, **NAMES)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        text = file.read()
        assert len(text) == size
        assert os.pread(file.fileno(), 10, size) == b""
        assert os.pread(file.fileno(), 4, 3) == text[3:7]
    assert text.endswith(b"\n") or (text == b"" and path.name in MAY_BE_EMPTY)
    if path.name not in MAY_BE_EMPTY:
        assert path.stat().st_blocks == (path.stat().st_size + 511) // 512 > 0


# facts.md 4: rsync, tar and shutil copy a file of size 0 as an empty one.
@pytest.mark.parametrize("tool", [
    "cat {src}/{name} >{dst}/{name}", "cp {src}/{name} {dst}/", "cp --sparse=always {src}/{name} {dst}/",
    "rsync {src}/{name} {dst}/", "tar -C {src} -cf - {name} | tar -C {dst} -xf -",
    "tar -S -C {src} -cf - {name} | tar -C {dst} -xf -",
    "dd if={src}/{name} of={dst}/{name} bs=7 status=none",
    "busybox cp {src}/{name} {dst}/",
    "/usr/bin/python3 -c 'import shutil; shutil.copyfile(\"{src}/{name}\", \"{dst}/{name}\")'",
])
@pytest.mark.parametrize("directory", ["tree1", "tree1/backups/b1"])
def test_tools_copy_texts_whole(full: Mount, tmp_path: Path, tool: str, directory: str) -> None:
    source = full.domains / directory
    for name in ("domain.xml", "state"):
        sh(tool.format(src=source, dst=tmp_path, name=name))
        assert filecmp.cmp(source / name, tmp_path / name, shallow=False)
        assert (tmp_path / name).stat().st_size > 0


def test_text_of_an_open_file_does_not_change(host: Mount) -> None:
    one = host.domains / "one"
    with (one / "state").open() as file:
        fsutil.command(one, "suspend")
        assert file.read() == "running\n"
    assert (one / "state").read_text() == "paused\n"


def test_sendfile_sees_the_new_text(host: Mount, tmp_path: Path) -> None:
    """The kernel serves sendfile from the page cache even where reads are direct."""
    one, copy = host.domains / "one", tmp_path / "copy"
    shutil.copyfile(one / "state", copy)
    assert copy.read_text() == "running\n"
    fsutil.command(one, "suspend")
    shutil.copyfile(one / "state", copy)
    assert copy.read_text() == "paused\n"


def test_values(full: Mount) -> None:
    vm, domain = full.domains / "tree1", bed.connection().lookupByName("tree1")
    assert (vm / "uuid").read_text() == domain.UUIDString() + "\n"
    assert (vm / "id").read_text() == "-\n"
    assert (vm / "state").read_text() == "shutoff\n"
    assert (vm / "domain.xml").read_text() == domain.XMLDesc()
    assert os.readlink(vm / "backups/latest") == "b1"
    assert (vm / "backups/latest/state").read_text() == "running\n"
    assert (vm / "backups/b1/consistency").read_text() == "offline\n"
    created = (vm / "backups/b1/created").read_text().strip()
    moment_ms = int(sh(["date", "-d", created, "+%s%3N"]).stdout)
    assert (vm / "backups/b1").stat().st_mtime_ns // 10**6 == moment_ms
    for disk in (vm / "backups/b1/disks").iterdir():
        assert disk.stat().st_mtime_ns // 10**6 == moment_ms
        assert disk.stat().st_size == 256 << 20


### Nothing can be changed

@each([row for row in ROWS if row.kind != "control"])
def test_change_is_erofs(full: Mount, row: Row) -> None:
    path = row.at(full.path, **NAMES)
    if row.kind in ("text", "data", "feed"):
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC,
                      os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_CREAT | os.O_TRUNC):
            with raises_errno(errno.EROFS):
                os.open(path, flags)
        with raises_errno(errno.EROFS):
            os.truncate(path, 0)
    if row.kind == "link":
        with raises_errno(errno.EROFS):
            os.chown(path, 1, 1, follow_symlinks=False)
        return
    with raises_errno(errno.EROFS):
        os.chmod(path, 0o777)
    with raises_errno(errno.EROFS):     # libvirt takes that as an answer: facts.md 1
        os.chown(path, 107, 107)
    with raises_errno(errno.EROFS):
        os.utime(path)
    with raises_errno(errno.EROFS):
        os.setxattr(path, "user.vmsnapfs.uuid", b"x")
    with raises_errno(errno.EROFS):
        os.removexattr(path, "user.vmsnapfs.uuid")


@each([row for row in ROWS if row.kind == "control"])
def test_control_cannot_be_changed_either(full: Mount, row: Row) -> None:
    path = row.at(full.path, **NAMES)
    for change in (lambda: os.chmod(path, 0o777), lambda: os.chown(path, 1, 1),
                   lambda: os.utime(path)):
        with raises_errno(errno.EROFS):
            change()


@each([row for row in ROWS if row.path != "/"])
def test_removal_is_eperm(full: Mount, row: Row) -> None:
    path = row.at(full.path, **NAMES)
    if re.fullmatch(r"domains/<vm>/(backups|checkpoints|snapshots)/<name>", row.path):
        return                          # test_guard.py, test_checkpoints.py, test_delete.py
    with raises_errno(errno.EPERM):
        path.rmdir() if row.kind in ("dir", "guest") else path.unlink()
    assert path.lstat()


@each(DIRS)
def test_nothing_can_be_created(full: Mount, row: Row) -> None:
    path = row.at(full.path, **NAMES)
    for create in (lambda: (path / "new").touch(), lambda: (path / "new").symlink_to("x"),
                   lambda: os.mkfifo(path / "new"),
                   lambda: os.link(full.domains / "tree1/uuid", path / "new")):
        with raises_errno(errno.EPERM):
            create()
    if "mkdir" not in row.flags:
        with raises_errno(errno.EPERM):
            (path / "new").mkdir()
    assert "new" not in os.listdir(path)


# faults.md 40
def test_rename(full: Mount) -> None:
    vm = full.domains / "tree1"
    with raises_errno(errno.EOPNOTSUPP):
        os.rename(vm / "backups/b1", vm / "backups/b2")
    assert "rename" in fsutil.last_failure(vm).operation
    for source, target in ((vm, full.domains / "new"), (vm / "uuid", vm / "state"),
                           (vm / "backups", vm / "old")):
        with raises_errno(errno.EPERM):
            os.rename(source, target)
    assert os.listdir(vm / "backups") == ["latest", "b1"]


### What else is asked of a file system

def test_statfs(full: Mount) -> None:
    for path in ("", "domains", "domains/tree1/uuid", "domains/tree1/backups/b1/disks/vda.raw"):
        space = os.statvfs(full.path / path)
        assert space.f_namemax == 255 and space.f_bsize == 4096
        assert space.f_blocks >= space.f_bavail > 0
    assert "fuse.vmsnapfs" in sh(["df", "-T", str(full.path)]).stdout


def test_xattrs(full: Mount) -> None:
    vm = full.domains / "tree1"
    uuid = (vm / "uuid").read_text().strip().encode()
    assert os.listxattr(vm) == ["user.vmsnapfs.uuid"]
    assert os.getxattr(vm, "user.vmsnapfs.uuid") == uuid
    for path in (vm / "backups/b1", vm / "backups/b1/disks/vda.raw"):
        values = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        assert values.items() >= {
            "user.vmsnapfs.uuid": uuid,
            "user.vmsnapfs.consistency": b"offline",
            "user.vmsnapfs.created": (vm / "backups/b1/created").read_bytes().strip()}.items()
    assert os.listxattr(vm / "uuid") == os.listxattr(full.domains) == []
    for name, number in (("user.vmsnapfs.x", errno.ENODATA), ("user.uuid", errno.ENODATA),
                         ("security.capability", errno.EOPNOTSUPP),
                         ("trusted.overlay.opaque", errno.EOPNOTSUPP)):
        with raises_errno(number):
            os.getxattr(vm, name)
    buffer = ctypes.create_string_buffer(3)
    assert libc.getxattr(bytes(vm), b"user.vmsnapfs.uuid", buffer, 3) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert libc.getxattr(bytes(vm), b"user.vmsnapfs.uuid", None, 0) == len(uuid)


def test_seeking_in_a_text(full: Mount) -> None:
    with (full.domains / "tree1/domain.xml").open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        assert file.seek(0, os.SEEK_END) == size
        assert file.seek(3, os.SEEK_DATA) == 3
        assert file.seek(3, os.SEEK_HOLE) == size
        with raises_errno(errno.ENXIO):
            file.seek(size, os.SEEK_DATA)


def test_other_operations_have_an_answer(full: Mount) -> None:
    """None of them ENOSYS, which everybody takes for a dead daemon."""
    with (full.domains / "tree1/uuid").open("rb") as file:
        os.fsync(file.fileno())
        with raises_errno(errno.ENOTTY):
            fcntl.ioctl(file, 0x5401)
        fcntl.flock(file, fcntl.LOCK_SH)
    directory = os.open(full.domains, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    assert os.access(full.domains, os.R_OK | os.W_OK | os.X_OK)
    with (full.domains / "tree1/control").open("wb", buffering=0) as file:
        os.fsync(file.fileno())
        assert libc.fallocate(file.fileno(), 0, 0, 10) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP


# faults.md 43
def test_inode_numbers_survive_a_remount(mount: MakeMount) -> None:
    def numbers(made: Mount) -> dict[str, int]:
        found = {"/": made.path.stat().st_ino}
        for top, dirs, files in os.walk(made.path):
            for name in [*dirs, *files, ".vmsnapfs"]:
                path = Path(top, name)
                if path.exists():
                    found[str(path.relative_to(made.path))] = path.lstat().st_ino
        return found

    uri = driver_uri("one", "two")
    first = mount(uri)
    before = numbers(first)
    assert len(set(before.values())) == len(before) and 0 not in before.values()
    first.unmount()
    first.process.wait(20)
    assert numbers(mount(uri)) == before


### events.follow

def read_lines(process: subprocess.Popen[str], count: int) -> list[dict[str, object]]:
    return [json.loads(process.stdout.readline()) for _ in range(count)]


def follow(*argv: str | Path, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen([*map(str, argv)], stdout=subprocess.PIPE, text=True, **options)


def test_follow_waits_and_delivers(host: Mount) -> None:
    known = (host.path / ".vmsnapfs/events").read_text().splitlines()
    process = follow("cat", host.path / ".vmsnapfs/events.follow")
    try:
        assert read_lines(process, len(known)) == [json.loads(line) for line in known]
        wait_for(lambda: fsutil.is_waiting(process.pid, fsutil.READ), 5, "cat waits")
        fsutil.command(host.domains / "one", "suspend")
        [event] = read_lines(process, 1)
        assert (event["event"], event["domain"], event["text"]) == ("domain-state", "one", "paused")
        assert event["seq"] == len(known) + 1
    finally:
        process.kill()
        process.communicate()


def test_follow_ends_with_the_mount(host: Mount) -> None:
    with follow("cat", host.path / ".vmsnapfs/events.follow") as process:
        wait_for(lambda: fsutil.is_waiting(process.pid, fsutil.READ), 5, "cat waits")
        host.signal(15)
        assert process.wait(10) == 0


def test_follow_is_interrupted(host: Mount) -> None:
    for number in (2, 15, 9):
        with follow("cat", host.path / ".vmsnapfs/events.follow") as process:
            wait_for(lambda: fsutil.is_waiting(process.pid, fsutil.READ), 5, "cat waits")
            process.send_signal(number)
            assert process.wait(10) == -number
    # Those that are gone take nothing from those that come.
    fsutil.command(host.domains / "one", "suspend")
    assert "paused" in (host.path / ".vmsnapfs/events").read_text()


# A shell's `read` takes byte by byte, or a block and seeks back in it.
@pytest.mark.parametrize("shell", ["bash", "dash", "busybox sh"])
def test_shell_loop_reads_every_event(host: Mount, shell: str) -> None:
    events = (host.path / ".vmsnapfs/events").read_text().splitlines()
    loop = (f"while read -r line; do echo \"$line\"; n=$((n+1)); [ $n = {len(events)} ] && exit; "
            f"done <{host.path}/.vmsnapfs/events.follow")
    assert len(events) >= 4
    assert sh([*shell.split(), "-c", loop]).stdout.splitlines() == events


def test_follow_into_a_file(host: Mount, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with copy.open("w") as file:
        process = subprocess.Popen(["cat", host.path / ".vmsnapfs/events.follow"], stdout=file)
    wait_for(lambda: copy.read_text() == (host.path / ".vmsnapfs/events").read_text(), 5, "copied")
    process.kill()
    process.wait()


### Walking is free (faults.md 47)

def everything(mount: Mount) -> object:
    return ([(d.name(), d.state(), d.hasManagedSaveImage())
             for d in bed.connection().listAllDomains()],
            sorted(p.name for p in (mount.domains / "walked/backups").iterdir()))


@pytest.mark.parametrize("walker", [
    "find {0}", "find {0} -ls", "find {0} -type f -empty", "ls -lRZ {0}", "du -a {0}",
    "du --apparent-size {0}", "busybox find {0}", "find {0} -type f -exec head -c 0 {{}} +",
    "find {0} -type f -exec getfattr -d -m- {{}} +", "rsync -an {0}/ /tmp/none/",
    "tar -cf /dev/null --exclude=*.raw {0}", "python3 -c 'import shutil, glob; "
    "print(len(glob.glob(\"{0}/**\", recursive=True)), shutil.disk_usage(\"{0}\"))'"])
def test_walkers_start_nothing(full: Mount, walker: str) -> None:
    before, processes = everything(full), fsutil.descendants(full.pid)
    sh(walker.format(full.path), timeout=20)
    assert everything(full) == before
    # A server that an earlier reader started may end meanwhile.
    assert fsutil.descendants(full.pid) <= processes


def test_recursive_grep_ends(host: Mount) -> None:
    before = fsutil.descendants(host.pid)
    out = sh(["grep", "-r", "running", str(host.path)], timeout=20).stdout
    assert out.count("running") >= 3
    assert fsutil.descendants(host.pid) == before


### Things come and go

# faults.md 41
def test_listing_is_sound_while_domains_come_and_go(full: Mount) -> None:
    stable = [f"stable{i}" for i in range(5)]
    stop = threading.Event()
    changed = 0

    def change() -> None:
        nonlocal changed
        conn = libvirt.open("qemu:///system")
        while not stop.is_set():
            for i in range(5):
                fsutil.define(f"passing{i}")
            for i in range(5):
                conn.lookupByName(f"passing{i}").undefine()
            changed += 1
        conn.close()

    with defined(*stable):
        wait_for(lambda: set(stable) <= set(os.listdir(full.domains)), 5, "shown")
        thread = threading.Thread(target=change)
        thread.start()
        try:
            listings = 0
            while changed < 4 or listings < 10:
                names = os.listdir(full.domains)
                assert len(names) == len(set(names))
                assert set(stable) <= set(names)
                listings += 1
                sh(["ls", "-lR", str(full.domains)], check=False)
        finally:
            stop.set()
            thread.join()
    wait_for(lambda: not any(n.startswith(("stable", "passing")) for n in os.listdir(full.domains)),
             5, "gone")


def test_new_domain_appears_at_once(full: Mount) -> None:
    assert not (full.domains / "fresh").exists()
    with defined("fresh"):
        wait_for((full.domains / "fresh/uuid").exists, 1, "there")
    wait_for(lambda: not (full.domains / "fresh").exists(), 1, "gone")


def test_domain_vanishes_under_open_files(full: Mount) -> None:
    with defined("brief") as [domain]:
        wait_for((full.domains / "brief").exists, 2, "there")
        directory = os.open(full.domains / "brief", os.O_RDONLY | os.O_DIRECTORY)
        state = os.open("state", os.O_RDONLY, dir_fd=directory)
        control = os.open("control", os.O_RDWR, dir_fd=directory)
        domain.undefine()
        wait_for(lambda: not (full.domains / "brief").exists(), 2, "gone")
    with raises_errno(errno.ENOENT):
        os.stat(full.domains / "brief/state")
    # What was opened is what it was; what needs the domain says that it is gone.
    assert os.read(state, 100) == b"shutoff\n"
    with raises_errno(errno.ENOENT):
        os.write(control, b"suspend\n")
    with raises_errno(errno.EIO, errno.ENOENT):
        os.open("state", os.O_RDONLY, dir_fd=directory)
    with raises_errno(errno.ENOENT):
        os.mkdir("backups/x", dir_fd=directory)
    os.listdir(directory)
    for fd in (state, control, directory):
        os.close(fd)


# faults.md 43: the same name, another object
def test_new_domain_of_an_old_name_is_another(full: Mount) -> None:
    path = full.domains / "phoenix"
    with defined("phoenix"):
        wait_for(path.exists, 2, "there")
        first, uuid = path.stat().st_ino, (path / "uuid").read_text()
    with defined("phoenix"):
        wait_for(lambda: path.exists() and (path / "uuid").read_text() != uuid, 2, "another")
        assert path.stat().st_ino != first


def test_domain_is_renamed(full: Mount) -> None:
    with defined("before") as [domain]:
        wait_for((full.domains / "before").exists, 2, "there")
        number = (full.domains / "before").stat().st_ino
        domain.rename("after")
        wait_for((full.domains / "after").exists, 2, "renamed")
        assert not (full.domains / "before").exists()
        assert (full.domains / "after").stat().st_ino == number


# faults.md 20
def test_nodes_are_forgotten(mount: MakeMount) -> None:
    def nodes() -> int:
        text = (made.path / ".vmsnapfs/stats").read_text()
        return int(re.search(r"^nodes: (\d+)$", text, re.MULTILINE)[1])

    made = mount(driver_uri(*(f"vm{i}" for i in range(50))))
    sh(["ls", "-lR", str(made.path)])
    for _ in range(20):
        for i in range(50):
            (made.domains / f"vm{i}/control").read_text()
    Path("/proc/sys/vm/drop_caches").write_text("2")
    wait_for(lambda: nodes() < 20, 5, "forgotten")


### Options

def test_read_only_mount(mount: MakeMount) -> None:
    made = mount(driver_uri("one"), "ro")
    one = made.domains / "one"
    assert (one / "state").read_text() == "running\n"
    for change in ((one / "backups/x").mkdir, (one / "uuid").unlink, (one / "backups").rmdir,
                   lambda: fsutil.command(one, "suspend"), lambda: os.chmod(one, 0o777),
                   lambda: os.rename(one / "backups", one / "y")):
        with raises_errno(errno.EROFS):
            change()
    assert (one / "state").read_text() == "running\n"


def test_owner_and_mode_options(mount: MakeMount) -> None:
    made = mount(driver_uri("one"), f"uid={NOBODY}", "gid=12", "umask=027", "data-gid=34")
    one = made.domains / "one"

    def owner(path: Path) -> tuple[int, int, int]:
        attr = path.lstat()
        return attr.st_uid, attr.st_gid, stat.S_IMODE(attr.st_mode)

    assert owner(one / "uuid") == (NOBODY, 12, 0o640)
    assert owner(one / "control") == (NOBODY, 12, 0o600)
    assert owner(one) == (NOBODY, 34, 0o750)


def test_data_group_reaches_the_disks(mount: MakeMount, full: Mount) -> None:
    made = mount("qemu:///system", "ro", "data-gid=libvirt-qemu", "umask=077")
    gid = shutil._get_gid("libvirt-qemu")
    assert (made.domains / "tree1").stat().st_gid == gid
    assert (made.domains / "tree1/uuid").stat().st_gid == 0
    assert stat.S_IMODE((made.domains / "tree1").stat().st_mode) == 0o700


def test_domains_glob(mount: MakeMount) -> None:
    made = mount(driver_uri("web1", "web2", "db"), "domains=web*")
    assert sorted(os.listdir(made.domains)) == ["web1", "web2"]
    assert not (made.domains / "db").exists()


def test_mkdir_off(mount: MakeMount) -> None:
    made = mount(driver_uri("one"), "mkdir=off")
    with raises_errno(errno.EPERM):
        (made.domains / "one/backups/x").mkdir()
    assert "control" in fsutil.last_failure(made.domains / "one").text


def test_another_user_gets_what_the_modes_say(mount: MakeMount) -> None:
    made = mount(driver_uri("one"), "allow_other", f"gid={NOBODY}")
    one = made.domains / "one"

    def as_nobody(command: str) -> str:
        done = sh(["su", "-s", "/bin/sh", "-g", "nogroup", "nobody", "-c", command], check=False)
        return (done.stdout + done.stderr).strip()

    assert as_nobody(f"cat {one}/state") == "running"
    assert as_nobody(f"ls {one}/backups") == ""
    for command in (f"cat {one}/control", f"echo suspend >{one}/control", f"mkdir {one}/backups/x",
                    f"touch {one}/x", f"rm -f {one}/uuid", f"rmdir {one}/backups"):
        assert "Permission denied" in as_nobody(command)
    assert "Permission denied" in as_nobody(f"echo x >{one}/state")
    assert "not permitted" in as_nobody(f"chmod 777 {one}/uuid")
    assert (one / "state").read_text() == "running\n"


def test_another_user_without_the_group_gets_nothing(mount: MakeMount) -> None:
    made = mount(driver_uri("one"), "allow_other")
    done = sh(["su", "-s", "/bin/sh", "nobody", "-c", f"ls {made.path}"], check=False)
    assert "Permission denied" in done.stderr


def test_without_allow_other_nobody_comes_in(mount: MakeMount) -> None:
    made = mount(driver_uri("one"), f"uid={NOBODY}")
    done = sh(["su", "-s", "/bin/sh", "nobody", "-c", f"stat {made.path}"], check=False)
    assert "Permission denied" in done.stderr
