"""Channels: their state in all processes, and the encryption of their secrets."""

from __future__ import annotations

import asyncio

import pytest
from airflow.sdk.crypto import _NullFernet
from contract.support import RETRY_TIMEOUT, eventually
from cryptography.fernet import Fernet
from sqlalchemy import select

from deferrable_ops.exceptions import ConfigurationError, InputError, UnknownChannel
from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.database import encryption
from deferrable_ops.inbox.events.channels import Channels, _decrypt
from deferrable_ops.inbox.events.event_schema import channels

SECRET = "whsec_hunter2"


@pytest.fixture
def uncached(two: tuple[Inbox, Inbox]) -> tuple[Inbox, Inbox]:
    """An inbox, opened twice, that reads channels without a cache."""
    for inbox in two:
        inbox.channels = Channels(inbox.database, reload_interval=-1.0, min_query_interval=0.0)
    return two


async def test_channel_is_known_to_other_processes_at_once(two: tuple[Inbox, Inbox]) -> None:
    with pytest.raises(UnknownChannel, match="deferrable-ops channels add"):
        await two[1].channels.get("orders")
    await two[0].channels.add("orders", "github", SECRET)
    for inbox in two:
        channel = await inbox.channels.get("orders")
        assert (channel.scheme, channel.secrets) == ("github", (SECRET,))


async def test_secret_is_stored_encrypted_and_not_shown(inbox: Inbox) -> None:
    await inbox.channels.add("orders", "github", SECRET)
    await inbox.channels.rotate("orders", SECRET + "2", old_for=60)
    async with inbox.database.engine.connect() as connection:
        (row,) = (await connection.execute(select(channels))).all()
    assert SECRET not in str(row)
    (listed,) = await inbox.channels.all()
    assert listed.secrets == ()
    assert SECRET not in repr(await inbox.channels.get("orders"))


async def test_of_concurrent_additions_of_a_name_one_wins(two: tuple[Inbox, Inbox]) -> None:
    added = await asyncio.gather(
        *(two[i % 2].channels.add("orders", "github", str(i)) for i in range(6)), return_exceptions=True
    )
    assert [type(one) for one in added].count(InputError) == 5
    winner = added.index(None)
    assert (await two[0].channels.get("orders")).secrets == (str(winner),)


async def test_at_most_two_secrets_are_valid_during_a_rotation(uncached: tuple[Inbox, Inbox]) -> None:
    await uncached[0].channels.add("orders", "bearer", "one")
    await uncached[0].channels.rotate("orders", "two", old_for=60)
    assert (await uncached[1].channels.get("orders")).secrets == ("two", "one")
    await uncached[1].channels.rotate("orders", "three", old_for=60)
    assert (await uncached[0].channels.get("orders")).secrets == ("three", "two")
    await uncached[0].channels.rotate("orders", "four", old_for=0)
    assert (await uncached[1].channels.get("orders")).secrets == ("four",)


async def test_old_secret_expires(inbox: Inbox) -> None:
    await inbox.channels.add("orders", "bearer", "one")
    await inbox.channels.rotate("orders", "two", old_for=0.3)

    async def ended() -> bool:
        return (await inbox.channels.get("orders")).secrets == ("two",)

    await eventually(ended, "the old secret to end")


async def test_channel_that_is_removed_is_unknown_everywhere(uncached: tuple[Inbox, Inbox]) -> None:
    await uncached[0].channels.add("orders", "none", None)
    assert (await uncached[1].channels.get("orders")).secrets == ()
    await uncached[0].channels.remove("orders")
    for inbox in uncached:
        with pytest.raises(UnknownChannel):
            await inbox.channels.get("orders")
    with pytest.raises(UnknownChannel):
        await uncached[0].channels.remove("orders")
    assert await uncached[0].channels.all() == []


async def test_only_a_channel_with_a_secret_can_be_rotated(inbox: Inbox) -> None:
    await inbox.channels.add("open", "none", None)
    with pytest.raises(InputError, match="no secret to rotate"):
        await inbox.channels.rotate("open", "x", old_for=0)
    with pytest.raises(UnknownChannel):
        await inbox.channels.rotate("nowhere", "x", old_for=0)


async def test_thousands_of_requests_need_one_query(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    await inbox.channels.add("orders", "none", None)
    reads = 0
    real = inbox.database.read

    async def count(work: object) -> object:
        nonlocal reads
        reads += 1
        return await real(work)  # type: ignore[arg-type]

    monkeypatch.setattr(inbox.database, "read", count)
    await asyncio.gather(*(inbox.channels.get("orders") for _ in range(1000)))
    for _ in range(1000):
        await inbox.channels.get("orders")
    assert reads == 1
    unknown = await asyncio.gather(
        *(inbox.channels.get(f"invented-{i}") for i in range(500)), return_exceptions=True
    )
    assert {type(one) for one in unknown} == {UnknownChannel}
    assert reads <= 3


async def test_now_is_the_database_clock(inbox: Inbox) -> None:
    await inbox.channels.add("orders", "none", None)
    await inbox.channels.get("orders")
    assert abs(inbox.channels.now() - await inbox.database.now()) < 1


async def test_secret_is_refused_without_a_fernet_key(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encryption, "get_fernet", _NullFernet)
    with pytest.raises(ConfigurationError, match="fernet_key is empty"):
        await inbox.channels.add("orders", "github", SECRET)
    await inbox.channels.add("open", "none", None)


async def test_secret_of_another_fernet_key_fails_only_its_channel(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)
    await inbox.channels.add("orders", "github", SECRET)
    await inbox.channels.add("open", "none", None)
    _decrypt.cache_clear()
    other = Fernet(Fernet.generate_key())
    monkeypatch.setattr(encryption, "get_fernet", lambda: other)
    with pytest.raises(ConfigurationError, match="with another") as raised:
        await inbox.channels.get("orders")
    assert SECRET not in str(raised.value)
    assert (await inbox.channels.get("open")).scheme == "none"
    await inbox.close()
