"""Launches work once. Airflow also stores a record of each launch, in case the inbox loses the launch.

A trigger records its launch as an XCom of its task, immediately before the launch. If the inbox is lost, or is restored
from an older backup, the inbox shows no launch of the task attempt, but the XCom still shows the launch.

Airflow logs an error for each XCom that does not exist, and each read delays the end of other tasks by about 25 ms. So
the record is read only if the inbox may have lost the launch. :func:`may_be_lost` checks whether this is possible.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, Final

from deferrable_ops.exceptions import AirflowUnavailable
from deferrable_ops.inbox import Attempt, Inbox, Wait
from deferrable_ops.inbox.waits.launches import Claim, ClaimLost
from deferrable_ops.inbox.watcher import Subscription
from deferrable_ops.supervisor_calls import Rank, send
from deferrable_ops.triggers.lifecycle.delivery import task_of_xcom

LAUNCH_KEY: Final = "launch_record"
"""The key of the XCom that records a launch."""

LOST: Final = "inbox no longer has this wait, because its database was lost or restored from an older backup"
"""The beginning of messages about a lost wait, without the first word "The"."""

ROW_LOST: Final = (
    f"The {LOST}. Registered the wait %s again; callbacks and progress from before the restore may be missing"
)

_TIMEOUT = 60.0
# The clocks of the scheduler and of the triggerer may differ by so much.
_CLOCK_MARGIN = 10.0


class Launching:
    """Methods that let a trigger launch its work only once, even if the inbox loses the wait or the launch."""

    # Attributes of the trigger.
    inbox: Inbox
    changes: Subscription
    current: Wait
    timeout: float
    task_instance: Any
    log: Any

    # Whether the row of the wait was gone from the inbox, and was registered again.
    _row_was_lost = False
    _launch_recorded = False

    async def launch_once(self, launch: Callable[[Claim], Awaitable[Any]]) -> Any:
        """Launch the task's external work, unless the work was launched before. Return the recorded response.

        If another process is launching the work, wait until the other process has recorded a response, or has lost the
        right to launch.

        :param launch: an async function that launches the work and returns the response to record, a JSON value. It
            must call :meth:`~deferrable_ops.inbox.waits.launches.Claim.check` before each request.
        :return: the recorded response; None if the task's wait ended before the work was launched.
        """
        while self.current.launched_at is None:
            claim: Claim | None = None
            try:
                async with self.inbox.launches.claim(self.current.id) as claim:
                    if claim is not None:
                        await claim.record(await launch(claim))
            except ClaimLost:
                self.log.info(
                    "Another process is launching the work of this task; waiting for the result of the launch"
                )
            self.current = await self.inbox.waits.get(self.current.id)
            if claim is None:
                break
        return self.current.launch_answer

    async def take_change(self) -> bool:
        """Set `current` to the wait's row if the row has changed in the inbox, and return whether the row has changed.

        :raises UnknownWait: if the row is gone. Then :meth:`run` registers the wait again and calls :meth:`wait`.
        """
        is_lost = self.changes.is_lost
        changed = self.changes.take()
        if changed is None and is_lost:
            changed = await self.inbox.waits.get(self.current.id)
        self.current = changed or self.current
        return changed is not None

    @property
    def records_launches(self) -> bool:
        """Whether launches are recorded. In ``dag.test()``, they are not, because no later run could read them."""
        return self.task_instance is not None

    async def record_and_check(self, claim: Claim, details: Any = None) -> float:
        """Record the launch in Airflow once, then call :meth:`Claim.check`. Await this method before each request.

        :param details: a JSON value that :meth:`lost_launch` returns if the inbox loses the launch.
        """
        if self._must_record:
            # Airflow may answer late. If the claim is lost, there is no launch to record.
            await claim.check()
        await self.record_launch(details)
        return await claim.check()

    async def record_launch(self, details: Any = None) -> None:
        """Record in Airflow that this attempt launches its work, unless this run has recorded the launch already."""
        if self._must_record:
            self._launch_recorded = True
            await write(self.current.attempt, details, self.log)

    async def lost_launch(self) -> dict[str, Any] | None:
        """Return the record of a launch by an earlier run of this trigger, if the inbox has lost this launch.

        Call this method before :meth:`launch_once`. The record is a dict with the key ``details``. Return None if the
        attempt has launched nothing, or if the inbox shows the launch.

        :raises AirflowUnavailable: if Airflow did not answer.
        """
        if not self.records_launches or self.current.launch_claimed:
            return None
        if not self._row_was_lost and not may_be_lost(self.inbox, self._deferred_at):
            return None
        record = await read(self.current.attempt)
        if record is None:
            return None
        # Another triggerer may have claimed and recorded the launch since this trigger read the row.
        self.current = await self.inbox.waits.get(self.current.id)
        return None if self.current.launch_claimed else record

    @property
    def _must_record(self) -> bool:
        return self.records_launches and not self._launch_recorded

    @property
    def _deferred_at(self) -> float | None:
        # Airflow computes its deadline when it defers the task.
        timeout_after = getattr(self, "timeout_after", None)
        return None if timeout_after is None else float(timeout_after.timestamp() - self.timeout)


def may_be_lost(inbox: Inbox, deferred_at: float | None) -> bool:
    """Return whether an earlier run of a trigger may have launched work that the inbox does not show.

    While this process runs and is connected to the inbox, the inbox cannot be restored. So a launch can be lost only if
    the task was deferred before this process started, or before the connection was last interrupted.

    :param deferred_at: the time when the task was deferred, in seconds since the epoch; None if it is unknown.
    """
    if deferred_at is None:
        return True
    return deferred_at < max(_process_started_at(), inbox.database.interrupted_at) + _CLOCK_MARGIN


async def write(attempt: Attempt, details: Any, log: Any) -> None:
    """Record in Airflow that an attempt launches its work. If the record cannot be written, log a warning.

    :param details: a JSON value that :func:`read` returns.
    """
    from airflow.sdk.execution_time.comms import SetXCom

    message = SetXCom(
        key=LAUNCH_KEY,
        value={"wait": attempt.wait_id, "details": details},
        **task_of_xcom(attempt),
    )
    try:
        await send(message, rank=Rank.READ, timeout=_TIMEOUT)
    except Exception as error:
        log.warning(
            "Could not record the launch as the XCom %s (%s); if the inbox is lost before the task ends, the work is "
            "launched again",
            LAUNCH_KEY,
            type(error).__name__,
        )


async def read(attempt: Attempt) -> dict[str, Any] | None:
    """Return the record of an attempt's launch, a dict with ``details``. None: the attempt has launched nothing.

    :raises AirflowUnavailable: if Airflow did not answer.
    """
    from airflow.sdk.execution_time.comms import GetXCom

    message = GetXCom(key=LAUNCH_KEY, **task_of_xcom(attempt))
    try:
        reply = await send(message, rank=Rank.READ, timeout=_TIMEOUT)
    except Exception as error:
        raise AirflowUnavailable(
            f"cannot read the XCom {LAUNCH_KEY}, which shows whether the work was launched ({type(error).__name__}); "
            "check that the API server of Airflow answers"
        ) from error
    found = getattr(reply, "value", None)
    # Airflow keeps the XCom of an earlier attempt when the task is cleared.
    return found if isinstance(found, dict) and found.get("wait") == attempt.wait_id else None


@cache
def _process_started_at() -> float:
    # Airflow itself requires psutil.
    import psutil

    try:
        return float(psutil.Process().create_time())
    except psutil.Error:
        return time.time()
