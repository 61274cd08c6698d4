# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every crash point that the source has is one at which a test kills the daemon."""

from __future__ import annotations

import re

import test_blockjobs
import test_checkpoints
import test_crash
import test_delete
import test_freeze
import test_incremental
import test_paused
import test_revert_fails
import test_snapshots_fail
from bed import REPO

CALL = re.compile(r'\bbe_crash_point\((\w+|"[^"]+"), "([^"]+)",\s*"([^"]+)"\)')
STEPS = re.compile(r"\bBeStep (\w+)\[\] = \{(.*?)\n\};", re.S)
STEP = re.compile(r'\{"([^"]+)", \w+, (\w+)\}')
RUN = re.compile(r'\bbe_steps_run\((\w+|"[^"]+"), (\w+),')
QUIESCE = re.compile(r'\bbe_quiesce_end\([^;]*?(\w+|"[^"]+"), &[\w>.-]+\);', re.S)


def area_of(word: str, text: str) -> str:
    """A literal, or the macro of its file."""
    if word.startswith('"'):
        return word.strip('"')
    found = re.search(rf'#define {word} "([^"]+)"', text)
    return found[1] if found else ""


def steps_of(text: str) -> set[str]:
    arrays = dict(STEPS.findall(text))
    found = set()
    for area, array in RUN.findall(text):
        for step, undo in STEP.findall(arrays[array]):
            whens = ("before", "after", *(() if undo == "NULL" else ("undone",)))
            found |= {f"{area_of(area, text)}:{step}:{when}" for when in whens}
    return found


def in_source() -> set[str]:
    found: set[str] = set()
    freezers: set[str] = set()
    for path in (path for top in ("backend", "fs", "mountd") for path in REPO.glob(f"{top}/*.c")):
        text = path.read_text()
        if path.name == "step.c":
            continue
        found |= steps_of(text)
        freezers |= {area_of(area, text) for area in QUIESCE.findall(text)}
        found |= {f"{area_of(area, text)}:{step}:{when}" for area, step, when
                  in CALL.findall(text) if area != "area"}
        assert len(CALL.findall(text)) == text.count("be_crash_point("), path
        # quiesce.c's caller says in what it freezes.
        assert path.name == "quiesce.c" or not [c for c in CALL.findall(text) if c[0] == "area"]
    return found | {f"{area}:frozen:after" for area in freezers if area}


def test_every_point_is_one_at_which_a_test_kills() -> None:
    there = in_source()
    killed = set().union(*(module.CRASHES for module in (
        test_blockjobs, test_checkpoints, test_crash, test_delete, test_freeze,
        test_incremental, test_paused, test_revert_fails, test_snapshots_fail)))
    assert sorted(there - killed) == [], "nobody is killed there"
    assert sorted(killed - there) == [], "there is no such point"
    assert len(there) >= 100, "the source was not understood"
    print(f"{len(there)} points")
