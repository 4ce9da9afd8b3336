"""The cost of a query does not grow with the number of waits or events: every query uses an index."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from contract.support import RETRY_TIMEOUT, new_attempt, new_wait, send
from sqlalchemy import event, func, select, text

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.changes import read_changes
from deferrable_ops.inbox.database import migrate
from deferrable_ops.inbox.database.schema import callbacks, waits
from deferrable_ops.inbox.waits.endpoints import _any_wait_expects_heartbeats

WAITING, SETTLED = 20_000, 20_000
EVENTS = 40_000
_NUMBERS = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count) SELECT i FROM n",
    "postgresql": "SELECT i FROM generate_series(1, CAST(:count AS int)) AS i",
}
_FILL = """
INSERT INTO deferrable_ops_waits
    (id, ti_id, try_number, dag_id, run_id, task_id, map_index, feature, state, created_at, settled_at, deadline,
     heartbeat_timeout, beat_due, key_id, version)
SELECT '{state}' || i, '{state}' || i, 1, 'dag', 'run', '{state}', i, 'webhook', '{state}', 1.0, {settled_at},
       99999999999.0, {heartbeat}, 99999999999.0 * {heartbeat}, 'key', 0
FROM ({numbers}) AS numbers
"""


_FILL_EVENTS = """
INSERT INTO deferrable_ops_events
    (number, source, dedupe_key, event_time, received_at, payload, attributes)
SELECT i, CASE WHEN i % 1000 = 0 THEN 'quiet' ELSE 'busy' END, i, i, i, 'null', '{{}}'
FROM ({numbers}) AS numbers
"""


@pytest.fixture
async def full(shared_url: str) -> Any:
    """An inbox with 40,000 waits, half of them waiting, and half of those expecting heartbeats."""
    inbox = await Inbox.open(shared_url, retry_timeout=RETRY_TIMEOUT)
    numbers = _NUMBERS[inbox.database.dialect]
    async with inbox.database.begin() as connection:
        for state, count, settled_at in (("waiting", WAITING, "NULL"), ("success", SETTLED, "1.0")):
            fill = _FILL.format(
                state=state, settled_at=settled_at, heartbeat="NULLIF(i % 2, 0)", numbers=numbers
            )
            await connection.execute(text(fill), {"count": count})
    async with inbox.database.begin() as connection:
        await connection.execute(text("ANALYZE"))
    yield inbox
    await inbox.close()


async def test_queries_of_an_idle_process_use_indexes(full: Inbox) -> None:
    _, cursor = await read_changes(full.database, None)
    with _statements(full) as statements:
        await full.waits.expire(beats_since=1.0)
        await full.waits.expire(beats_since=None)
        await full.waits.mark_seen(["waiting1"])
        await read_changes(full.database, cursor)
        await full.database.read(_any_wait_expects_heartbeats)
        await full.cancellations.claim()
        await full.endpoints.up_since()
        await full.keys.verify(await _a_token(full))
    await _assert_no_scans(full, statements)


async def test_queries_of_a_wait_use_indexes(full: Inbox) -> None:
    with _statements(full) as statements:
        wait = await full.waits.register(
            new_wait(new_attempt("waiting", run_id="run", map_index=7, try_number=2))
        )
        await full.waits.newer_attempt_exists(wait.id)
        async with full.launches.claim(wait.id) as claim:
            assert claim is not None
            await claim.record(None)
        await full.waits.save_progress(wait.id, {"seen": 1})
        await full.cancellations.requeue_other_attempts(wait.id)
        await full.waits.kill([wait.id])
        await full.waits.get_many([wait.id])
    await _assert_no_scans(full, statements)


async def test_queries_of_a_follower_use_indexes(full_of_events: Inbox) -> None:
    events = full_of_events.events
    with _statements(full_of_events, "deferrable_ops_events") as statements:
        newest = await events.newest()
        # A busy source, a quiet one with few events in between, and one without events.
        for sources in (["busy"], ["quiet", "empty"]):
            first = await events.first_since(sources, EVENTS * 0.9)
            assert first == EVENTS * 0.9 + (sources == ["busy"])
            page = await events.read(sources, after=first - 1, upto=newest, limit=10)
            assert page[0].number == first
            await events.read(sources, after=0, upto=newest, since=EVENTS * 0.9, limit=10)
    await _assert_no_scans(full_of_events, statements, "deferrable_ops_events", "events", "found")


async def test_callback_updates_no_index_of_a_later_migration(inbox: Inbox) -> None:
    """Each index that changes when a callback arrives makes every callback slower."""
    first = (Path(migrate.__file__).parents[1] / "migrations/versions/0001_waits.py").read_text()
    later = [one for table in (waits, callbacks) for one in table.indexes if str(one.name) not in first]
    expected = {"success_when": "done"}
    attempt = new_attempt()
    wait = await inbox.waits.register(new_wait(attempt, expected=expected, heartbeat_timeout=60.0))
    for payload, state in (({"done": False}, "waiting"), ({"done": True}, "success")):
        await send(inbox, wait.id, payload, idempotency_key=str(payload))
        assert (await inbox.waits.get(wait.id)).state == state
        for index in later:
            condition = index.dialect_options[inbox.database.dialect]["where"]
            assert condition is not None, f"{index.name} contains every wait"
            async with inbox.database.begin() as connection:
                rows = select(func.count()).select_from(index.table).where(condition)
                assert (await connection.execute(rows)).scalar_one() == 0, f"{index.name} contains the wait"
    assert later, "the index of the waits whose deadline pauses"


@pytest.fixture
async def full_of_events(shared_url: str) -> Any:
    """An inbox with a busy source and a quiet one, which has every thousandth event."""
    inbox = await Inbox.open(shared_url, retry_timeout=RETRY_TIMEOUT)
    async with inbox.database.begin() as connection:
        fill = _FILL_EVENTS.format(numbers=_NUMBERS[inbox.database.dialect])
        await connection.execute(text(fill), {"count": EVENTS})
        await connection.execute(text(f"UPDATE deferrable_ops_event_counter SET value = {EVENTS}"))
    async with inbox.database.begin() as connection:
        await connection.execute(text("ANALYZE"))
    yield inbox
    await inbox.close()


@contextmanager
def _statements(inbox: Inbox, table: str = "deferrable_ops_waits") -> Iterator[list[tuple[str, Any]]]:
    statements: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if table in statement and not statement.startswith("INSERT"):
            statements.append((statement, parameters[0] if many else parameters))

    event.listen(inbox.database.engine.sync_engine, "before_cursor_execute", note)
    yield statements
    event.remove(inbox.database.engine.sync_engine, "before_cursor_execute", note)


async def _assert_no_scans(inbox: Inbox, statements: list[tuple[str, Any]], *names: str) -> None:
    """Assert that no statement scans the table.

    :param names: the names and aliases of the table in the statements.
    """
    assert statements
    table, *others = names or ("deferrable_ops_waits",)
    explain, scans = {
        "sqlite": ("EXPLAIN QUERY PLAN", [f"SCAN {name}" for name in (table, *others)]),
        "postgresql": ("EXPLAIN", [f"Seq Scan on {table}"]),
    }[inbox.database.dialect]
    async with inbox.database.engine.connect() as connection:
        for statement, parameters in statements:
            rows = await connection.exec_driver_sql(f"{explain} {statement}", parameters)
            plan = "\n".join(str(row[-1]) for row in rows)
            whole = [
                line
                for line in plan.splitlines()
                if any(f"{scan} " in f"{line} " for scan in scans) and "USING" not in line
            ]
            assert not whole, f"{statement}\n{plan}"


async def _a_token(inbox: Inbox) -> str:
    wait = await inbox.waits.register(new_wait())
    return await inbox.keys.token(wait.id, wait.key_id)
