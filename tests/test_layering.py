# SPDX-License-Identifier: LGPL-2.1-or-later
"""The source keeps its rules: who includes what, sizes, licences (style.md c1, c6)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bed import REPO, sh

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 80


def tracked(*patterns: str) -> list[Path]:
    out = sh(["git", "-C", str(REPO), "ls-files", "-co", "--exclude-standard", "--", *patterns])
    return [REPO / name for name in out.stdout.splitlines() if (REPO / name).is_file()]


def lines_with(paths: list[Path], pattern: str) -> list[str]:
    found = []
    for path in paths:
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if re.search(pattern, line):
                found.append(f"{path.relative_to(REPO)}:{number}: {line.strip()}")
    return found


C_FILES = tracked("*.c", "*.h")


def test_there_is_something_to_check() -> None:
    assert len(C_FILES) > 50


@pytest.mark.parametrize("room, foreign", [
    ("fs", r'#\s*include\s*[<"](libvirt/|libnbd|guestfs)'),
    ("mountd", r'#\s*include\s*[<"](libnbd|guestfs|fuse)'),
    ("backend", r'#\s*include\s*[<"](fuse|fs/|mountd/)'),
])
def test_layers(room: str, foreign: str) -> None:
    paths = tracked(f"{room}/*.c", f"{room}/*.h")
    assert paths
    assert lines_with(paths, foreign) == []


# The one way between the two is backend.h.
@pytest.mark.parametrize("room", ["fs", "mountd"])
def test_only_backend_h_crosses(room: str) -> None:
    paths = [path for path in tracked(f"{room}/*.c", f"{room}/*.h")
             if not path.name.startswith("doctor")]
    assert lines_with(paths, r'#\s*include\s*"backend/(?!backend\.h")') == []


def test_generic_code_compares_no_names() -> None:
    generic = [REPO / "fs" / name for name in ("ops.c", "dir.c", "node.c", "attr.c", "text.c")]
    assert lines_with(generic, r'str(n?cmp|_equal)\([^)]*"') == []


def test_every_file_says_its_licence() -> None:
    files = [path for path in tracked("*.c", "*.h", "*.py", "*.build", "*.sh", "contrib/*", ".ci/*")
             if path.suffix != ".md"]
    bare = [str(path.relative_to(REPO)) for path in files
            if "SPDX-License-Identifier: LGPL-2.1-or-later" not in path.read_text(
                errors="replace")[:400]]
    assert bare == []


def test_no_file_is_too_long() -> None:
    long = [f"{path.relative_to(REPO)}: {count}" for path in C_FILES
            if (count := len(path.read_text().splitlines())) > MAX_FILE_LINES]
    assert long == []


def test_no_function_is_too_long() -> None:
    program = r'''
        FNR == 1 { start = 0 }
        /^[a-zA-Z_].*\(/ && !/;[ \t]*$/ { name = $0; sub(/\(.*/, "", name) }
        /^\{/ { start = FNR }
        /^\}/ && start {
            if (FNR - start > max) printf "%s:%d %s: %d lines\n", FILENAME, start, name, FNR - start
            start = 0
        }'''
    paths = [str(path) for path in C_FILES if path.suffix == ".c"]
    assert sh(["awk", "-v", f"max={MAX_FUNCTION_LINES}", program, *paths]).stdout == ""


def test_text_is_clean() -> None:
    assert lines_with(C_FILES, r"\t|\s$|.{101}") == []
    assert lines_with(C_FILES, r"\b(TODO|FIXME|XXX|HACK)\b") == []
    assert lines_with([p for p in C_FILES if p.parts[-2] != "unit"],
                      r"\b(sprintf|strcpy|strcat|strtok|gets|alloca)\s*\(") == []
