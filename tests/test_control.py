# SPDX-License-Identifier: LGPL-2.1-or-later
"""Control files: one write is one command (faults.md 30 to 36; style.md c3)."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import bed
import fsutil
from bed import Guest, Mount, raises_errno, sh, wait_for
from conftest import MakeMount
from fsutil import HungLibvirtd, driver_uri, hung  # noqa: F401


libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_ssize_t
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


class Vm:
    """A domain of the test driver: suspend and resume work there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.control = path / "control"

    @property
    def state(self) -> str:
        return (self.path / "state").read_text().strip()

    @property
    def failures(self) -> list[fsutil.Failure]:
        return fsutil.failures(self.path)

    @property
    def last(self) -> fsutil.Failure:
        return self.failures[-1]


@pytest.fixture
def vm(mount: MakeMount) -> Vm:
    return Vm(mount(driver_uri("one")).domains / "one")


### Every way to write (faults.md 30, 35)

WAYS = [
    "echo suspend > {0}", "echo suspend >> {0}", "printf suspend > {0}",
    "printf 'suspend\\r\\n' > {0}", "echo suspend | tee {0}", "echo suspend | tee -a {0}",
    "echo suspend | dd of={0} status=none", "echo suspend | dd of={0} conv=notrunc status=none",
    "echo suspend | dd of={0} conv=fsync status=none", "cat > {0} <<< suspend",
    "echo ' suspend ' > {0}", "exec 3<>{0}; echo suspend >&3", "exec 3>{0}; echo suspend >&3",
    "echo suspend | busybox tee {0}", "echo suspend > s; cat s > {0}", "echo suspend > s; dd if=s of={0} status=none",
    "python3 -c 'open(\"{0}\", \"w\").write(\"suspend\")'",
    "python3 -c 'print(\"suspend\", file=open(\"{0}\", \"w\"))'",
    "python3 -c 'import pathlib; pathlib.Path(\"{0}\").write_text(\"suspend\")'",
    "perl -e 'open(F, \">\", \"{0}\"); print F \"suspend\\n\"; close(F) or die'",
    "echo suspend async > {0}",
]


@pytest.mark.parametrize("shell", ["bash", "dash"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_runs_it_once(vm: Vm, way: str, shell: str, tmp_path: Path) -> None:
    if shell == "dash" and "<<<" in way:
        way = "echo suspend | cat > {0}"
    sh([shell, "-c", way.format(vm.control)], cwd=tmp_path)
    assert vm.state == "paused"
    assert vm.failures == []            # a second suspend would have failed


def test_offsets_mean_nothing(vm: Vm) -> None:
    fd = os.open(vm.control, os.O_RDWR)
    assert os.pwrite(fd, b"suspend", 1000) == 7
    assert vm.state == "paused"
    assert os.pwrite(fd, b"resume", 3) == 6
    assert vm.state == "running"
    os.close(fd)


# faults.md 30
def test_truncating_does_nothing(vm: Vm) -> None:
    os.truncate(vm.control, 0)
    fd = os.open(vm.control, os.O_RDWR | os.O_TRUNC)
    os.ftruncate(fd, 0)
    os.write(fd, b"suspend")
    os.ftruncate(fd, 0)
    os.close(fd)
    assert vm.state == "paused" and vm.failures == []
    assert vm.control.stat().st_size == 0


# faults.md 35
def test_what_a_control_file_is_not(vm: Vm) -> None:
    fd = os.open(vm.control, os.O_RDWR)
    for size in (1, 7, 1 << 40):
        with raises_errno(errno.EINVAL):
            os.ftruncate(fd, size)
    with raises_errno(errno.EINVAL):
        os.truncate(vm.control, 5)
    for protection in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
        ctypes.set_errno(0)
        assert libc.mmap(None, 4096, protection, mmap.MAP_SHARED, fd, 0) == -1
        assert ctypes.get_errno() == errno.ENODEV
    os.close(fd)
    assert vm.state == "running"


### What is a command (faults.md 31 to 34)

# faults.md 33
@pytest.mark.parametrize("data", [b"\n", b"\r\n", b"   \n", b"# suspend\n", b"#", b"  # x\n", b"\t\n"])
def test_nothing_is_done_and_succeeds(vm: Vm, data: bytes) -> None:
    fd = os.open(vm.control, os.O_RDWR)
    assert os.write(fd, data) == len(data)
    os.close(fd)
    assert vm.state == "running" and vm.failures == []


@pytest.mark.parametrize("data, number, words", [
    (b"sus", errno.EINVAL, ["suspend", "resume", "backup"]),             # faults.md 34
    (b"Suspend", errno.EINVAL, ["suspend", "resume", "backup"]),
    (b"revert", errno.EINVAL, ["suspend", "resume", "backup"]),
    (b"suspend now", errno.EINVAL, ["usage: suspend"]),
    (b"suspend timeout=3", errno.EINVAL, ["usage: suspend"]),
    (b"suspend async async", errno.EINVAL, ["usage: suspend"]),
    (b"backup", errno.EINVAL, ["usage: backup NAME"]),
    (b"backup a b", errno.EINVAL, ["usage: backup NAME"]),
    (b"backup a only=x only=y", errno.EINVAL, ["twice"]),
    (b"backup a only=", errno.EINVAL, ["only="]),
    (b"backup 'a", errno.EINVAL, ["quot"]),
    (b"backup latest", errno.EINVAL, ["latest"]),
    (b"backup a/b", errno.EINVAL, ["'/'"]),
    (b"async", errno.EINVAL, ["suspend", "resume"]),
    (b"suspend\nsuspend\n", errno.EINVAL, ["one line"]),                 # faults.md 31
    (b"suspend\n\n", errno.EINVAL, ["one line"]),
    (b"suspend\rx", errno.EINVAL, ["one line"]),
    (b"suspend\0", errno.EINVAL, ["NUL"]),                               # faults.md 33
    (b"\0", errno.EINVAL, ["NUL"]),
    (b"suspend \xff", errno.EILSEQ, ["UTF-8"]),
    (b"#" * 4097, errno.EFBIG, ["4096"]),                                # faults.md 32
    (b"suspend" + b" " * 4090, errno.EFBIG, ["4096"]),
    (b"#" * 100000, errno.EFBIG, ["4096"]),
    (b"#" * 3000000, errno.EFBIG, ["4096"]),
], ids=lambda value: value[:20] if isinstance(value, bytes) else "")
def test_refused(vm: Vm, data: bytes, number: int, words: list[str]) -> None:
    fd = os.open(vm.control, os.O_RDWR)
    with raises_errno(number):
        os.write(fd, data)
    os.close(fd)
    [failure] = vm.failures
    assert failure.errno == errno.errorcode[number]
    assert all(word in failure.text for word in words)
    assert f"pid={os.getpid()} uid=0" == failure.who
    assert vm.state == "running"


def test_longest_command(vm: Vm) -> None:
    fd = os.open(vm.control, os.O_WRONLY)
    assert os.write(fd, b"suspend" + b" " * 4089) == 4096
    os.close(fd)
    assert vm.state == "paused"


# faults.md 31
def test_command_in_two_writes_is_two_commands(vm: Vm) -> None:
    fd = os.open(vm.control, os.O_WRONLY)
    for part in (b"sus", b"pend"):
        with raises_errno(errno.EINVAL):
            os.write(fd, part)
    os.close(fd)
    assert vm.state == "running" and len(vm.failures) == 2


def test_two_commands_of_one_script(vm: Vm) -> None:
    sh(f"{{ echo suspend; echo resume; echo suspend; }} > {vm.control}")
    assert vm.state == "paused" and vm.failures == []


# faults.md 34
def test_option_that_is_none_is_a_name(vm: Vm) -> None:
    with raises_errno(errno.EOPNOTSUPP):        # the driver's answer to a backup
        fsutil.command(vm.path, "backup a=b")
    assert "a=b" in vm.last.operation


### Failures

def test_failure_tells_what_and_why(vm: Vm) -> None:
    with raises_errno(errno.EINVAL):
        fsutil.command(vm.path, "resume\n")
    assert vm.last.operation == "resume > domains/one/control"
    assert vm.last.text == "the domain is not paused"


def test_failures_are_numbered_and_sixteen_are_kept(vm: Vm) -> None:
    for i in range(20):
        with raises_errno(errno.EINVAL):
            fsutil.command(vm.path, f"no{i}")
    assert [f.text.split("'")[1] for f in vm.failures] == [f"no{i}" for i in range(4, 20)]
    numbers = [f.sequence for f in vm.failures]
    assert numbers == list(range(numbers[0], numbers[0] + 16))


def test_what_a_user_writes_cannot_forge_a_line(vm: Vm) -> None:
    for data in (b"a\x1b[2Jb", b"x\n17 2026 vmsnapfs 'y' EIO: z\n", "caf\u00e9\u2028x".encode()):
        with raises_errno(errno.EINVAL):
            fsutil.command(vm.path, data.decode())
    text = (vm.path / "error").read_text()
    assert text.count("\n") == 3 and "\x1b" not in text
    assert len(vm.failures) == 3


# style.md c3, 6: stdio and dd write what failed again
@pytest.mark.parametrize("program", [
    "f = open('{0}', 'w')\nf.write('resume')\nf.close()",
    "f = open('{0}', 'w')\nprint('resume', file=f, flush=True)",
    "import os\nfd = os.open('{0}', 1)\n"
    "for _ in range(3):\n  try: os.write(fd, b'resume')\n  except OSError as e: print(e.errno)\nraise e",
])
def test_failing_write_is_run_once(vm: Vm, program: str) -> None:
    done = sh(["/usr/bin/python3", "-c", program.format(vm.control)], check=False)
    assert done.returncode != 0
    assert len(vm.failures) == 1


def test_dd_that_fails_runs_it_once(vm: Vm) -> None:
    done = sh(f"echo resume | dd of={vm.control} bs=4k", check=False)
    assert done.returncode == 1 and "Invalid argument" in done.stderr
    assert len(vm.failures) == 1


def test_failed_command_runs_again_when_opened_again(vm: Vm) -> None:
    for _ in range(2):
        with raises_errno(errno.EINVAL):
            fsutil.command(vm.path, "resume")
    assert len(vm.failures) == 2


def test_another_command_runs_after_a_failure(vm: Vm) -> None:
    fd = os.open(vm.control, os.O_RDWR)
    for data, fails in ((b"resume", True), (b"resume", True), (b"suspend", False),
                        (b"resume", False), (b"resume", True), (b"suspend", False)):
        if fails:
            with raises_errno(errno.EINVAL):
                os.write(fd, data)
        else:
            os.write(fd, data)
    os.close(fd)
    assert vm.state == "paused" and len(vm.failures) == 2


def test_too_long_command_is_told_once(vm: Vm) -> None:
    fd = os.open(vm.control, os.O_WRONLY)
    for _ in range(2):
        with raises_errno(errno.EFBIG):
            os.write(fd, b"#" * 5000)
    os.close(fd)
    assert len(vm.failures) == 1


# faults.md 36
def test_close_and_fsync_have_no_error(vm: Vm) -> None:
    fd = os.open(vm.control, os.O_WRONLY)
    with raises_errno(errno.EINVAL):
        os.write(fd, b"resume")
    os.fsync(fd)
    os.close(os.dup(fd))
    os.close(fd)


### Reading back

def test_fresh_read_is_the_usage(vm: Vm) -> None:
    text = vm.control.read_text()
    assert {"backup", "suspend", "resume"} <= {line.split()[0] for line in text.splitlines()}
    with vm.control.open("r+b", buffering=0) as file:
        assert file.read(4) + file.read() == text.encode()
        assert file.read() == b""


# facts.md 4: the write moves the offset at which the answer is read
@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_outcome_is_read_back(vm: Vm, shell: str) -> None:
    script = f"exec 3<>{vm.control}; echo suspend >&3; cat <&3; echo suspend >&3; cat <&3; " \
             "echo resume >&3; read -r x <&3; echo $x; exec 3>&-"
    assert sh([shell, "-c", script], check=False).stdout == (
        "ok\nEINVAL: the domain is not running\nok\n")


def test_outcome_is_read_back_in_python(vm: Vm) -> None:
    with vm.control.open("r+b", buffering=0) as file:
        usage = file.read()
        file.write(b"suspend")
        assert file.read() == b"ok\n"
        assert file.read() == b""
        file.seek(0)
        with raises_errno(errno.EINVAL):
            file.write(b"oops")
        assert file.read().startswith(b"EINVAL: 'oops' is no command here; allowed: backup")
        assert os.pread(file.fileno(), 6, 0) in (b"EINVAL", b"")
    assert vm.control.read_bytes() == usage


### While another one runs

@pytest.fixture
def off_vm() -> Iterator[Guest]:
    guest = Guest("ctl1")
    guest.define()
    yield guest
    guest.undefine()


# style.md c3, 5 and facts.md 4: not hung at O_TRUNC in state D
def test_second_writer_is_busy_at_once(off_vm: Guest, mnt: Mount, hung: HungLibvirtd) -> None:
    one = mnt.domains / "ctl1"
    wait_for(one.exists, 5, "shown")
    hung.hang()
    first = fsutil.write(one / "control", "backup a")
    first.wait_blocked()
    try:
        for line in ("backup b", "suspend", "backup a"):
            done = sh(f"echo {line} > {one}/control", check=False, timeout=2)
            assert "Device or resource busy" in done.stderr
            assert "another command is running" in fsutil.last_failure(one).text
        # Whatever looks at the file meanwhile is answered too.
        assert "backup NAME" in sh(["cat", str(one / "control")], timeout=2).stdout
        sh(f"ls -l {one}; : > {one}/control; echo > {one}/control", timeout=5)
    finally:
        hung.go_on()
    assert first.errno() == 0
    assert os.listdir(one / "backups") == ["latest", "a"]
    fsutil.command(one / "backups/a", "end")
    assert os.listdir(one / "backups") == []


def test_async_returns_before_the_end(off_vm: Guest, mnt: Mount, hung: HungLibvirtd) -> None:
    one = mnt.domains / "ctl1"
    wait_for(one.exists, 5, "shown")
    hung.hang()
    sh(f"echo backup a async > {one}/control", timeout=2)
    assert not (one / "backups/a").exists()
    assert "Device or resource busy" in sh(f"echo suspend > {one}/control", check=False).stderr
    assert "kind: action\nobject: backup a\n" == (one / "job").read_text()
    hung.go_on()
    wait_for((one / "backups/a").exists, 10, "the backup")

    def told() -> bool:
        with raises_errno(errno.EBUSY):
            fsutil.command(one, "backup b async")
        return "rmdir backups/a" in fsutil.last_failure(one).text

    wait_for(told, 5, "what is refused at once, once the first command has ended")
    fsutil.command(one / "backups/a", "end async")
    wait_for(lambda: not (one / "backups/a").exists(), 10, "its end")


def test_commands_on_two_domains_do_not_get_in_each_others_way(mount: MakeMount) -> None:
    names = [f"vm{i}" for i in range(8)]
    domains = mount(driver_uri(*names)).domains
    callers = [fsutil.write(domains / name / "control", "suspend") for name in names]
    assert [caller.errno() for caller in callers] == [0] * len(names)
    assert {(domains / name / "state").read_text() for name in names} == {"paused\n"}


def test_many_writers_leave_a_sound_state(vm: Vm) -> None:
    """Each is run, or told that it was not; nothing is mixed up."""
    script = f"for i in 1 2 3 4 5 6 7 8 9 10; do echo $1 > {vm.control} && echo done; done"
    writers = [subprocess.Popen(["bash", "-c", script, "x", verb], stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, text=True)
               for verb in ("suspend", "resume") * 3]
    done = {"suspend": 0, "resume": 0}
    for verb, writer in zip(("suspend", "resume") * 3, writers, strict=True):
        done[verb] += writer.communicate(timeout=30)[0].count("done")
    assert done["suspend"] - done["resume"] == (1 if vm.state == "paused" else 0)


def test_backup_control(mnt: Mount, off_vm: Guest) -> None:
    one = mnt.domains / "ctl1"
    wait_for(one.exists, 5, "shown")
    fsutil.command(one, "backup a only=vda")
    backup = one / "backups/a"
    with raises_errno(errno.EINVAL):
        fsutil.command(backup, "end now")
    assert "allowed: keep, drop, force" in fsutil.last_failure(backup).text
    assert fsutil.last_failure(one) == fsutil.last_failure(backup)
    with raises_errno(errno.EINVAL):
        fsutil.command(backup, "suspend")
    disk = (backup / "disks/vda.raw").open("rb")
    with raises_errno(errno.EBUSY):
        fsutil.command(backup, "end")
    assert f"process {os.getpid()};" in fsutil.last_failure(one).text
    fsutil.command(backup, "end force")
    assert not backup.exists()
    with raises_errno(errno.EIO):
        disk.read(1)
    disk.close()
    assert bed.connection().lookupByName("ctl1").isActive() == 0
