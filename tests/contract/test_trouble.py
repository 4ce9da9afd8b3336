"""Database errors: outages, misconfigurations and rejected statements are distinguished. No message has a secret."""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
from pathlib import Path

import asyncpg
import pytest
from contract.support import RETRY_TIMEOUT, new_wait, register, send
from sqlalchemy import insert, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from deferrable_ops.exceptions import DeploymentError, InboxError, InboxUnavailable
from deferrable_ops.inbox import Inbox, WaitState
from deferrable_ops.inbox.database.database import Database, Transaction
from deferrable_ops.inbox.database.migrate import migrate
from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.inbox.owner import Owner
from deferrable_ops.inbox.waits.keys import Keys
from deferrable_ops.inbox.waits.waits import Waits
from deferrable_ops.outcome import Success
from real_airflow import Postgres

SECRET = "hunter2"


def message_of(error: BaseException) -> str:
    shown, chained = str(error), error.__cause__
    return shown if chained is None else f"{shown} {message_of(chained)}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"database": "nowhere"}, "does not exist"),
        ({"username": "stranger"}, "does not exist"),
        ({"query": {"sslmode": "require"}}, "ssl=require"),
    ],
)
async def test_wrong_setting_fails_at_once(
    empty_postgres_url: str, change: dict[str, object], message: str
) -> None:
    url = make_url(empty_postgres_url).set(password=SECRET, **change)  # type: ignore[arg-type]
    with pytest.raises(DeploymentError, match=message) as raised:
        await Inbox.open(url.render_as_string(hide_password=False), retry_timeout=RETRY_TIMEOUT)
    assert "inbox_url" in str(raised.value)
    assert SECRET not in message_of(raised.value)


@pytest.mark.parametrize("url", [f"postgresql+asyncpg://user@host:{SECRET}/db", f"{SECRET}"])
async def test_invalid_url_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(DeploymentError, match="inbox_url is not a database URL") as raised:
        await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)
    assert SECRET not in message_of(raised.value)


async def test_role_without_permission_to_create_tables_fails(
    postgres: Postgres, empty_postgres_url: str
) -> None:
    owner = create_async_engine(empty_postgres_url)
    async with owner.begin() as connection:
        await connection.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))
        await connection.execute(text("DROP ROLE IF EXISTS reader"))
        await connection.execute(text("CREATE ROLE reader LOGIN"))
    await owner.dispose()
    url = make_url(empty_postgres_url).set(username="reader").render_as_string(hide_password=False)
    with pytest.raises(DeploymentError, match="permission denied for schema public"):
        await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)


async def test_file_that_cannot_be_created_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match=r"missing/inbox\.db cannot be created"):
        await Inbox.open(f"sqlite+aiosqlite:///{tmp_path}/missing/inbox.db", retry_timeout=RETRY_TIMEOUT)


async def test_file_that_is_not_a_database_fails_at_once(tmp_path: Path) -> None:
    (tmp_path / "inbox.db").write_text("a text that is long enough to be no database" * 100)
    with pytest.raises(DeploymentError, match="file is not a database"):
        await Inbox.open(f"sqlite+aiosqlite:///{tmp_path}/inbox.db", retry_timeout=RETRY_TIMEOUT)


async def test_unreachable_database_is_retried_until_the_timeout() -> None:
    async with asyncio.timeout(10):
        with pytest.raises(InboxUnavailable, match="the inbox does not answer"):
            await Inbox.open("postgresql+asyncpg://nobody@127.0.0.1:1/none", retry_timeout=0.3)


async def test_error_of_a_rejected_statement_contains_no_parameter(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def write(transaction: Transaction) -> None:
        await transaction.connection.execute(insert(waits).values(id=SECRET, ti_id=SECRET))

    with pytest.raises(InboxError, match="the inbox's database rejected a statement") as raised:
        await inbox.database.write(write)
    assert SECRET not in message_of(raised.value)
    assert SECRET not in caplog.text


async def test_parameter_of_the_wrong_type_is_not_an_outage(inbox: Inbox) -> None:
    async def read(connection: AsyncConnection) -> None:
        await connection.execute(waits.select().where(waits.c.try_number == 2**70))

    async with asyncio.timeout(10):
        with pytest.raises((InboxError, OverflowError)) as raised:
            await inbox.database.read(read)
    assert not isinstance(raised.value, InboxUnavailable)
    assert str(2**70) not in str(raised.value)


async def test_write_waits_for_a_locked_file(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/inbox.db"
    database = Database(url, RETRY_TIMEOUT, sqlite_busy_timeout=0.05)
    await migrate(database)
    registry = Waits(database, Keys(database), Owner(database))
    other = sqlite3.connect(tmp_path / "inbox.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    registering = asyncio.create_task(registry.register(new_wait()))
    # The lock does not affect readers.
    assert (await registry.find()) == []
    await asyncio.wait([registering], timeout=0.3)
    assert not registering.done()
    other.execute("COMMIT")
    assert (await registering).launched_at is None
    other.close()
    await database.close()


async def test_closed_connections_are_replaced(two: tuple[Inbox, Inbox]) -> None:
    wait = await register(two[0])
    if two[0].database.dialect == "postgresql":
        async with two[1].database.begin() as connection:
            others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
            await connection.execute(text(f"SELECT pg_terminate_backend(pid) {others}"))
    assert (await two[0].waits.get(wait.id)) == wait
    assert (await send(two[0], wait.id, 1)).status == 200


async def test_read_only_connections_are_replaced_after_a_failover(empty_postgres_url: str) -> None:
    """Connections to the former primary still work, but are read-only: they must be closed."""
    inbox = await Inbox.open(empty_postgres_url, retry_timeout=RETRY_TIMEOUT)
    name = inbox.database.url.database
    async with inbox.database.begin() as connection:
        await connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    await inbox.database.engine.dispose()
    # Now the pool has a read-only connection.
    await inbox.waits.find()
    registering = asyncio.create_task(inbox.waits.register(new_wait()))
    await asyncio.wait([registering], timeout=0.2)
    assert not registering.done()
    async with inbox.database.engine.connect() as connection:
        await connection.execute(text("SET default_transaction_read_only = off"))
        await connection.commit()
        await connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = off"))
        await connection.commit()
    assert (await registering).launched_at is None
    await inbox.close()


async def test_cancelled_reader_does_not_affect_others(inbox: Inbox) -> None:
    wait = await register(inbox)
    for steps in range(12):
        reading = asyncio.create_task(inbox.waits.get(wait.id))
        for _ in range(steps):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert await inbox.waits.get(wait.id) == wait


async def test_rotated_password_is_read_from_the_settings_again(postgres: Postgres) -> None:
    """``register`` and ``settle`` survive it, also where every connection is closed meanwhile."""
    url = make_url(postgres.create_database("rotated", driver="asyncpg"))
    admin = create_async_engine(url)
    async with admin.begin() as connection:
        await connection.execute(text("DROP ROLE IF EXISTS rotating"))
        await connection.execute(text(f"CREATE ROLE rotating LOGIN SUPERUSER PASSWORD '{SECRET}'"))
    urls = [url.set(username="rotating", password=SECRET).render_as_string(hide_password=False)]
    with postgres.password_required("rotating"):
        inbox = await Inbox.open(lambda: urls[-1], retry_timeout=RETRY_TIMEOUT)
        wait = await register(inbox)
        async with admin.begin() as connection:
            await connection.execute(text("ALTER ROLE rotating PASSWORD 'hunter3'"))
            await connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotating'")
            )
        urls.append(url.set(username="rotating", password="hunter3").render_as_string(hide_password=False))
        assert (await inbox.waits.settle(wait.id, Success(1))).state is WaitState.SUCCESS
        assert (await register(inbox)).state is WaitState.WAITING
        await inbox.close()
    await admin.dispose()


async def test_login_that_cannot_be_read_again_fails_no_wait() -> None:
    """The command behind ``inbox_url_cmd`` may fail while a password is rotated."""

    def unreadable() -> str:
        raise DeploymentError("inbox_url cannot be read")

    database = Database("postgresql+asyncpg://user:old@127.0.0.1:1/none", float("inf"), unreadable)
    assert await database._may_recover(asyncpg.InvalidPasswordError("password authentication failed"))
    await database.close()


async def test_rejected_login_that_worked_before_is_an_outage(tmp_path: Path) -> None:
    """The endpoint answers with 503 while a password is rotated, so that services soon call back again."""
    url = f"sqlite+aiosqlite:///{tmp_path}/inbox.db"
    database = Database(url, RETRY_TIMEOUT, lambda: url)
    rejected = asyncpg.InvalidPasswordError("password authentication failed")
    assert not await database._may_recover(rejected)
    await database.now()
    assert await database._may_recover(rejected)
    await database.close()


@pytest.mark.parametrize(
    ("state", "error", "fix"),
    [
        ("53300", InboxUnavailable, "max_connections"),
        ("53100", InboxUnavailable, "free space on the database server"),
        ("25006", InboxUnavailable, "not to a read-only replica"),
        ("26000", DeploymentError, r"\[deferrable_ops\] notify = False"),
        ("42P05", DeploymentError, r"\[deferrable_ops\] notify = False"),
    ],
    ids=["connection limit", "full disk", "read-only replica", "pooler", "pooler, second statement"],
)
async def test_operating_fault_names_the_fix_and_passes_without_a_failure(
    empty_postgres_url: str,
    state: str,
    error: type[Exception],
    fix: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    raised = f"DO $$ BEGIN RAISE EXCEPTION 'a fault' USING ERRCODE = '{state}'; END $$"
    faults = [raised]

    async def read(connection: AsyncConnection) -> int:
        await connection.execute(text(faults[0] if faults else "SELECT 1"))
        return 1

    brief, endless = Database(empty_postgres_url, 1), Database(empty_postgres_url, float("inf"))
    with pytest.raises(error, match=fix):
        await brief.read(read)
    caplog.clear()
    reading = asyncio.create_task(endless.read(read))
    async with asyncio.timeout(20):
        while not re.search(fix, caplog.text):
            assert not reading.done()
            await asyncio.sleep(0.01)
    faults.clear()
    assert await reading == 1
    await brief.close()
    await endless.close()


async def test_cause_is_named_although_the_last_attempt_takes_too_long(empty_postgres_url: str) -> None:
    statements = [
        "DO $$ BEGIN RAISE EXCEPTION 'a fault' USING ERRCODE = '53100'; END $$",
        "SELECT pg_sleep(9)",
    ]

    async def read(connection: AsyncConnection) -> None:
        await connection.execute(text(statements.pop(0)))

    database = Database(empty_postgres_url, 1)
    with pytest.raises(InboxUnavailable, match="free space on the database server"):
        await database.read(read)
    await database.close()


async def test_role_whose_connection_limit_is_reached_waits_for_a_connection(
    postgres: Postgres, empty_postgres_url: str
) -> None:
    owner = create_async_engine(empty_postgres_url)
    async with owner.begin() as connection:
        await connection.execute(text("DROP ROLE IF EXISTS limited"))
        await connection.execute(text("CREATE ROLE limited LOGIN CONNECTION LIMIT 0"))
    url = make_url(empty_postgres_url).set(username="limited").render_as_string(hide_password=False)
    with pytest.raises(InboxUnavailable, match="max_connections"):
        await Inbox.open(url, retry_timeout=2)
    database = Database(url, RETRY_TIMEOUT)
    reading = asyncio.create_task(database.now())
    await asyncio.wait([reading], timeout=0.2)
    assert not reading.done()
    async with owner.begin() as connection:
        await connection.execute(text("ALTER ROLE limited CONNECTION LIMIT 5"))
    assert await reading > 0
    await database.close()
    await owner.dispose()


async def test_statement_that_a_pooler_prepared_on_another_connection_names_the_setting(
    empty_postgres_url: str,
) -> None:
    """A pooler in transaction mode gives each transaction another connection of the server."""
    database = Database(empty_postgres_url, RETRY_TIMEOUT)
    await database.now()
    async with database.engine.connect() as connection:
        raw = await connection.get_raw_connection()
        await raw.driver_connection.execute("DEALLOCATE ALL")  # type: ignore[union-attr]
    with pytest.raises(DeploymentError, match=r"\[deferrable_ops\] notify = False"):
        await database.now()
    await database.close()
