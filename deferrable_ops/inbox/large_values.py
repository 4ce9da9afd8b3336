"""Values too large for an XCom: kept in the inbox, with a reference in the XCom."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from deferrable_ops import settings
from deferrable_ops.exceptions import InputError, UnknownWait
from deferrable_ops.inbox.inbox import use_inbox
from deferrable_ops.inbox.waits.wait import Wait
from deferrable_ops.outcome import Outcome, Success

T = TypeVar("T")

_REFERENCE = "deferrable_ops_value_of_wait"
_RETRY_TIMEOUT = 300.0  # a worker waits out a restart of the database rather than lose an outcome


def as_xcom(wait_id: str, value: Any) -> Any:
    """Return what the XCom of a wait's value is: the value, or above ``max_xcom_bytes`` a reference to it."""
    size = len(json.dumps(value))
    return value if size <= settings.max_xcom_bytes() else {_REFERENCE: wait_id, "bytes": size}


def fetch(reference: Any) -> Any:
    """Return the value that an XCom refers to; a value that is no reference is returned as it is.

    For use in a task. Values are kept as long as their wait: ``[deferrable_ops] wait_retention_days``, 14 by default.

    :param reference: what a task of this library pushed as its XCom.
    :raises UnknownWait: the inbox has pruned the value, or this machine's ``inbox_url`` is another one.
    :raises InboxUnavailable: the inbox does not answer.
    """
    if not isinstance(reference, dict) or _REFERENCE not in reference:
        return reference
    wait_id = reference[_REFERENCE]
    if not isinstance(wait_id, str):
        raise InputError(f"the reference {reference!r} does not name a wait")
    outcome = read_outcome(wait_id)
    if not isinstance(outcome, Success):
        raise UnknownWait(
            f"this machine's inbox has no value of the wait {wait_id}: it was pruned "
            "([deferrable_ops] wait_retention_days), or inbox_url differs"
        )
    return outcome.value


def read_outcome(wait_id: str) -> Outcome | None:
    """Return how a wait ended, read from a worker; None while it goes on, or when it was never registered.

    :raises InboxUnavailable: the inbox does not answer.
    """

    async def read() -> list[Wait]:
        async with use_inbox(retry_timeout=_RETRY_TIMEOUT) as inbox:
            return await inbox.waits.get_many([wait_id])

    return next((wait.outcome for wait in run(read())), None)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Return what the work returns, inside an event loop (a notebook, an async task) or not."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, work).result()
