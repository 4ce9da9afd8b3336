"""Which parent directories are safe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deferrable_ops.upstreams.machine.private_directory import Entry, replacement_problem

ROOT, US, ANOTHER_USER = 0, 1_000, 12_345


@pytest.mark.parametrize(
    ("path", "parent", "complaint"),
    [
        ((0o40700, US), (0o40755, ROOT), None),
        ((0o40700, US), (0o40700, US), None),
        ((0o40755, ROOT), (0o40755, ROOT), None),
        ((0o40755, ANOTHER_USER), (0o40755, ROOT), None),  # such as /home/other: entries in it are refused
        ((0o40700, US), (0o40755, ANOTHER_USER), f"uid {ANOTHER_USER}"),
        ((0o40700, US), (0o41777, ANOTHER_USER), f"uid {ANOTHER_USER}"),
        ((0o40700, US), (0o41777, ROOT), None),
        ((0o40700, ANOTHER_USER), (0o41777, ROOT), f"uid {ANOTHER_USER}"),
        ((0o40700, US), (0o40777, ROOT), r"chmod \+t /a"),
        ((0o40700, US), (0o40777, US), r"chmod \+t /a"),
        ((0o40700, US), (0o40775, US), None),  # members of the group are trusted
    ],
)
def test_path_is_refused_if_another_user_can_rename_it(
    path: tuple[int, int], parent: tuple[int, int], complaint: str | None
) -> None:
    problem = replacement_problem(Path("/a/b"), Entry(*path), Entry(*parent), US)
    assert problem is None if complaint is None else re.search(complaint, str(problem)), problem
