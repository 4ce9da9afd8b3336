"""Publishes messages to an SQS queue in batches. Each message has an id, by which repeated messages are recognized."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

from deferrable_ops.backoff import Backoff
from deferrable_ops.events.messages import MESSAGE_ID, SqsMessage, encode_payload
from deferrable_ops.events.queues import queue_of
from deferrable_ops.exceptions import InputError
from deferrable_ops.inbox import Inbox, Wait
from deferrable_ops.triggers.events.publish.resume import check_unchanged, fingerprint
from deferrable_ops.upstreams.sqs.sender import MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, Sender

Check = Callable[[], Awaitable[object]]
Entry = dict[str, Any]

_MAX_RETURNED_IDS: Final = 100
_LONGEST_GROUP: Final = 128
_NOT_IN_GROUPS: Final = re.compile(r"[^!-~]")
# The characters that SendMessage refuses.
_NOT_IN_TEXTS: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class SqsPublisher:
    """Publishes the messages of one task attempt to an SQS queue.

    The publisher stores its progress after each batch, so at most one batch is sent again after a crash. A FIFO queue
    drops a message if the queue has received the same deduplication id within the last 5 minutes.

    :param messages: all messages that the task publishes.
    """

    def __init__(self, inbox: Inbox, wait: Wait, queue_url: str, messages: Sequence[SqsMessage]) -> None:
        self._inbox = inbox
        self._wait_id = wait.id
        self._queue_url = queue_url
        self._is_fifo = queue_of(queue_url).is_fifo
        self._group = _group_of(wait)
        self._entries = [self._entry(index, message) for index, message in enumerate(messages)]

    async def publish(self, sender: Sender, check: Check) -> dict[str, Any]:
        """Send, in order, the messages that no earlier run has sent. Return the ids of the first 100 messages.

        :param check: a function that is awaited immediately before each batch. The function raises an error if another
            triggerer has taken over the task.
        """
        digest_of_all = await asyncio.to_thread(fingerprint, self._entries)
        stored = (await self._inbox.waits.get(self._wait_id)).progress or {"published": 0, "message_ids": []}
        check_unchanged(stored, digest_of_all)
        done, ids = stored["published"], stored["message_ids"]
        for batch in self._batches(done):
            ids = [*ids, *await _send(sender, self._queue_url, batch, check)][:_MAX_RETURNED_IDS]
            done += len(batch)
            progress = {"published": done, "message_ids": ids, "same": digest_of_all}
            await self._inbox.waits.save_progress(self._wait_id, progress)
        return {"queue_url": self._queue_url, "message_ids": ids}

    def _entry(self, index: int, message: SqsMessage) -> Entry:
        body = encode_payload(f"messages[{index}]", message.payload).decode()
        if not body:
            raise InputError(
                f"messages[{index}] is an empty string, which SQS refuses; give a non-empty string or a JSON value"
            )
        if bad := _NOT_IN_TEXTS.search(body):
            raise InputError(
                f"messages[{index}] has the character {bad.group()!r}, which SQS refuses; remove this character"
            )
        entry: Entry = {
            "Id": str(index),
            "MessageBody": body,
            "MessageAttributes": {
                name: _attribute(value)
                for name, value in {**message.attributes, MESSAGE_ID: f"{self._wait_id}/{index}"}.items()
            },
        }
        if message.group_id is not None:
            entry["MessageGroupId"] = message.group_id
        if self._is_fifo:
            self._check_for_fifo(index, message)
            entry.setdefault("MessageGroupId", self._group)
            entry["MessageDeduplicationId"] = message.deduplication_id or f"{self._wait_id}/{index}"
            return entry
        if message.deduplication_id is not None:
            raise InputError(
                f"messages[{index}]: deduplication_id= needs a FIFO queue, whose name ends with .fifo; leave "
                "deduplication_id= out"
            )
        if message.delay is not None:
            entry["DelaySeconds"] = int(float(str(message.delay)))
        return entry

    def _check_for_fifo(self, index: int, message: SqsMessage) -> None:
        if message.delay is not None:
            raise InputError(
                f"messages[{index}]: a FIFO queue allows no delay= for a message; set DelaySeconds of the queue instead"
            )

    def _batches(self, start: int) -> Iterator[list[Entry]]:
        """Yield batches to send.

        For a FIFO queue, a batch contains at most one message of each message group. So the order in each group is
        kept, even if SQS accepts only some messages of a batch.
        """
        batch: list[Entry] = []
        size, groups = 0, set[str]()
        for entry in self._entries[start:]:
            entry_size, group = _size(entry), entry.get("MessageGroupId", "")
            is_full = len(batch) == MAX_BATCH_MESSAGES or size + entry_size > MAX_BATCH_BYTES
            if batch and (is_full or (self._is_fifo and group in groups)):
                yield batch
                batch, size, groups = [], 0, set()
            batch.append(entry)
            size += entry_size
            groups.add(group)
        if batch:
            yield batch


async def _send(sender: Sender, queue_url: str, batch: list[Entry], check: Check) -> list[str]:
    """Send a batch, retry the messages that SQS did not accept, and return the message ids in order."""
    sent: dict[str, str] = {}
    backoff = Backoff()
    while True:
        await check()
        sent |= await sender.send(queue_url, [entry for entry in batch if entry["Id"] not in sent])
        if len(sent) == len(batch):
            return [sent[entry["Id"]] for entry in batch]
        await asyncio.sleep(backoff.failed())


def _attribute(value: str | float) -> dict[str, str]:
    kind = "String" if isinstance(value, str) else "Number"
    return {"DataType": kind, "StringValue": str(value)}


def _size(entry: Entry) -> int:
    attributes = entry["MessageAttributes"].items()
    attributes_size = sum(
        len(name) + len(one["DataType"]) + len(one["StringValue"].encode()) for name, one in attributes
    )
    return len(entry["MessageBody"].encode()) + attributes_size


def _group_of(wait: Wait) -> str:
    """Return the message group for messages of a task that have no message group of their own."""
    name = f"{wait.attempt.dag_id}.{wait.attempt.task_id}"
    return _NOT_IN_GROUPS.sub("_", name)[-_LONGEST_GROUP:]
