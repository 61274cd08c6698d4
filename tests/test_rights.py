# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every class of user, every file of the tree, every operation: as the table says."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fsutil import Row, tree_rows
from test_backup import collection

UID, GID, DATA_GID, OTHER = 1001, 1002, 1003, 1004
CLASSES = {"root": (0, 0, ()), "owner": (UID, OTHER, ()), "group": (OTHER, GID, (DATA_GID,)),
           "data-gid": (OTHER, DATA_GID, ()), "gid alone": (OTHER, GID, ()),
           "other": (OTHER, OTHER, ())}

PROBE = r"""
import json, os, sys
def outcome(call, *args):
    try:
        result = call(*args)
        if isinstance(result, int):
            os.close(result)
    except OSError as error:
        return error.errno
    return 0
answers = {}
for path, is_dir in json.load(sys.stdin):
    answers[path] = {
        "read": outcome(os.listdir, path) if is_dir else outcome(os.open, path, os.O_RDONLY),
        "write": None if is_dir else outcome(os.open, path, os.O_WRONLY),
        "chmod": outcome(os.chmod, path, 0o777),
        "create": outcome(os.open, path + "/x", os.O_WRONLY | os.O_CREAT) if is_dir else None,
    }
json.dump(answers, sys.stdout)
"""


def bits(row: Row, umask: int, made: bool, who: str) -> int:
    """What the modes leave to a user of that class: 4 read, 2 write, 1 search."""
    uid, gid, more = CLASSES[who]
    group = DATA_GID if row.kind in ("dir", "data", "guest") else GID
    mode = row.mode & ~umask
    if uid == 0:
        return 7
    if uid == (0 if made else UID):
        return mode >> 6 & 7
    return mode >> 3 & 7 if group in (gid, *more) else mode & 7


def expected(rows: dict[str, Row], row: Row, umask: int, ro: bool, who: str) -> dict[str, object]:
    def made(path: str) -> bool:
        return path.startswith("domains/<vm>/backups/<name>")
    parts = row.path.split("/")
    above = [rows["/"], *(rows["/".join(parts[:n])]
                          for n in range(1, len(parts)) if parts[0])]
    if row.path == "/":
        above = []
    is_dir = row.kind == "dir"
    if not all(bits(r, umask, made(r.path), who) & 1 for r in above):
        return {"read": errno.EACCES, "write": None if is_dir else errno.EACCES,
                "chmod": errno.EACCES, "create": errno.EACCES if is_dir else None}
    own = bits(row, umask, made(row.path), who)
    is_owner = CLASSES[who][0] in (0, 0 if made(row.path) else UID)
    write = errno.EROFS if ro else errno.EACCES if not own & 2 else (
        0 if row.kind == "control" else errno.EROFS)
    create = (errno.EACCES if not own & 1 else errno.EROFS if ro else
              errno.EACCES if not own & 2 else "refused")
    return {"read": 0 if own & 4 else errno.EACCES, "write": None if is_dir else write,
            "chmod": errno.EROFS if ro or is_owner else errno.EPERM,
            "create": create if is_dir else None}


@pytest.mark.parametrize("ro, umask", [(False, 0), (False, 0o27), (False, 0o77), (True, 0)],
                         ids=["umask 0", "umask 027", "umask 077", "ro"])
def test_as_the_table_says(off_guest, mount, ro: bool, umask: int) -> None:
    guest = off_guest()
    mnt = mount("qemu:///system", "allow_other", f"uid={UID}", f"gid={GID}",
                f"data-gid={DATA_GID}", f"umask={umask:o}", *(["ro"] if ro else []))
    if not ro:
        (collection(mnt, guest) / "now").mkdir()
    rows = {row.path: row for row in tree_rows()}
    there: dict[str, Row] = {}
    for row in rows.values():
        path = str(row.at(mnt.path, vm=guest.name, name="now", target="vda"))
        if row.kind not in ("link", "guest") and os.path.lexists(path):
            there[path] = row
    assert len(there) > (10 if ro else 25)
    for who, (uid, gid, more) in CLASSES.items():
        done = subprocess.run([sys.executable, "-c", PROBE], user=uid, group=gid,
                              extra_groups=more, text=True, capture_output=True, timeout=60,
                              cwd="/", check=True,
                              input=json.dumps([(p, r.kind == "dir") for p, r in there.items()]))
        for path, answers in json.loads(done.stdout).items():
            wanted = expected(rows, there[path], umask, ro, who)
            if wanted["create"] == "refused":
                assert answers["create"] in (errno.EPERM, errno.EROFS, errno.EBUSY), (who, path)
                wanted["create"] = answers["create"]
            assert answers == wanted, (who, Path(path).relative_to(mnt.path), answers, wanted)
