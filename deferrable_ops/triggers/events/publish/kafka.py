"""Publishes messages to a Kafka topic. After a crash, the records in the topic show whether a transaction committed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from deferrable_ops.events.messages import MESSAGE_ID, KafkaMessage, encode_payload
from deferrable_ops.exceptions import InputError
from deferrable_ops.inbox import Inbox, Wait
from deferrable_ops.triggers.events.publish.resume import check_unchanged, fingerprint
from deferrable_ops.upstreams.kafka.producer_errors import TRANSACTIONAL_PREFIX
from deferrable_ops.upstreams.kafka.producers import Producer, ProducerPool, Record, RecordPosition

RECORDS_PER_CHECKPOINT: Final = 100
"""Without a transaction, progress is stored after this many records."""

# The number is limited, because the event loop is busy until all of these records are prepared.
_TRANSACTION_RECORDS_AT_ONCE: Final = 500

Check = Callable[[], Awaitable[object]]


class KafkaPublisher:
    """Publishes the messages of one task attempt to a Kafka topic.

    With a transaction, either all records become visible or no record. Before the commit, the publisher stores the
    position of the first record in the inbox. After a crash, a new publisher opens a producer with the same
    transactional id, so Kafka aborts the old transaction if it is not committed. Then the publisher reads the topic at
    the stored position: if the first record is there, the old transaction was committed. Consumers with
    ``isolation.level=read_committed`` see each record exactly once.

    Without a transaction, the publisher stores its progress after every 100 records. After a crash, at most the last
    100 records are published again.

    :param messages: all messages that the task publishes.
    """

    def __init__(
        self, inbox: Inbox, wait: Wait, topic: str, messages: Sequence[KafkaMessage], log: Any
    ) -> None:
        self._inbox = inbox
        self._wait_id = wait.id
        self._topic = topic
        self._records = [_record(wait.id, index, message) for index, message in enumerate(messages)]
        self._log = log

    async def publish_in_transaction(self, producers: ProducerPool, check: Check) -> dict[str, Any]:
        """Publish all records in one transaction, unless an earlier run has published them. Return their positions.

        :param check: a function that is awaited immediately before each step that cannot be undone. The function
            raises an error if another triggerer has taken over the task.
        """
        async with producers.open(self._topic, f"{TRANSACTIONAL_PREFIX}{self._wait_id}") as producer:
            # Read the progress only after opening the producer. Opening fences the earlier producer, so the earlier run
            # cannot commit any more.
            stored = (await self._inbox.waits.get(self._wait_id)).progress
            if stored is not None:
                found = await producers.find(
                    self._topic, RecordPosition(*stored["first"]), self._records[0].headers[-1]
                )
                if found is not None:
                    self._log.info(
                        "All messages were already published by an earlier run of this attempt; nothing to send"
                    )
                    return self._value(
                        stored["partitions"] if found == RecordPosition(*stored["first"]) else None
                    )
            records = self._with_partitions(producer)
            await check()
            await producer.begin()
            first: RecordPosition | None = None
            partitions: dict[str, Any] = {}
            for start in range(0, len(records), _TRANSACTION_RECORDS_AT_ONCE):
                positions = await producer.append(records[start : start + _TRANSACTION_RECORDS_AT_ONCE])
                first, partitions = first or positions[0], _summary(partitions, positions)
            progress = {"first": first, "partitions": partitions}
            await self._inbox.waits.save_progress(self._wait_id, progress)
            await check()
            await producer.commit()
            return self._value(partitions)

    async def publish_in_batches(self, producers: ProducerPool, check: Check) -> dict[str, Any]:
        """Publish the records that are not published yet. Return the positions of all records.

        The progress in the inbox shows which records earlier runs have published.
        """
        digest_of_all = await asyncio.to_thread(fingerprint, self._records)
        stored = (await self._inbox.waits.get(self._wait_id)).progress or {"published": 0, "partitions": {}}
        check_unchanged(stored, digest_of_all)
        done, partitions = stored["published"], stored["partitions"]
        async with producers.open(self._topic, None) as producer:
            records = self._with_partitions(producer)
            while done < len(records):
                await check()
                positions = await producer.append(records[done : done + RECORDS_PER_CHECKPOINT])
                done, partitions = done + len(positions), _summary(partitions, positions)
                progress = {"published": done, "partitions": partitions, "same": digest_of_all}
                await self._inbox.waits.save_progress(self._wait_id, progress)
        return self._value(partitions)

    def _with_partitions(self, producer: Producer) -> list[Record]:
        """Return the records. All records without key and partition get the same partition, which keeps their order."""
        numbers = sorted(producer.partitions)
        digest = hashlib.sha256(self._wait_id.encode()).digest()
        chosen = numbers[int.from_bytes(digest[:8], "big") % len(numbers)]
        placed = []
        for index, record in enumerate(self._records):
            if record.partition is None and record.key is None:
                placed.append(Record(record.value, record.key, record.headers, chosen))
                continue
            if record.partition is not None and record.partition not in producer.partitions:
                raise InputError(
                    f"messages[{index}]: partition={record.partition} is not one of the {len(numbers)} partitions "
                    f"of the topic {self._topic!r}; give 0 to {len(numbers) - 1}"
                )
            placed.append(record)
        return placed

    def _value(self, partitions: dict[str, Any] | None) -> dict[str, Any]:
        return {"topic": self._topic, "partitions": partitions or {}}


def _record(wait_id: str, index: int, message: KafkaMessage) -> Record:
    value = None if message.payload is None else encode_payload(f"messages[{index}]", message.payload)
    key = None if message.key is None else message.key.encode()
    headers = [*message.headers.items(), (MESSAGE_ID, f"{wait_id}/{index}")]
    partition = None if message.partition is None else int(message.partition)
    return Record(value, key, tuple((name, text.encode()) for name, text in headers), partition)


def _summary(before: dict[str, Any], positions: Sequence[RecordPosition]) -> dict[str, Any]:
    """Return, for each partition, the number of published records and their first and last offset."""
    partitions = {number: dict(summary) for number, summary in before.items()}
    for partition, offset in positions:
        summary = partitions.setdefault(str(partition), {"count": 0, "first_offset": offset})
        summary["count"] += 1
        summary["last_offset"] = offset
    return partitions
