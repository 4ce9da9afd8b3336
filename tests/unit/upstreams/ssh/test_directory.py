"""The local directory of the sockets that lead to remote machines."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from deferrable_ops.upstreams.ssh.sockets import SocketDirectory


@pytest.mark.parametrize("moment", ["made", "opened"])
def test_directory_removed_by_another_process_is_created_again(
    monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A new directory that is not locked yet looks like one that a killed process left behind."""
    make, opened, removed = tempfile.mkdtemp, os.open, []

    def remove_first(directory: str | Path) -> None:
        if not removed:
            removed.append(Path(directory))
            Path(directory).rmdir()

    def mkdtemp(**arguments: Any) -> str:
        made = make(**arguments)
        if moment == "made":
            remove_first(made)
        return made

    def open_directory(path: Any, *rest: Any, **more: Any) -> int:
        found = opened(path, *rest, **more)
        if moment == "opened":
            remove_first(path)
        return found

    monkeypatch.setattr(tempfile, "tempdir", make(prefix="test-"))
    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    monkeypatch.setattr(os, "open", open_directory)
    directory = SocketDirectory()
    assert directory.path.is_dir()
    assert directory.path != removed[0]
    directory.remove()
    assert not directory.path.exists()
