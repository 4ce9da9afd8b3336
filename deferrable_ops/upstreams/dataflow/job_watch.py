"""One who watches a job: what has been handed over, and what waits to be fetched."""

from __future__ import annotations

import asyncio
from typing import Any

from deferrable_ops.exceptions import DataflowRefused
from deferrable_ops.upstreams.dataflow.jobs import FINISHED, Job, JobMessage, MessagesWanted, Update


class JobWatch:
    """One who watches a job."""

    __slots__ = (
        "_arrived",
        "_failure",
        "_new",
        "_seen",
        "cursor",
        "interval",
        "is_over",
        "job_id",
        "least",
        "tries",
    )

    def __init__(self, job_id: str, interval: float, messages: MessagesWanted | None) -> None:
        self.job_id = job_id
        self.interval = interval
        self.least = messages.least if messages else None  # None: no messages are wanted
        self.cursor = messages.after if messages else None
        self.is_over = False  # nothing more will come
        self.tries = 0  # to read the messages of a job that has finished
        self._seen: tuple[Any, ...] | None = None
        self._new: Update | None = None
        self._failure: DataflowRefused | None = None
        self._arrived = asyncio.Event()

    async def next(self) -> Update:
        """Return what is new, once there is something: the job's state at once, then whatever changes.

        After the update that says that the job has finished there is none.

        :raises DataflowRefused: the job, or the list of jobs, cannot be read.
        """
        if self.is_over and not self._arrived.is_set():
            raise RuntimeError(f"the job {self.job_id} has finished: nothing more will change")
        await self._arrived.wait()
        self._arrived.clear()
        if self._new is None and self._failure is not None:
            self._arrived.set()
            raise self._failure
        new, self._new = self._new, None
        assert new is not None, "woken for nothing"
        return new

    def knows(self, message: Any) -> bool:
        """Return whether this state of the job was handed over before."""
        return self._seen == _what_counts(message)

    def deliver(self, message: Any, job: Job | None, messages: tuple[JobMessage, ...] = ()) -> None:
        """Hand over what is new; together with what was not fetched yet.

        :param message: the job as the API described it; None when its state is not news.
        """
        if message is not None:
            self._seen = _what_counts(message)
            self.is_over = message.current_state in FINISHED
        if job is None and not messages:
            return
        waiting = self._new or Update()
        self._new = Update(job or waiting.job, waiting.messages + messages, self.cursor)
        self._arrived.set()

    def fail(self, refused: DataflowRefused) -> None:
        """Hand over the error that ends the watch."""
        self.is_over = True
        self._failure = refused
        self._arrived.set()


def _what_counts(message: Any) -> tuple[Any, ...]:
    return message.current_state, message.type_, message.replaced_by_job_id
