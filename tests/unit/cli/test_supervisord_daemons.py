"""The commands that list and forget the host of a supervisord."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from deferrable_ops.cli.main import main
from deferrable_ops.inbox import Inbox


@pytest.fixture(autouse=True)
def daemon(inbox_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An inbox with one daemon."""
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", f"sqlite:///{inbox_file}")

    async def claim() -> None:
        inbox = await Inbox.open(f"sqlite+aiosqlite:///{inbox_file}", retry_timeout=5)
        await inbox.daemons.claim("/srv/prices", "web-1", "boot", dag_id="prices", run_id="monday")
        await inbox.close()

    asyncio.run(claim())


def test_daemon_of_a_lost_host_is_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["supervisord", "list"]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert (row[0], row[1], *row[3:]) == ("/srv/prices", "web-1", "prices", "monday")
    assert main(["supervisord", "forget", "/srv/prices"]) == 0
    assert "on web-1 is deleted" in capsys.readouterr().out
    assert main(["supervisord", "list"]) == 0
    assert "/srv/prices" not in capsys.readouterr().out


def test_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["supervisord", "forget", "/srv/other"]) == 2
    assert "supervisord list" in capsys.readouterr().err
