"""Runs the consumers of a Kafka cluster in a thread. In the triggerer's event loop, parsing and matching records would
block other triggers.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from deferrable_ops.backoff import Backoff
from deferrable_ops.exceptions import KafkaError, KafkaRefused
from deferrable_ops.outages import REPORT_LASTS, kafka_source, outages
from deferrable_ops.upstreams.kafka.catch_up_consumer import CatchUpConsumer
from deferrable_ops.upstreams.kafka.client import Cluster, ConsumerTimings
from deferrable_ops.upstreams.kafka.connection import ClusterSettings
from deferrable_ops.upstreams.kafka.live_consumer import LiveConsumer
from deferrable_ops.upstreams.kafka.subscriptions import Batch, Subscription, Subscriptions

log = logging.getLogger(__name__)

_CHECKPOINT_SECONDS = 60.0
_STOP_SECONDS = 10.0


class ConsumerThread:
    """Runs the consumers of a Kafka cluster in a thread with its own event loop.

    :param store: a function that stores a batch in the inbox. The function is called on the event loop on which this
        object was created.
    :param timings: the intervals and timeouts of the consumers of this cluster.
    """

    def __init__(
        self,
        settings: ClusterSettings,
        tls: ssl.SSLContext | None,
        store: Callable[[Batch], Awaitable[object]],
        *,
        timings: ConsumerTimings,
    ) -> None:
        self._settings = settings
        self._timings = timings
        self._tls = tls
        self._store_callback = store
        self._caller_loop = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        self._subscriptions = Subscriptions(self._store)
        self._main_task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="deferrable-ops kafka", daemon=True)

    def start(self) -> None:
        """Start the thread of the consumers, without subscriptions."""
        self._thread.start()

    async def stop(self) -> None:
        """Stop the consumers, and wait until the thread has ended."""
        self._call_soon(self._cancel)
        await asyncio.to_thread(self._thread.join, _STOP_SECONDS)
        if self._thread.is_alive():
            log.warning(
                "The Kafka thread of the connection %s did not end within %g s; no action is needed, because it "
                "ends with the process",
                self._settings.conn_id,
                _STOP_SECONDS,
            )

    def add(self, subscription: Subscription) -> None:
        """Add a subscription, and start reading its records."""
        self._call_soon(self._subscriptions.add, subscription)

    def remove(self, subscription: Subscription) -> None:
        """Remove a subscription, and stop reading its records."""
        self._call_soon(self._subscriptions.remove, subscription)

    def _call_soon(self, do: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(do, *arguments)
        except RuntimeError:
            # The thread has ended.
            return

    def _cancel(self) -> None:
        if self._main_task is not None:
            self._main_task.cancel()
        else:
            # The main task has not started yet.
            self._loop.call_soon(self._cancel)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._read())
            except asyncio.CancelledError:
                return
            except Exception:
                log.exception(
                    "The Kafka thread of the connection %s failed, so its topics are no longer read; "
                    "restart the triggerer",
                    self._settings.conn_id,
                )

    async def _read(self) -> None:
        self._main_task = asyncio.current_task()
        cluster = Cluster(self._settings, self._tls, timings=self._timings)
        live, catch_up = (
            LiveConsumer(cluster, self._subscriptions),
            CatchUpConsumer(cluster, self._subscriptions),
        )
        # A TaskGroup waits for all of its tasks. So each task can close its connections before the thread ends.
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run_with_retries("live", lambda: bool(self._subscriptions), live.read))
            tasks.create_task(self._run_with_retries("catch-up", catch_up.is_needed, catch_up.read))
            tasks.create_task(self._checkpoints())

    async def _run_with_retries(
        self, name: str, is_needed: Callable[[], bool], read: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        backoff = Backoff()
        while True:
            while not is_needed():
                await self._subscriptions.wait_for_change()
            try:
                await read()
                backoff.succeeded()
                continue
            except KafkaRefused as refused:
                self._subscriptions.fail(self._subscriptions, refused)
            except Exception as error:
                detail = self._settings.without_secrets(error)
                outages.failed(kafka_source(self._settings.conn_id), detail, lasts=REPORT_LASTS)
                log.warning(
                    "The %s consumer of the connection %s failed; restarting it: %s",
                    name,
                    self._settings.conn_id,
                    detail,
                    exc_info=not isinstance(error, KafkaError),
                )
            await asyncio.sleep(backoff.failed())

    async def _checkpoints(self) -> None:
        while True:
            await asyncio.sleep(_CHECKPOINT_SECONDS)
            for topic in list(self._subscriptions.topics.values()):
                await self._subscriptions.checkpoint(topic)

    async def _store(self, batch: Batch) -> None:
        async def store() -> None:
            await self._store_callback(batch)

        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(store(), self._caller_loop))
