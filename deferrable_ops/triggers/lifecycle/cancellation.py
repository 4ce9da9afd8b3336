"""Detects waits whose task was ended by a user or by Airflow, and cancels their external work."""

from __future__ import annotations

import asyncio
import logging

from deferrable_ops.inbox import NO_RETRY_TIMEOUT, Attempt, Inbox, use_inbox
from deferrable_ops.triggers.lifecycle.stored_trigger import decrypt
from deferrable_ops.triggers.lifecycle.task_states import (
    DEFERRED,
    UNDER_WAY,
    StatesSource,
    states_from_supervisor,
    states_of,
)

log = logging.getLogger(__name__)

SWEEP_EVERY = 60.0

# Seconds. This must be shorter than the lease of a cancellation, 60 s.
_CANCEL_TIMEOUT = 50.0
_WAITS_PER_PAGE = 200


async def end_if_killed(attempt: Attempt, *, check_for: float = 10.0, check_every: float = 1.0) -> None:
    """Settle a wait whose trigger was cancelled, and cancel its external work, unless the trigger was only moved.

    The task belongs to the newest attempt in the inbox. If the newest attempt is this one, and the task is still
    deferred after `check_for`, Airflow has moved the trigger to another triggerer.

    :param check_for: seconds during which the task's state is checked, because Airflow may update it late.
    :param check_every: seconds between two checks.
    """
    async with use_inbox(retry_timeout=NO_RETRY_TIMEOUT) as inbox:
        for _ in range(int(check_for / check_every)):
            if await inbox.waits.newer_attempt_exists(attempt.wait_id):
                break
            if (await states_of([attempt], states_from_supervisor))[attempt] != DEFERRED:
                await inbox.waits.kill([attempt.wait_id])
                break
            await asyncio.sleep(check_every)
        else:
            log.info("Airflow moved the trigger of wait %s to another triggerer", attempt.wait_id)
            return
        await cancel_due_work(inbox, attempt.wait_id)


async def sweep(inbox: Inbox, source: StatesSource) -> None:
    """Settle the waits whose task ended while no triggerer ran. Cancel all external work whose cancellation is due.

    Many processes call this function. Once a minute, one of the processes looks for these waits.

    :param source: a function that returns the states of task instances.
    """
    if await inbox.database.try_lock("sweep", SWEEP_EVERY):
        await _kill_ended(inbox, source)
    await cancel_due_work(inbox)


async def cancel_due_work(inbox: Inbox, wait_id: str | None = None) -> None:
    """Cancel the external work whose cancellation is due, of one wait or of all waits."""
    while (cancellation := await inbox.cancellations.claim(wait_id)) is not None:
        try:
            trigger = decrypt(cancellation.trigger)
            trigger.inbox = inbox
            async with asyncio.timeout(_CANCEL_TIMEOUT):
                await trigger.cancel(await inbox.waits.get(cancellation.wait_id))
        except (Exception, SystemExit) as error:
            again = await inbox.cancellations.mark_failed(cancellation)
            log.warning(
                "Could not cancel the outside work of wait %s (%s: %s); %s",
                cancellation.wait_id,
                type(error).__name__,
                error,
                "retrying in a minute" if again else "no retries left, cancel it by hand",
            )
        else:
            await inbox.cancellations.mark_stopped(cancellation)
            log.info("Cancelled the outside work of wait %s", cancellation.wait_id)


async def _kill_ended(inbox: Inbox, source: StatesSource) -> None:
    # Read only the ids of the waits first. This process itself watches most of the waits, so these need no check. In an
    # idle triggerer, reading all waits in full would cost more than anything else.
    elsewhere = [wait_id for wait_id in await inbox.waits.waiting() if wait_id not in inbox.watcher.watched]
    for start in range(0, len(elsewhere), _WAITS_PER_PAGE):
        page = await inbox.waits.get_many(elsewhere[start : start + _WAITS_PER_PAGE])
        states = await states_of([wait.attempt for wait in page], source)
        await inbox.waits.kill([wait.id for wait in page if states[wait.attempt] not in UNDER_WAY])
