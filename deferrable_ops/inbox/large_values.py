"""A value that is too large for an XCom is stored in the inbox. The task's XCom is then a reference to this value."""

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
# Long enough for a restart of the database: a worker must not lose an outcome.
_RETRY_TIMEOUT = 300.0


def as_xcom(wait_id: str, value: Any) -> Any:
    """Return the XCom for a value: the value itself, or a reference if the value is larger than ``max_xcom_bytes``."""
    size = len(json.dumps(value))
    return value if size <= settings.max_xcom_bytes() else {_REFERENCE: wait_id, "bytes": size}


def fetch(reference: Any) -> Any:
    """Return the value to which an XCom refers.

    If the XCom is not a reference, it is returned unchanged. Call this function in a task. A value is deleted together
    with its wait, which is kept for ``wait_retention_days`` (by default 14) after the wait has ended.

    :param reference: the XCom that a task of this library pushed.
    :raises UnknownWait: if the value was deleted after its retention time, or if the option ``inbox_url`` of this
        process differs from ``inbox_url`` of the triggerer that stored the value.
    :raises InboxUnavailable: if the inbox does not answer.
    """
    if not isinstance(reference, dict) or _REFERENCE not in reference:
        return reference
    wait_id = reference[_REFERENCE]
    if not isinstance(wait_id, str):
        raise InputError(
            f"the reference {reference!r} does not contain a wait id; pass the XCom's value to fetch() unchanged"
        )
    outcome = read_outcome(wait_id)
    if not isinstance(outcome, Success):
        raise UnknownWait(
            f"the inbox has no value of the wait {wait_id}; check that inbox_url on this machine equals the "
            "triggerer's inbox_url. If the two are equal, the value was deleted after [deferrable_ops] "
            "wait_retention_days"
        )
    return outcome.value


def read_outcome(wait_id: str) -> Outcome | None:
    """Return the outcome of a wait, or None if the wait has not ended or was never registered.

    Call this function on a worker.

    :raises InboxUnavailable: if the inbox does not answer.
    """

    async def read() -> list[Wait]:
        async with use_inbox(retry_timeout=_RETRY_TIMEOUT) as inbox:
            return await inbox.waits.get_many([wait_id])

    return next((wait.outcome for wait in run_sync(read())), None)


def run_sync(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine and return its result.

    This function also works while an event loop is running in the thread, for example in a notebook or an async task.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, work).result()
