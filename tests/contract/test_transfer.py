"""An inbox is exported and imported into another database; its Fernet key is rotated; its rows are counted."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from airflow.sdk import crypto
from contract.support import RETRY_TIMEOUT, eventually, new_event, read_all, register, send
from cryptography.fernet import Fernet
from sqlalchemy import select

from deferrable_ops.exceptions import ConfigurationError, InputError
from deferrable_ops.inbox import Inbox, Wait
from deferrable_ops.inbox.database.schema import HEAD, waits
from deferrable_ops.inbox.events.events import SourcePosition
from deferrable_ops.inbox.reencryption import Reencrypted, rotate_fernet
from deferrable_ops.inbox.statistics import read_statistics
from deferrable_ops.inbox.transfer import Transfer
from deferrable_ops.inbox.waits.callbacks import Verb


@pytest.fixture(params=["sqlite", "postgres"])
async def target(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Inbox]:
    """The inbox into which the rows are imported."""
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path / 'target.db'}"
    else:
        url = request.getfixturevalue("empty_postgres_url")
    opened = await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)
    yield opened
    await opened.close()


async def fill(inbox: Inbox) -> list[Wait]:
    """Add rows to the tables, and return a waiting and a settled wait."""
    waiting = await register(inbox, trigger=bytes(range(256)), expected={"success_when": "rows > `1`"})
    settled = await register(inbox)
    await send(inbox, settled.id, {"text": "\u00fc\n"}, Verb.SUCCESS, idempotency_key="once")
    await send(inbox, waiting.id, {"rows": 0})
    await inbox.events.append(new_event(payload={"rows": 3}, attributes={"a": "b"}))
    await inbox.events.append_all([], positions=[SourcePosition("kafka:orders", waiting.id, {"0": 7})])
    await inbox.channels.add("open", "none", None)
    await inbox.daemons.claim("/srv/x", "web-1", "boot", dag_id="d", run_id="r")
    return [await inbox.waits.get(wait.id) for wait in (waiting, settled)]


async def exported(inbox: Inbox) -> io.StringIO:
    file = io.StringIO()
    await Transfer(inbox.database).write_to(file)
    return file


async def test_imported_inbox_is_the_same_and_goes_on(inbox: Inbox, target: Inbox) -> None:
    waiting, settled = await fill(inbox)
    token = await inbox.keys.token(waiting.id, waiting.key_id)
    file = await exported(inbox)
    numbers = await Transfer(target.database).read_from(file)
    assert (numbers["waits"], numbers["callbacks"], numbers["events"], numbers["keys"]) == (2, 2, 1, 1)

    assert await target.waits.get_many([settled.id]) == [settled]
    assert await target.keys.verify(token) == waiting.id
    assert [event.payload for event in await read_all(target, "channel:orders")] == [{"rows": 3}]
    assert [channel.name for channel in await target.channels.all()] == ["open"]
    assert await target.daemons.find("/srv/x") == await inbox.daemons.find("/srv/x")
    again = await exported(target)
    assert rows_of(again) == rows_of(file)

    first = (await inbox.events.append(new_event())).number
    assert (await target.events.append(new_event())).number == first
    with target.watcher.subscribe(waiting.id) as changes:
        assert not (await register(target, waiting.attempt)).is_new
        assert (await send(target, waiting.id, {"rows": 3})).status == 200
        await eventually(lambda: settled_change(changes), "the change of an imported wait")


async def settled_change(changes: object) -> bool:
    wait: Wait | None = changes.take()  # type: ignore[attr-defined]
    return wait is not None and wait.outcome is not None


def rows_of(file: io.StringIO) -> list[str]:
    """Return the rows without the version, which each database counts differently."""
    rows = [json.loads(line) for line in file.getvalue().splitlines()]
    for row in rows:
        if isinstance(row, list) and row[0] == "waits":
            del row[1]["version"]
    return [json.dumps(row, sort_keys=True) for row in rows]


async def test_import_needs_an_empty_inbox_and_a_complete_file(inbox: Inbox, target: Inbox) -> None:
    await fill(inbox)
    file = await exported(inbox)
    with pytest.raises(InputError, match="is not empty: its table"):
        await Transfer(inbox.database).read_from(file)
    lines = file.getvalue().splitlines(keepends=True)
    for content, problem in (
        ("".join(lines[:-1]), "incomplete"),
        ("".join(lines[:3] + lines[4:]), "incomplete"),
        ("".join(lines)[:200], "incomplete"),
        ("", "not an export"),
        ("id,name\n", "incomplete"),
        ("[]\n", "not an export"),
        ('{"deferrable_ops_export": 1, "schema": "9999"}\n', f"this release supports schemas up to {HEAD}"),
    ):
        with pytest.raises(InputError, match=problem):
            await Transfer(target.database).read_from(io.StringIO(content))
    assert await target.waits.find() == [], "nothing of a refused file is kept"
    await Transfer(target.database).read_from(file)


@pytest.fixture
def fernet_keys(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """An old and a new Fernet key; the old key is set."""
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    set_fernet(monkeypatch, old)
    return old, new


def set_fernet(monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", keys)
    crypto.get_fernet.cache_clear()


async def test_fernet_rotation_encrypts_triggers_and_secrets_with_the_new_key(
    inbox: Inbox, fernet_keys: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = fernet_keys
    stored = [await register(inbox, trigger=Fernet(old).encrypt(b"trigger")) for _ in range(3)]
    foreign = await register(inbox, trigger=Fernet(Fernet.generate_key()).encrypt(b"x"))
    await register(inbox)
    await inbox.channels.add("signed", "bearer", "s" * 40)
    await inbox.channels.rotate("signed", "t" * 40, old_for=3600)
    set_fernet(monkeypatch, f"{new},{old}")
    assert await rotate_fernet(inbox.database) == Reencrypted(triggers=3, secrets=2, unreadable=1)
    assert await rotate_fernet(inbox.database) == Reencrypted(triggers=3, secrets=2, unreadable=1)
    set_fernet(monkeypatch, new)
    encrypted = await triggers(inbox)
    assert [Fernet(new).decrypt(encrypted[wait.id]) for wait in stored] == [b"trigger"] * 3
    assert foreign.id in encrypted
    reopened = Inbox(str(inbox.database.url), retry_timeout=RETRY_TIMEOUT).channels
    reopened._database = inbox.database
    assert (await reopened.get("signed")).secrets == ("t" * 40, "s" * 40)
    set_fernet(monkeypatch, "")
    with pytest.raises(ConfigurationError, match="fernet_key is empty"):
        await rotate_fernet(inbox.database)


async def triggers(inbox: Inbox) -> dict[str, bytes]:
    async def read(connection: object) -> dict[str, bytes]:
        rows = await connection.execute(select(waits.c.id, waits.c.trigger))  # type: ignore[attr-defined]
        return {wait_id: trigger for wait_id, trigger in rows if trigger is not None}

    return await inbox.database.read(read)


@pytest.fixture(autouse=True)
def fresh_fernet() -> AsyncIterator[None]:
    yield  # type: ignore[misc]
    crypto.get_fernet.cache_clear()


async def test_statistics_count_the_rows(inbox: Inbox) -> None:
    waiting, _ = await fill(inbox)
    await inbox.waits.kill([waiting.id])
    found = await read_statistics(inbox.database)
    assert found.waits == {"killed": 1, "success": 1}
    assert (found.callbacks, found.events, found.channels, found.keys) == (2, 1, 1, 1)
    assert (found.oldest_waiting, found.cancellations_due) == (None, 1)
    assert found.bytes > 0
    another = await register(inbox)
    assert (await read_statistics(inbox.database)).oldest_waiting == another.created_at
