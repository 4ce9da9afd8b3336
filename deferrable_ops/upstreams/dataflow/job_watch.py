"""Collects the changes of one Dataflow job until a trigger reads the changes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from deferrable_ops.exceptions import DataflowRefused, DataflowUnavailable
from deferrable_ops.upstreams.dataflow.jobs import (
    FINISHED,
    Job,
    MessageList,
    MessagesWanted,
    ReadProblem,
    Update,
)

_NO_MESSAGES = MessageList(())


class JobWatch:
    """The changes of one Dataflow job, for one reader. The poller adds a change with :meth:`deliver`, and the reader
    gets the change from :meth:`next`.
    """

    __slots__ = (
        "_arrived",
        "_failing",
        "_new",
        "_seen",
        "cursor",
        "interval",
        "is_over",
        "job_id",
        "least",
        "message_attempts",
    )

    def __init__(self, job_id: str, interval: float, messages: MessagesWanted | None) -> None:
        self.job_id = job_id
        self.interval = interval
        # With None, no messages are read.
        self.least = messages.least if messages else None
        self.cursor = messages.after if messages else None
        # True once the last change was added.
        self.is_over = False
        # How often it was tried to read the messages of the finished job.
        self.message_attempts = 0
        self._seen: tuple[Any, ...] | None = None
        self._new: Update | None = None
        # While the job cannot be read: the gRPC status, the time of the first such error, and the number of errors.
        self._failing: tuple[str, float, int] | None = None
        self._arrived = asyncio.Event()

    async def next(self) -> Update:
        """Wait for the next change of the job, and return it. The first change is the current state of the job.

        The last update of a job contains a final state.

        :raises RuntimeError: if the last update was returned by an earlier call.
        """
        if self.is_over and not self._arrived.is_set():
            raise RuntimeError(
                f"the job {self.job_id} has finished; it has no further updates, so do not call next() again"
            )
        await self._arrived.wait()
        self._arrived.clear()
        new, self._new = self._new, None
        assert new is not None, "there is an update when _arrived is set"
        return new

    def has_seen(self, message: Any) -> bool:
        """Return whether :meth:`deliver` has already added this state of the job."""
        return self._seen == _state_key(message)

    def deliver(self, message: Any, job: Job | None, messages: MessageList = _NO_MESSAGES) -> None:
        """Add a change of the job. If the reader has not read an earlier change yet, the two changes are merged.

        :param message: the API's protobuf message for the job. `message` is None if the job's state did not change.
        """
        if message is not None:
            self._seen = _state_key(message)
            self.is_over = message.current_state in FINISHED
        if job is None and not messages.messages:
            return
        unread = self._new or Update()
        self._new = Update(
            job or unread.job,
            unread.messages + messages.messages,
            unread.left_out + messages.left_out,
            self.cursor,
            unread.problem,
        )
        self._arrived.set()

    def report(self, error: DataflowRefused | DataflowUnavailable, now: float) -> None:
        """Add an error that occurred when the job was read. The watch of the job continues after the error.

        :param now: the time by a monotonic clock, in seconds.
        """
        known = self._failing
        _, since, reads = known if known and known[0] == error.code else (error.code, now, 0)
        self._failing = error.code, since, reads + 1
        problem = ReadProblem(error, now - since, reads + 1)
        self._new = replace(self._new or Update(cursor=self.cursor), problem=problem)
        self._arrived.set()

    def read_succeeded(self) -> None:
        """Record that the job was read successfully, and forget the errors of earlier reads."""
        if self._failing is not None:
            self._failing = None
            if self._new is not None:
                self._new = replace(self._new, problem=None)


def _state_key(message: Any) -> tuple[Any, ...]:
    return message.current_state, message.type_, message.replaced_by_job_id
