"""Waits that no trigger waits for: what an endpoint needs to be sent callbacks."""

from __future__ import annotations

import asyncio

from uuid6 import uuid7  # as Airflow makes the ids of task instances

from deferrable_ops.inbox import Attempt, Inbox, NewWait


async def tokens_of_new_waits(url: str, count: int) -> list[str]:
    """Register so many waits in an inbox and return their tokens."""
    inbox = await Inbox.open(url, retry_timeout=60)
    try:
        registered = await asyncio.gather(
            *(inbox.waits.register(_new_wait(number)) for number in range(count))
        )
        return [await inbox.keys.token(wait.id, wait.key_id) for wait in registered]
    finally:
        await inbox.close()


def _new_wait(number: int) -> NewWait:
    attempt = Attempt(
        str(uuid7()), 1, "bench", "scheduled__2026-01-01T00:00:00+00:00", f"train_{number}", -1, None
    )
    return NewWait(attempt, "webhook", timeout=86_400.0)
