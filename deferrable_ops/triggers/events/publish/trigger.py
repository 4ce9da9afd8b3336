"""The trigger that publishes messages to a channel, a Kafka topic or an SQS queue, once per task attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar, Final

from deferrable_ops.backoff import Backoff
from deferrable_ops.events.queues import queue_of
from deferrable_ops.events.specifications import ChannelEvent
from deferrable_ops.exceptions import ConfigurationError, KafkaRefused, KafkaUnavailable, SqsRefused
from deferrable_ops.inbox import Wait
from deferrable_ops.inbox.events.events import NewEvent
from deferrable_ops.inbox.waits.launches import Claim
from deferrable_ops.outages import kafka_source, sqs_source
from deferrable_ops.outcome import Failure, Outcome, Success
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.events.publish.arguments import (
    check_arguments,
    check_messages,
    content_of,
    destination_of,
    messages_of,
    paths_of,
)
from deferrable_ops.triggers.events.publish.files import read_payloads
from deferrable_ops.triggers.events.publish.kafka import KafkaPublisher
from deferrable_ops.triggers.events.publish.sqs import SqsPublisher
from deferrable_ops.triggers.lifecycle.launching import LOST
from deferrable_ops.upstreams.kafka.producer_errors import ProducerFenced
from deferrable_ops.upstreams.kafka.producers import use_producer_pool
from deferrable_ops.upstreams.sqs.sender import SqsUnavailable, use_sender

# The number is limited, because the event loop is busy while these events are prepared.
_EVENTS_AT_ONCE: Final = 100
_LOST: Final = f"the {LOST}, and an earlier run of this attempt may have published the messages"
_RETRIED: Final = (ProducerFenced, KafkaUnavailable, SqsUnavailable)


class PublishEventTrigger(TaskTrigger):
    """Publishes messages to a channel, a Kafka topic or an SQS queue, once per task attempt.

    This trigger has the arguments of :class:`deferrable_ops.operators.events.PublishEventOperator`.
    """

    feature: ClassVar[str] = "events"
    classpath: ClassVar[str] = "deferrable_ops.triggers.events.PublishEventTrigger"
    arguments: ClassVar[tuple[str, ...]] = (
        "channel",
        "kafka",
        "sqs",
        "payload",
        "messages",
        "file",
        "files",
        "file_format",
        "select",
        "merge",
        "key",
        "group_id",
        "transactional",
        "kafka_conn_id",
        "aws_conn_id",
        "relaunch_when_lost",
    )

    # The last error. If the wait times out, the failure shows this error as the reason.
    _problem: str | None = None
    # The number of messages that no merge rule matched.
    _left_over = 0

    def __init__(
        self,
        *,
        channel: str | None = None,
        kafka: str | None = None,
        sqs: str | None = None,
        payload: Any = None,
        messages: Any = None,
        file: str | None = None,
        files: Any = None,
        file_format: str | None = None,
        select: str | None = None,
        merge: list[dict[str, Any]] | None = None,
        key: str | None = None,
        group_id: str | None = None,
        transactional: bool = True,
        kafka_conn_id: str = "kafka_default",
        aws_conn_id: str | None = None,
        relaunch_when_lost: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.channel = channel
        self.kafka = kafka
        self.sqs = sqs
        self.payload = payload
        self.messages = messages
        self.file = file
        self.files = files
        self.file_format = file_format
        self.select = select
        self.merge = merge
        self.key = key
        self.group_id = group_id
        self.transactional = transactional
        self.kafka_conn_id = kafka_conn_id
        self.aws_conn_id = aws_conn_id
        self.relaunch_when_lost = relaunch_when_lost

    @property
    def cancellable(self) -> bool:
        """Return False, because published messages cannot be withdrawn."""
        return False

    @property
    def sources(self) -> tuple[str, ...]:
        """The name of the Kafka cluster or of the SQS queue to which the task publishes; empty for a channel."""
        if self.kafka is not None:
            return (kafka_source(self.kafka_conn_id),)
        return () if self.sqs is None else (sqs_source(queue_of(self.sqs).source),)

    @property
    def given(self) -> dict[str, Any]:
        """The arguments of this trigger, by name."""
        return {name: getattr(self, name) for name in self.arguments}

    def validate(self) -> None:
        """Check the rendered arguments.

        :raises InputError: if an argument is invalid. The error message shows which argument is wrong and how to
            correct it.
        """
        check_arguments(self.given)

    async def wait(self) -> Outcome:
        """Publish the messages that are not published yet, and return an outcome with the task's XCom."""
        return await self.race_with_settlement(self._publish_until_done())

    async def cancel(self, wait: Wait) -> None:
        """Do nothing, because published messages cannot be withdrawn."""

    async def expired(self) -> Outcome:
        """Return a failure. Its reason contains the last error from publishing."""
        return Failure(
            f"the messages were not published within the timeout of {self.timeout:g} s: "
            f"{self._problem or 'the timeout was too short'}"
        )

    async def _publish_until_done(self) -> Outcome:
        messages = await asyncio.to_thread(self._read)
        result: dict[str, Any] = {"count": len(messages)}
        if self.merge is not None:
            result["left_over"] = self._left_over
            self.log.info(
                "%d messages of the files match no rule of merge= and are not published", self._left_over
            )
        if not messages:
            self.log.warning("The files hold no messages, so nothing is published")
            return Success(result)
        if self.channel is not None:
            return Success(result | await self._to_channel(messages))
        return await self._claim_and_publish(messages, result)

    async def _claim_and_publish(self, messages: list[Any], result: dict[str, Any]) -> Outcome:
        to_destination = self._to_kafka if self.kafka is not None else self._to_sqs

        async def publish(claim: Claim) -> dict[str, Any]:
            return result | await to_destination(messages, claim)

        backoff = Backoff()
        if await self.lost_launch() is not None:
            if not self.relaunch_when_lost:
                return Failure(f"{_LOST}; clear the task to publish the messages again", retryable=False)
            self.log.warning("%s; publishing the messages again, because relaunch_when_lost=True", _LOST)
        while True:
            try:
                value = await self.launch_once(publish)
                return await self.wait_until_settled() if value is None else Success(value)
            except _RETRIED as problem:
                error, self._problem = problem, str(problem)
            except (ConfigurationError, KafkaRefused, SqsRefused):
                # Some messages may be published already. Then a refused login or permission is temporary.
                self.current = await self.inbox.waits.get(self.current.id)
                self.started = self.started or self.current.progress is not None
                raise
            pause = backoff.failed()
            if backoff.failures == 1:
                self.log.warning("%s; retrying in %.1f s", self._problem, pause)
            self._report_outage(error, pause)
            await asyncio.sleep(pause)

    def _read(self) -> list[Any]:
        content, destination = content_of(self.given), destination_of(self.given)
        if content not in ("file", "files"):
            return check_messages(destination, content, self.given)
        payloads, self._left_over = read_payloads(
            paths_of(self.given), self.file_format, self.select, self.merge
        )
        return messages_of(destination, payloads, self.given, content)

    async def _to_channel(self, messages: list[Any]) -> dict[str, Any]:
        attempt = self.current.attempt
        metadata = {
            "verified_by": "airflow",
            "dag_id": attempt.dag_id,
            "run_id": attempt.run_id,
            "task_id": attempt.task_id,
            "map_index": attempt.map_index,
        }
        events = [
            NewEvent(
                ChannelEvent(self.channel or "").source,
                # This dedupe key is the same in every run of this attempt, so the inbox ignores a repeated append.
                f"wait:{self.current.id}/{index}",
                payload,
                {"headers": {}, "attributes": {}, "metadata": metadata},
            )
            for index, payload in enumerate(messages)
        ]
        last = events.pop()
        for start in range(0, len(events), _EVENTS_AT_ONCE):
            await self.inbox.events.append_all(events[start : start + _EVENTS_AT_ONCE])
        # This append shares one commit with the concurrent appends of other waits.
        appended = await self.inbox.events.append(last)
        received_at = datetime.fromtimestamp(appended.received_at, UTC).isoformat()
        return {"channel": self.channel, "event": appended.number, "received_at": received_at}

    async def _to_kafka(self, messages: list[Any], claim: Claim) -> dict[str, Any]:
        publisher = await asyncio.to_thread(
            KafkaPublisher, self.inbox, self.current, self.kafka or "", messages, self.log
        )
        publish: Callable[..., Awaitable[dict[str, Any]]] = (
            publisher.publish_in_transaction if self.transactional else publisher.publish_in_batches
        )
        async with use_producer_pool(self.kafka_conn_id) as producers:
            return await publish(producers, partial(self.record_and_check, claim))

    async def _to_sqs(self, messages: list[Any], claim: Claim) -> dict[str, Any]:
        publisher = await asyncio.to_thread(SqsPublisher, self.inbox, self.current, self.sqs or "", messages)
        async with use_sender(self.aws_conn_id) as sender:
            return await publisher.publish(sender, partial(self.record_and_check, claim))
