"""Watching many jobs of one place at the cost of one: a list of the active jobs per interval, for all of them."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any, Protocol

from deferrable_ops.exceptions import DataflowError, DataflowRefused, DataflowUnavailable
from deferrable_ops.upstreams.dataflow.job_watch import JobWatch
from deferrable_ops.upstreams.dataflow.jobs import (
    FINISHED,
    Job,
    JobMessage,
    MessageCursor,
    MessagesWanted,
    job_from_api,
)

log = logging.getLogger(__name__)

_MESSAGE_CALLS = 10  # in one interval, for the jobs that go on
_AT_ONCE = 10  # calls under way
_NEWCOMERS_WAIT = 1.0  # so that waits that begin one after another share a list
_PAUSE_MOST = 30.0  # between two tries while Dataflow does not answer, unless the interval is longer
_MESSAGE_TRIES = 3  # before a finished job is reported without its messages
_NEVER_ALLOWED = ("PERMISSION_DENIED", "UNAUTHENTICATED")


class Calls(Protocol):
    """What the poller asks Dataflow. Each call has a time limit and is not repeated."""

    async def list_jobs(self) -> list[Any]:
        """Return the active jobs, as the API's messages."""
        ...

    async def get_job(self, job_id: str) -> Any:
        """Return one job, as the API's message."""
        ...

    async def list_messages(self, job_id: str, least: str, since: str | None) -> list[JobMessage]:
        """Return a job's messages, the oldest first."""
        ...


class Poller:
    """Polls for all watches of a place, while there are any."""

    def __init__(self, calls: Calls, project_id: str, region: str) -> None:
        self._calls = calls
        self._project_id = project_id
        self._region = region
        self._watches: dict[str, list[JobWatch]] = {}
        self._turns: deque[JobWatch] = deque()  # whose messages are read next
        self._newcomer = asyncio.Event()
        self._limit = asyncio.Semaphore(_AT_ONCE)
        self._failures = 0
        self._messages_refused = False
        self._polling: asyncio.Task[None] | None = None

    @contextmanager
    def watch(self, job_id: str, interval: float, messages: MessagesWanted | None) -> Iterator[JobWatch]:
        """Watch a job for as long as the block lasts."""
        watch = JobWatch(job_id, interval, messages)
        self._watches.setdefault(job_id, []).append(watch)
        if watch.least is not None:
            self._turns.append(watch)
        self._newcomer.set()
        if self._polling is None:
            # In a context of its own: it outlives the trigger that happens to come first.
            self._polling = asyncio.create_task(
                self._poll(), name="deferrable-ops dataflow", context=Context()
            )
        try:
            yield watch
        finally:
            self._leave(watch)

    def close(self) -> None:
        """Stop polling."""
        if self._polling is not None:
            self._polling.cancel()
            self._polling = None
            self._turns.clear()

    def _leave(self, watch: JobWatch) -> None:
        watch.is_over = True  # its turn to read messages passes by
        self._watches[watch.job_id].remove(watch)
        if not self._watches[watch.job_id]:
            del self._watches[watch.job_id]
        if not self._watches:
            self.close()

    async def _poll(self) -> None:
        while True:
            while not self._all():
                self._newcomer.clear()
                await self._newcomer.wait()
            began = time.monotonic()
            self._newcomer.clear()
            try:
                await self._look()
                self._failures = 0
            except DataflowUnavailable as error:
                self._unavailable(error)
            except DataflowRefused as refused:
                self._fail_all(refused)
            except Exception:
                self._failures += 1
                log.exception("the poller of %s failed; it goes on", self._region)
            await self._pause(began)

    async def _pause(self, began: float) -> None:
        interval = min((watch.interval for watch in self._all()), default=_NEWCOMERS_WAIT)
        if self._failures:
            pause = min(interval * 2 ** min(self._failures - 1, 10), max(interval, _PAUSE_MOST))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            return
        due = began + interval * random.uniform(0.9, 1.1)  # noqa: S311
        try:
            async with asyncio.timeout(max(0.0, due - time.monotonic())):
                await self._newcomer.wait()
        except TimeoutError:
            return
        await asyncio.sleep(max(0.0, min(interval, _NEWCOMERS_WAIT) - (time.monotonic() - began)))

    async def _look(self) -> None:
        listed = await self._calls.list_jobs()
        active = {message.id: message for message in listed if message.current_state not in FINISHED}
        watched = [job_id for job_id, watches in self._watches.items() if not all(w.is_over for w in watches)]
        for job_id in watched:
            if job_id in active:
                self._goes_on(job_id, active[job_id])
        await self._at_once(self._look_at, [job_id for job_id in watched if job_id not in active])
        await self._at_once(self._read_messages, self._next_turns())

    async def _look_at(self, job_id: str) -> None:
        """Look at a job that is not in the list: finished, or so new, or in a state that does not count as active."""
        try:
            message = await self._calls.get_job(job_id)
        except DataflowRefused as refused:
            for watch in self._of(job_id):
                watch.fail(refused)
            return
        if message.current_state in FINISHED:
            for watch in self._of(job_id):
                await self._finish(watch, message)
        else:
            self._goes_on(job_id, message)

    def _goes_on(self, job_id: str, message: Any) -> None:
        job: Job | None = None
        for watch in self._of(job_id):
            if watch.knows(message):
                continue
            job = job or self._job(message)
            watch.deliver(message, job)
            if watch.least is not None:
                self._turns.remove(watch)
                self._turns.appendleft(watch)

    async def _finish(self, watch: JobWatch, message: Any) -> None:
        """Hand a finished job over together with its last messages, among them why it failed."""
        messages: tuple[JobMessage, ...] = ()
        watch.tries += 1
        try:
            messages = await self._new_messages(watch)
        except DataflowUnavailable as error:
            if watch.tries < _MESSAGE_TRIES:
                raise
            log.warning("the job %s is reported without its last messages: %s", watch.job_id, error)
        watch.deliver(message, self._job(message), messages)

    def _next_turns(self) -> list[JobWatch]:
        """Take those whose messages are read in this interval: a few in turn, however many there are."""
        turns: list[JobWatch] = []
        for _ in range(len(self._turns)):
            if len(turns) == _MESSAGE_CALLS:
                break
            watch = self._turns.popleft()
            if not watch.is_over:
                turns.append(watch)
                self._turns.append(watch)
        return turns

    async def _read_messages(self, watch: JobWatch) -> None:
        watch.deliver(None, None, await self._new_messages(watch))

    async def _new_messages(self, watch: JobWatch) -> tuple[JobMessage, ...]:
        if watch.least is None or self._messages_refused:
            return ()
        cursor = watch.cursor or MessageCursor("")
        try:
            found = await self._calls.list_messages(watch.job_id, watch.least, cursor.time or None)
        except DataflowRefused as refused:
            self._messages_refused = refused.code in _NEVER_ALLOWED
            log.warning("jobs are worth waiting for without their messages, too: %s", refused)
            return ()
        new = cursor.unread(found)
        if new:
            watch.cursor = cursor.after(found)
        return new

    async def _at_once(self, look: Callable[[Any], Coroutine[Any, Any, None]], at: Iterable[Any]) -> None:
        async def limited(item: Any) -> None:
            async with self._limit:
                await look(item)

        results = await asyncio.gather(*(limited(item) for item in at), return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        for error in errors:
            if not isinstance(error, DataflowError):
                raise error
        if errors:  # the list came: the next interval tries again
            log.warning("%d of %d calls failed; the first: %s", len(errors), len(results), errors[0])

    def _unavailable(self, error: DataflowUnavailable) -> None:
        self._failures += 1
        level = logging.WARNING if self._failures == 1 else logging.INFO
        log.log(level, "%s; %d jobs are waited for until it answers", error, len(self._watches))

    def _fail_all(self, refused: DataflowRefused) -> None:
        for watch in self._all():
            watch.fail(refused)

    def _all(self) -> list[JobWatch]:
        return [watch for watches in self._watches.values() for watch in watches if not watch.is_over]

    def _of(self, job_id: str) -> list[JobWatch]:
        return [watch for watch in self._watches.get(job_id, ()) if not watch.is_over]

    def _job(self, message: Any) -> Job:
        return job_from_api(message, self._project_id, self._region)
