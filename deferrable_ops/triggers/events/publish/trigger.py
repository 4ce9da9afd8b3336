"""Publish events to a channel, a Kafka topic or an SQS queue, once an attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from deferrable_ops.events.specifications import ChannelEvent
from deferrable_ops.exceptions import KafkaUnavailable
from deferrable_ops.inbox import Wait
from deferrable_ops.inbox.events.events import NewEvent
from deferrable_ops.inbox.waits.launches import Claim, ClaimLost
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
from deferrable_ops.upstreams.backoff import Backoff
from deferrable_ops.upstreams.kafka.producer_errors import ProducerFenced
from deferrable_ops.upstreams.kafka.producers import use_producer_pool
from deferrable_ops.upstreams.sqs.sender import SqsUnavailable, use_sender

_EVENTS_AT_ONCE: Final = 100  # that the event loop is kept busy with
_TRY_AGAIN: Final = (ClaimLost, ProducerFenced, KafkaUnavailable, SqsUnavailable)


class PublishEventTrigger(TaskTrigger):
    """Publishes events, once an attempt.

    The arguments are those of :class:`deferrable_ops.operators.events.PublishEventOperator`.
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
    )

    _problem: str | None = None  # why it is not published yet
    _left_over = 0  # messages that no rule of merging took

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

    @property
    def cancellable(self) -> bool:
        """Whether there is anything to stop: what is published stays."""
        return False

    @property
    def given(self) -> dict[str, Any]:
        """The arguments by name."""
        return {name: getattr(self, name) for name in self.arguments}

    def validate(self) -> None:
        """Check the rendered arguments.

        :raises InputError: one of them is wrong; the message names it and the fix.
        """
        check_arguments(self.given)

    async def wait(self) -> Outcome:
        """Publish what is not published yet, and return where it is."""
        return await self.race_with_settlement(self._publish_until_done())

    async def cancel(self, wait: Wait) -> None:
        """Stop nothing: what is published stays."""

    async def expired(self) -> Outcome:
        """Return why it was not published in time."""
        return Failure(
            f"not published within the timeout of {self.timeout:g} s: {self._problem or 'no time'}"
        )

    async def _publish_until_done(self) -> Outcome:
        messages = await asyncio.to_thread(self._read)
        told: dict[str, Any] = {"count": len(messages)}
        if self.merge is not None:
            told["left_over"] = self._left_over
            self.log.info("%d messages of the files were taken by no rule of merge=", self._left_over)
        if not messages:
            self.log.warning("There is nothing to publish in the files")
            return Success(told)
        if self.channel is not None:
            return Success(told | await self._to_channel(messages))
        return await self._claim_and_publish(messages, told)

    async def _claim_and_publish(self, messages: list[Any], told: dict[str, Any]) -> Outcome:
        publish = self._to_kafka if self.kafka is not None else self._to_sqs
        backoff = Backoff()
        while True:
            try:
                async with self.inbox.launches.claim(self.current.id) as claim:
                    if claim is None:
                        return await self._outcome_of_another()
                    value = told | await publish(messages, claim)
                    await claim.record(value)
                    return Success(value)
            except _TRY_AGAIN as error:
                self._problem = str(error)
            pause = backoff.failed()
            self.log.warning("%s; trying again in %.1f s", self._problem, pause)
            await asyncio.sleep(pause)

    def _read(self) -> list[Any]:
        content, destination = content_of(self.given), destination_of(self.given)
        if content not in ("file", "files"):
            return check_messages(destination, content, self.given)
        payloads, self._left_over = read_payloads(
            paths_of(self.given), self.file_format, self.select, self.merge
        )
        return messages_of(destination, payloads, self.given, content)

    async def _outcome_of_another(self) -> Outcome:
        """Return what came of it where another triggerer has published, or the wait is settled."""
        wait = await self.inbox.waits.get(self.current.id)
        return await self.wait_until_settled() if wait.launch_answer is None else Success(wait.launch_answer)

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
                f"wait:{self.current.id}/{index}",  # the same whoever runs this, and however often
                payload,
                {"headers": {}, "attributes": {}, "metadata": metadata},
            )
            for index, payload in enumerate(messages)
        ]
        last = events.pop()
        for start in range(0, len(events), _EVENTS_AT_ONCE):
            await self.inbox.events.append_all(events[start : start + _EVENTS_AT_ONCE])
        appended = await self.inbox.events.append(last)  # together with what others append
        received_at = datetime.fromtimestamp(appended.received_at, UTC).isoformat()
        return {"channel": self.channel, "event": appended.number, "received_at": received_at}

    async def _to_kafka(self, messages: list[Any], claim: Claim) -> dict[str, Any]:
        publishing = await asyncio.to_thread(
            KafkaPublisher, self.inbox, self.current, self.kafka or "", messages, self.log
        )
        publish: Callable[..., Awaitable[dict[str, Any]]] = (
            publishing.in_transaction if self.transactional else publishing.one_by_one
        )
        async with use_producer_pool(self.kafka_conn_id) as producers:
            return await publish(producers, claim.check)

    async def _to_sqs(self, messages: list[Any], claim: Claim) -> dict[str, Any]:
        publishing = await asyncio.to_thread(SqsPublisher, self.inbox, self.current, self.sqs or "", messages)
        async with use_sender(self.aws_conn_id) as sender:
            return await publishing.publish(sender, claim.check)
