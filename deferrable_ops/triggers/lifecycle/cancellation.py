"""Waits whose task was ended by a user or by Airflow: telling a kill from a reassignment, and stopping the work."""

from __future__ import annotations

import asyncio
import logging

from deferrable_ops.inbox import NO_RETRY_TIMEOUT, Attempt, Inbox, use_inbox
from deferrable_ops.triggers.lifecycle.stored_trigger import unseal
from deferrable_ops.triggers.lifecycle.task_states import (
    DEFERRED,
    UNDER_WAY,
    AskStates,
    ask_supervisor,
    states_of,
)

log = logging.getLogger(__name__)

SWEEP_EVERY = 60.0

_CANCEL_SECONDS = 50.0  # less than the 60 s for which a cancellation is this process's
_ASK_FOR = 10.0
_ASK_EVERY = 1.0
_WAITS_PER_PAGE = 200


async def end_if_killed(attempt: Attempt) -> None:
    """Settle a wait whose trigger Airflow cancelled, and stop its work, if that was a user's doing.

    The newest attempt registered in the inbox owns the task. A task that is still deferred and ours was handed to
    another triggerer; the question is asked for 10 s, because Airflow may be slow to say that it was not.
    """
    async with use_inbox(retry_timeout=NO_RETRY_TIMEOUT) as inbox:
        for _ in range(int(_ASK_FOR / _ASK_EVERY)):
            if await inbox.waits.newer_attempt_exists(attempt.wait_id):
                break
            if (await states_of([attempt], ask_supervisor))[attempt] != DEFERRED:
                await inbox.waits.kill([attempt.wait_id])
                break
            await asyncio.sleep(_ASK_EVERY)
        else:
            log.info(
                "The wait %s goes on elsewhere: another triggerer was given its trigger", attempt.wait_id
            )
            return
        await stop_due_work(inbox, attempt.wait_id)


async def sweep(inbox: Inbox, ask: AskStates) -> None:
    """Settle the waits whose task ended while no triggerer ran, and stop their work. Takes turns with other processes.

    :param ask: tells the states of task instances.
    """
    if await inbox.database.try_lock("sweep", SWEEP_EVERY):
        await _kill_the_ended(inbox, ask)
    await stop_due_work(inbox)


async def stop_due_work(inbox: Inbox, wait_id: str | None = None) -> None:
    """Cancel outside work that is due to be stopped: all of it, or one wait's."""
    while (cancellation := await inbox.cancellations.claim(wait_id)) is not None:
        try:
            trigger = unseal(cancellation.trigger)
            trigger.inbox = inbox
            async with asyncio.timeout(_CANCEL_SECONDS):
                await trigger.cancel(await inbox.waits.get(cancellation.wait_id))
        except (Exception, SystemExit) as error:
            again = await inbox.cancellations.mark_failed(cancellation)
            log.warning(
                "The outside work of wait %s could not be stopped (%s: %s); %s",
                cancellation.wait_id,
                type(error).__name__,
                error,
                "trying again in a minute" if again else "giving it up, stop it by hand",
            )
        else:
            await inbox.cancellations.mark_stopped(cancellation)
            log.info("The outside work of wait %s was stopped", cancellation.wait_id)


async def _kill_the_ended(inbox: Inbox, ask: AskStates) -> None:
    # First the ids alone: most waits are watched here, and reading all of them would cost more than all else at idle.
    elsewhere = [wait_id for wait_id in await inbox.waits.waiting() if wait_id not in inbox.watcher.watched]
    for start in range(0, len(elsewhere), _WAITS_PER_PAGE):
        page = await inbox.waits.get_many(elsewhere[start : start + _WAITS_PER_PAGE])
        states = await states_of([wait.attempt for wait in page], ask)
        await inbox.waits.kill([wait.id for wait in page if states[wait.attempt] not in UNDER_WAY])
