"""Fixtures of the tests of the command."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.cli.support import CommandInbox


@pytest.fixture
def inbox(inbox_file: Path, monkeypatch: pytest.MonkeyPatch) -> CommandInbox:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", f"sqlite:///{inbox_file}")
    return CommandInbox(inbox_file)
