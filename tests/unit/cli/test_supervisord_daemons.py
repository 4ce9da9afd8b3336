"""The commands that list and forget the host of a supervisord, and that request to stop or restart something."""

from __future__ import annotations

import asyncio
import threading
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
        await inbox.daemons.claim(
            "/srv/prices",
            "web-1",
            "boot",
            dag_id="prices",
            run_id="monday",
            details={"programs": ["feed", "quotes"], "is_remote": False, "team": None},
        )
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


@pytest.mark.parametrize(
    "command", [["forget", "/srv/other"], ["stop", "/srv/other"], ["restart", "/srv/other", "feed"]]
)
def test_unknown_name_is_refused(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert main(["supervisord", *command]) == 2
    error = capsys.readouterr().err
    assert "no record of the supervisord /srv/other" in error
    assert "supervisord list" in error


def test_unknown_program_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["supervisord", "restart", "/srv/prices", "fed"]) == 2
    assert "no program 'fed'; its programs are feed, quotes" in capsys.readouterr().err


def test_request_that_no_triggerer_carries_out_stays_in_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["supervisord", "stop", "/srv/prices", "--wait", "0"]) == 1
    assert "waiting after 0 s. The triggerers give up the request after an hour" in capsys.readouterr().out
    assert main(["supervisord", "restart", "/srv/prices", "feed", "--wait", "0"]) == 1
    capsys.readouterr()
    assert main(["supervisord", "requests"]) == 0
    _, restart, stop = capsys.readouterr().out.splitlines()
    assert "waiting  restart-program feed  /srv/prices" in restart
    assert "waiting  stop-supervisord      /srv/prices" in stop


@pytest.mark.parametrize(
    ("failed", "status", "printed"), [(False, 0, "Done: pid 7"), (True, 1, "Failed: pid 7")]
)
def test_answer_of_the_triggerer_is_printed(
    inbox_file: Path, capsys: pytest.CaptureFixture[str], failed: bool, status: int, printed: str
) -> None:
    async def answer() -> None:
        inbox = await Inbox.open(f"sqlite+aiosqlite:///{inbox_file}", retry_timeout=5)
        claimed = None
        while claimed is None:
            async with inbox.requests.claim(lambda _: True) as claimed:
                if claimed is not None:
                    await claimed.finish("pid 7", failed=failed)
            await asyncio.sleep(0.01)
        await inbox.close()

    triggerer = threading.Thread(target=lambda: asyncio.run(answer()))
    triggerer.start()
    assert main(["supervisord", "stop", "/srv/prices"]) == status
    triggerer.join()
    assert printed in capsys.readouterr().out
