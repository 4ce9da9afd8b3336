"""Publishing to a Kafka topic, once: what a triggerer that was killed has left is told by the topic itself."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from deferrable_ops.events.messages import ID, KafkaMessage, encode_payload
from deferrable_ops.exceptions import InputError
from deferrable_ops.inbox import Inbox, Wait
from deferrable_ops.triggers.events.publish.resume import check_unchanged, fingerprint
from deferrable_ops.upstreams.kafka.producer_errors import TRANSACTIONAL_PREFIX
from deferrable_ops.upstreams.kafka.producers import Producer, ProducerPool, Record, RecordPosition

AT_ONCE: Final = 100
"""Records after which it is noted how far a task has come that publishes without a transaction."""

_IN_TRANSACTION: Final = 500  # records that the event loop is kept busy with at once

Check = Callable[[], Awaitable[object]]


class KafkaPublisher:
    """What one wait publishes to a topic.

    With a transaction, all records count at once, or none. Whoever publishes notes where the first of them stands, and
    then commits. Whoever comes next opens a producer of the same id, which aborts what is not committed; from then on
    the record is committed, or never will be, and it can be looked up. So each record is there once, for those who read
    what is committed.

    Without one, how far it has come is noted every 100 records; a triggerer that is killed may have appended up to 100
    of them that the next appends again.

    :param messages: all of them.
    """

    def __init__(
        self, inbox: Inbox, wait: Wait, topic: str, messages: Sequence[KafkaMessage], log: Any
    ) -> None:
        self._inbox = inbox
        self._wait_id = wait.id
        self._topic = topic
        self._records = [_record(wait.id, index, message) for index, message in enumerate(messages)]
        self._log = log

    async def in_transaction(self, producers: ProducerPool, check: Check) -> dict[str, Any]:
        """Publish all records at once, unless that was done, and return where they are.

        :param check: awaited immediately before what cannot be taken back.
        """
        async with producers.open(self._topic, f"{TRANSACTIONAL_PREFIX}{self._wait_id}") as producer:
            # Read now, when nobody who noted something can commit any more.
            noted = (await self._inbox.waits.get(self._wait_id)).progress
            if noted is not None:
                found = await producers.find(
                    self._topic, RecordPosition(*noted["first"]), self._records[0].headers[-1]
                )
                if found is not None:
                    self._log.info("All was published before, by a triggerer that did not live to say so")
                    return self._value(
                        noted["partitions"] if found == RecordPosition(*noted["first"]) else None
                    )
            records = self._placed(producer)
            await check()
            await producer.begin()
            first: RecordPosition | None = None
            partitions: dict[str, Any] = {}
            for start in range(0, len(records), _IN_TRANSACTION):
                places = await producer.append(records[start : start + _IN_TRANSACTION])
                first, partitions = first or places[0], _summary(partitions, places)
            note = {"first": first, "partitions": partitions}
            await self._inbox.waits.save_progress(self._wait_id, note)
            await check()
            await producer.commit()
            return self._value(partitions)

    async def one_by_one(self, producers: ProducerPool, check: Check) -> dict[str, Any]:
        """Publish the records that are not known to be published, and return where all are."""
        same = await asyncio.to_thread(fingerprint, self._records)
        noted = (await self._inbox.waits.get(self._wait_id)).progress or {"published": 0, "partitions": {}}
        check_unchanged(noted, same)
        done, partitions = noted["published"], noted["partitions"]
        async with producers.open(self._topic, None) as producer:
            records = self._placed(producer)
            while done < len(records):
                await check()
                places = await producer.append(records[done : done + AT_ONCE])
                done, partitions = done + len(places), _summary(partitions, places)
                note = {"published": done, "partitions": partitions, "same": same}
                await self._inbox.waits.save_progress(self._wait_id, note)
        return self._value(partitions)

    def _placed(self, producer: Producer) -> list[Record]:
        """Return the records; those that say neither key nor partition come into one partition, so in their order."""
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
                    f"messages[{index}]: partition={record.partition} is not one of the {len(numbers)} of the topic "
                    f"{self._topic!r}, which are counted from 0"
                )
            placed.append(record)
        return placed

    def _value(self, partitions: dict[str, Any] | None) -> dict[str, Any]:
        return {"topic": self._topic, "partitions": partitions or {}}


def _record(wait_id: str, index: int, message: KafkaMessage) -> Record:
    value = None if message.payload is None else encode_payload(f"messages[{index}]", message.payload)
    key = None if message.key is None else message.key.encode()
    headers = [*message.headers.items(), (ID, f"{wait_id}/{index}")]
    partition = None if message.partition is None else int(message.partition)
    return Record(value, key, tuple((name, text.encode()) for name, text in headers), partition)


def _summary(before: dict[str, Any], places: Sequence[RecordPosition]) -> dict[str, Any]:
    """Return by partition how many records were appended, and the offsets of the first and the last of them."""
    found = {number: dict(told) for number, told in before.items()}
    for partition, offset in places:
        told = found.setdefault(str(partition), {"count": 0, "first_offset": offset})
        told["count"] += 1
        told["last_offset"] = offset
    return found
