"""Watches all jobs of one project and region. In each interval, one request lists the active jobs.

If the list fails, the watched jobs are read one by one. A job that cannot be read affects only its own watches.
"""

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

from deferrable_ops.backoff import Backoff
from deferrable_ops.exceptions import DataflowError, DataflowRefused, DataflowUnavailable
from deferrable_ops.outages import outages
from deferrable_ops.upstreams.dataflow.job_watch import JobWatch
from deferrable_ops.upstreams.dataflow.jobs import (
    FINISHED,
    DataflowTarget,
    Job,
    MessageCursor,
    MessageList,
    MessagesWanted,
    job_from_api,
)

log = logging.getLogger(__name__)

# In one interval, at most this many calls read messages of running jobs.
_MAX_MESSAGE_CALLS = 10
_MAX_CONCURRENT_CALLS = 10
# A new watch is polled after this delay, so that one list request serves all watches that start together.
_NEW_WATCH_DELAY = 1.0
# While Dataflow is unavailable, the pause between two attempts is at most this long, or the interval if it is longer.
_LONGEST_PAUSE = 30.0
# After this many attempts to read its last messages, a finished job is reported without them.
_MAX_MESSAGE_ATTEMPTS = 3
_NOT_PERMITTED = ("PERMISSION_DENIED", "UNAUTHENTICATED")
# From the second failed list on, the watched jobs are read one by one.
_FAILED_LISTS = 2
# A poll that fails takes at most about this long.
_OUTAGE_SECONDS = 180.0
_NO_MESSAGES = MessageList(())


class JobApi(Protocol):
    """The API calls that the poller makes. Each API call has a timeout and is not retried."""

    project_id: str

    async def list_jobs(self) -> list[Any]:
        """Return the active jobs, as protobuf messages."""
        ...

    async def get_job(self, job_id: str) -> Any:
        """Return one job, as a protobuf message."""
        ...

    async def list_messages(self, job_id: str, least: str, since: str | None) -> MessageList:
        """Return a job's newest messages."""
        ...


class Poller:
    """Polls the jobs of one project and region while at least one job is watched.

    :param clock: a function that returns the time of a monotonic clock, in seconds. The poller measures with `clock`
        for how long a job cannot be read.
    """

    def __init__(
        self, api: JobApi, target: DataflowTarget, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._clock = clock
        self._target = target
        self._watches: dict[str, list[JobWatch]] = {}
        # The watches whose messages are read. They take turns.
        self._message_queue: deque[JobWatch] = deque()
        self._watch_added = asyncio.Event()
        self._limit = asyncio.Semaphore(_MAX_CONCURRENT_CALLS)
        # None if the last poll succeeded.
        self._backoff: Backoff | None = None
        # How many polls in a row could not list the jobs.
        self._failed_lists = 0
        self._messages_refused = False
        self._polling: asyncio.Task[None] | None = None

    @contextmanager
    def watch(self, job_id: str, interval: float, messages: MessagesWanted | None) -> Iterator[JobWatch]:
        """Watch a Dataflow job during a ``with`` block."""
        watch = JobWatch(job_id, interval, messages)
        self._watches.setdefault(job_id, []).append(watch)
        if watch.least is not None:
            self._message_queue.append(watch)
        self._watch_added.set()
        if self._polling is None:
            # The context is empty, because the poller may run longer than the trigger that starts it.
            self._polling = asyncio.create_task(
                self._poll(), name="deferrable-ops dataflow", context=Context()
            )
        try:
            yield watch
        finally:
            self._remove(watch)

    def close(self) -> None:
        """Stop polling."""
        if self._polling is not None:
            self._polling.cancel()
            self._polling = None
            self._message_queue.clear()

    def _remove(self, watch: JobWatch) -> None:
        # The watch is now over, so _next_in_queue() removes it from the message queue.
        watch.is_over = True
        self._watches[watch.job_id].remove(watch)
        if not self._watches[watch.job_id]:
            del self._watches[watch.job_id]
        if not self._watches:
            self.close()

    async def _poll(self) -> None:
        while True:
            while not self._all():
                self._watch_added.clear()
                await self._watch_added.wait()
            began = time.monotonic()
            self._watch_added.clear()
            try:
                await self._poll_once()
            except Exception:
                self._count_failure()
                log.exception(
                    "Reading the states of the Dataflow jobs in %s failed; retrying", self._target.region
                )
            await self._pause(began)

    async def _pause(self, began: float) -> None:
        if self._backoff is not None:
            await self._backoff.wait()
            return
        interval = self._interval()
        due = began + interval * random.uniform(0.9, 1.1)  # noqa: S311
        try:
            async with asyncio.timeout(max(0.0, due - time.monotonic())):
                await self._watch_added.wait()
        except TimeoutError:
            return
        await asyncio.sleep(max(0.0, min(interval, _NEW_WATCH_DELAY) - (time.monotonic() - began)))

    async def _poll_once(self) -> None:
        try:
            listed = await self._api.list_jobs()
        except (DataflowRefused, DataflowUnavailable) as error:
            await self._poll_without_list(error)
            return
        self._failed_lists, self._backoff = 0, None
        outages.recovered(self._target.source)
        active = {message.id: message for message in listed if message.current_state not in FINISHED}
        watched = self._watched()
        for job_id in watched:
            if job_id in active:
                self._deliver_state(job_id, active[job_id])
        await self._run_limited(self._check_unlisted, [job_id for job_id in watched if job_id not in active])
        await self._run_limited(self._read_messages, self._next_in_queue())

    async def _poll_without_list(self, error: DataflowRefused | DataflowUnavailable) -> None:
        """Report that the jobs could not be listed. If the next request for a list would probably fail too, read the
        watched jobs one by one.
        """
        self._failed_lists += 1
        level = logging.WARNING if self._failed_lists == 1 else logging.INFO
        log.log(level, "%s; retrying. %d jobs are watched", error, len(self._watches))
        lasts = max(self._interval(), _LONGEST_PAUSE) + _OUTAGE_SECONDS
        outages.failed(self._target.source, str(error), lasts=lasts)
        read_each = isinstance(error, DataflowRefused) or self._failed_lists >= _FAILED_LISTS
        if read_each and await self._read_each():
            self._backoff = None
            await self._run_limited(self._read_messages, self._next_in_queue())
        else:
            self._count_failure()

    async def _read_each(self) -> bool:
        """Read all watched jobs one by one, and return whether Dataflow answered."""
        answers = failures = 0

        async def read(job_id: str) -> None:
            nonlocal answers, failures
            # If Dataflow does not answer at all, do not wait for the timeouts of all jobs.
            if failures >= _MAX_CONCURRENT_CALLS and not answers:
                return
            try:
                await self._read_job(job_id)
            except DataflowUnavailable:
                failures += 1
                raise
            answers += 1

        await self._run_limited(read, self._watched())
        return answers > 0

    async def _check_unlisted(self, job_id: str) -> None:
        """Read a watched job that is not in the list of active jobs.

        Such a job is finished, very new, stopped or paused.
        """
        try:
            await self._read_job(job_id)
        except DataflowUnavailable as error:
            self._report(job_id, error)
            raise

    async def _read_job(self, job_id: str) -> None:
        """Read a watched job, and deliver its state. If Dataflow refuses to return the job, add the error to the job's
        watches. The watches of the job continue after the error.
        """
        try:
            message = await self._api.get_job(job_id)
        except DataflowRefused as refused:
            self._report(job_id, refused)
            return
        if message.current_state in FINISHED:
            for watch in self._of(job_id):
                watch.read_succeeded()
                await self._finish(watch, message)
        else:
            self._deliver_state(job_id, message)

    def _deliver_state(self, job_id: str, message: Any) -> None:
        job: Job | None = None
        for watch in self._of(job_id):
            watch.read_succeeded()
            if watch.has_seen(message):
                continue
            job = job or self._job(message)
            watch.deliver(message, job)
            if watch.least is not None:
                self._message_queue.remove(watch)
                self._message_queue.appendleft(watch)

    async def _finish(self, watch: JobWatch, message: Any) -> None:
        """Deliver a finished job together with its last messages.

        If the job failed, these messages contain the reason.
        """
        messages = _NO_MESSAGES
        watch.message_attempts += 1
        try:
            messages = await self._new_messages(watch)
        except DataflowUnavailable as error:
            if watch.message_attempts < _MAX_MESSAGE_ATTEMPTS:
                raise
            log.warning(
                "Could not read the last messages of the job %s; continuing without these messages: %s",
                watch.job_id,
                error,
            )
        watch.deliver(message, self._job(message), messages)

    def _next_in_queue(self) -> list[JobWatch]:
        """Return the next watched jobs in the queue for reading messages.

        In each interval, messages are read for a limited number of jobs.
        """
        chosen: list[JobWatch] = []
        for _ in range(len(self._message_queue)):
            if len(chosen) == _MAX_MESSAGE_CALLS:
                break
            watch = self._message_queue.popleft()
            if not watch.is_over:
                chosen.append(watch)
                self._message_queue.append(watch)
        return chosen

    async def _read_messages(self, watch: JobWatch) -> None:
        watch.deliver(None, None, await self._new_messages(watch))

    async def _new_messages(self, watch: JobWatch) -> MessageList:
        if watch.least is None or self._messages_refused:
            return _NO_MESSAGES
        cursor = watch.cursor or MessageCursor("")
        try:
            found = await self._api.list_messages(watch.job_id, watch.least, cursor.time or None)
        except DataflowRefused as refused:
            self._messages_refused = refused.code in _NOT_PERMITTED
            log.warning("Cannot read job messages; continuing without job messages: %s", refused)
            return _NO_MESSAGES
        new = cursor.unread(found)
        if new.messages:
            watch.cursor = cursor.after(found)
        return new

    async def _run_limited(
        self, work: Callable[[Any], Coroutine[Any, Any, None]], items: Iterable[Any]
    ) -> None:
        """Run `work` for all items, with limited concurrency. Errors are logged, and do not affect other items."""

        async def limited(item: Any) -> None:
            async with self._limit:
                await work(item)

        results = await asyncio.gather(*(limited(item) for item in items), return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        for error in errors:
            if not isinstance(error, Exception):
                raise error
            if not isinstance(error, DataflowError):
                log.error(
                    "Reading the Dataflow jobs in %s failed; retrying", self._target.region, exc_info=error
                )
        # The failed calls are repeated in the next interval.
        if errors:
            log.warning(
                "%d of %d calls to Dataflow failed and will be repeated; the first error: %s",
                len(errors),
                len(results),
                errors[0],
            )

    def _count_failure(self) -> None:
        """Count a failed poll, so that the pause before the next poll is longer."""
        if self._backoff is None:
            interval = self._interval()
            self._backoff = Backoff(first_pause=interval, longest_pause=max(interval, _LONGEST_PAUSE))
        self._backoff.failed()

    def _interval(self) -> float:
        return min((watch.interval for watch in self._all()), default=_NEW_WATCH_DELAY)

    def _report(self, job_id: str, error: DataflowRefused | DataflowUnavailable) -> None:
        for watch in self._of(job_id):
            watch.report(error, self._clock())

    def _watched(self) -> list[str]:
        return [job_id for job_id, watches in self._watches.items() if not all(w.is_over for w in watches)]

    def _all(self) -> list[JobWatch]:
        return [watch for watches in self._watches.values() for watch in watches if not watch.is_over]

    def _of(self, job_id: str) -> list[JobWatch]:
        return [watch for watch in self._watches.get(job_id, ()) if not watch.is_over]

    def _job(self, message: Any) -> Job:
        return job_from_api(message, self._api.project_id, self._target.region)
