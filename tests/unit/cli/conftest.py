"""Fixtures of the tests of the command."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.cli.support import CommandInbox


@pytest.fixture
def inbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandInbox:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", f"sqlite:///{tmp_path / 'inbox.db'}")
    return CommandInbox(tmp_path / "inbox.db")
