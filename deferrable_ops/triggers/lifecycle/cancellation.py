"""Detects waits whose task was ended by a user or by Airflow, and cancels their external work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from deferrable_ops.exceptions import LaunchRefused
from deferrable_ops.inbox import NO_RETRY_TIMEOUT, Attempt, Inbox, use_inbox
from deferrable_ops.inbox.waits.cancellations import Cancellation
from deferrable_ops.triggers.lifecycle.stored_trigger import OtherTeam, decrypt
from deferrable_ops.triggers.lifecycle.task_states import DEFERRED, states_from_supervisor, states_of

log = logging.getLogger(__name__)

# Seconds. This must be shorter than the lease of a cancellation, 60 s.
_CANCEL_TIMEOUT = 50.0


async def end_if_killed(attempt: Attempt, *, check_for: float = 10.0, check_every: float = 1.0) -> None:
    """Cancel the external work of a task attempt that has ended. Call this function after Airflow has cancelled the
    trigger.

    The attempt has ended if the inbox has a newer attempt of the task, or if the task is no longer deferred. If the
    task is still deferred after `check_for` seconds, Airflow has only moved the trigger to another triggerer, and
    nothing is cancelled. If the inbox belongs to another deployment of Airflow, nothing is settled or cancelled.

    :param check_for: the number of seconds during which the task's state is checked. Airflow may update the state some
        seconds after it has cancelled the trigger.
    :param check_every: seconds between two checks of the task's state.
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
            log.info(
                "Airflow moved the trigger of wait %s to another triggerer; the wait continues there",
                attempt.wait_id,
            )
            return
        await cancel_due_work(inbox, attempt.wait_id)


async def cancel_due_work(
    inbox: Inbox, wait_id: str | None = None, *, without_features: Collection[str] = ()
) -> None:
    """Cancel the external work of one wait, or of all waits, if the inbox contains requests to cancel this work, and
    these requests are due.

    :param without_features: the names of the features, such as Dataflow, whose work is not cancelled, because this
        process cannot reach the work.
    """
    of_other_teams: set[str] = set()

    async def claim() -> Cancellation | None:
        return await inbox.cancellations.claim(
            wait_id, without=of_other_teams, without_features=without_features
        )

    while (cancellation := await claim()) is not None:
        try:
            await cancel_once(inbox, cancellation)
        except OtherTeam as error:
            # The triggerers of the team, which use the same inbox, cancel this work.
            of_other_teams.add(cancellation.wait_id)
            await inbox.cancellations.give_back(cancellation)
            log.debug(
                "This triggerer does not cancel the external work of wait %s: %s", cancellation.wait_id, error
            )


async def cancel_once(inbox: Inbox, cancellation: Cancellation) -> None:
    """Try once to cancel external work, and record the result.

    :raises OtherTeam: if a process of another team launched the work.
    """
    try:
        # In a thread, because the first trigger of a feature imports the feature's client.
        trigger = await asyncio.to_thread(decrypt, cancellation.trigger)
        trigger.inbox = inbox
        async with asyncio.timeout(_CANCEL_TIMEOUT):
            await trigger.cancel(await inbox.waits.get(cancellation.wait_id))
    except OtherTeam:
        raise
    except (Exception, SystemExit) as error:
        # Only a final refusal counts towards the limit of attempts. Other errors end, so the stop is tried until its
        # deadline, a week after the end of the wait.
        counts = isinstance(error, LaunchRefused) and not error.retry_can_help
        again = await inbox.cancellations.mark_failed(cancellation, counts=counts)
        log.warning(
            "Could not cancel the external work of wait %s (%s: %s); %s",
            cancellation.wait_id,
            type(error).__name__,
            error,
            "retrying in a minute" if again else "no retries are left, so cancel the work by hand",
        )
    else:
        await inbox.cancellations.mark_stopped(cancellation)
        log.info("Cancelled the external work of wait %s", cancellation.wait_id)
