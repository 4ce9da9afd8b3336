"""Polls one SQS queue for all tasks that read this queue. A message is stored in the inbox before it is deleted from
the queue.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deferrable_ops.backoff import Backoff
from deferrable_ops.events.event import Event, sqs_event
from deferrable_ops.events.queues import Queue
from deferrable_ops.exceptions import SqsRefused
from deferrable_ops.outages import REPORT_LASTS, outages, sqs_source
from deferrable_ops.upstreams.aws.session import AwsSession
from deferrable_ops.upstreams.sqs.errors import find_refusal, is_denied, summarize
from deferrable_ops.upstreams.sqs.reader import QueueReader

log = logging.getLogger(__name__)

Message = Mapping[str, Any]

# WaitTimeSeconds: the longest time that SQS supports.
_LONG_POLL_SECONDS = 20
# MaxNumberOfMessages: the largest number that SQS supports.
_BATCH_SIZE = 10
# The largest number of receivers for a standard queue with many messages.
_MAX_RECEIVERS = 4
# The largest number of delete requests in progress.
_MAX_DELETES = 8
# A refusal is permanent only after this many refusals in a row.
_REFUSAL_ATTEMPTS = 3
# The default of SQS. It is used if the credentials do not allow reading the queue's attributes.
_VISIBILITY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class PollerTimings:
    """How long a poller repeats SQS calls that have failed.

    :param refused_after: if SQS refuses a call repeatedly for this number of seconds, the poller treats the refusal as
        permanent. SQS may still refuse calls for some seconds after a user has granted a permission.
    """

    refused_after: float = 8.0


class _CallAbandoned(Exception):
    """A failed SQS call is not repeated any more, because the queue has no reader, or because the deadline of the call
    has passed.
    """


class QueuePoller:
    """Polls one SQS queue while at least one waiting task reads this queue.

    No message is lost if the process is killed: SQS delivers a message again if it was not deleted. The inbox discards
    duplicates. The messages of a message group in a FIFO queue keep their order. The poller deletes a message only
    after storing it, and SQS returns the next messages of the group only after this message was deleted.

    :param max_payload_bytes: if the body of a message is longer, the message is stored without its body.
    :param others: the pollers of all queues that are polled with the same credentials, including this poller.
    :param timings: how long the poller repeats SQS calls that have failed.
    """

    def __init__(
        self,
        queue: Queue,
        session: AwsSession,
        max_payload_bytes: int,
        others: Collection[QueuePoller],
        *,
        timings: PollerTimings,
    ) -> None:
        self.queue = queue
        # The readers, each with the number of receives that SQS had answered when the reader was added.
        self.readers: dict[QueueReader, int] = {}
        self._receives = 0
        self.arn = queue.arn
        self._session = session
        self._settings = session.settings
        self._max_payload_bytes = max_payload_bytes
        self._others = others
        self._timings = timings
        self._visibility = _VISIBILITY_SECONDS
        # This reader stores the messages that arrive after all readers were removed.
        self._last_reader: QueueReader
        self._receivers: set[asyncio.Task[None]] = set()
        self._deletes: set[asyncio.Task[None]] = set()

    def add(self, reader: QueueReader) -> None:
        """Add a reader."""
        self.readers[reader] = self._receives
        self._last_reader = reader

    def remove(self, reader: QueueReader) -> None:
        """Remove a reader.

        A receive call in progress is not cancelled, because SQS may already have sent messages for this call. SQS would
        then hide these messages for some time.
        """
        self.readers.pop(reader, None)

    def fail(self, refused: SqsRefused) -> None:
        """Pass the error to all readers of this queue, which ends their tasks."""
        readers, self.readers = self.readers, {}
        for reader, receives in readers.items():
            reader.fail(refused, self._receives > receives)

    async def run(self) -> None:
        """Poll the SQS queue until it has no readers."""
        try:
            while self.readers:
                await self._poll()
                while (running := self._receivers | self._deletes) and not self.readers:
                    await asyncio.wait(running)
        finally:
            for task in self._receivers | self._deletes:
                task.cancel()

    async def _poll(self) -> None:
        try:
            await self._read_attributes()
            while self.readers:
                messages = await self._receive(_LONG_POLL_SECONDS)
                self._receive_more(messages)
                await self._store_and_delete(messages)
        except _CallAbandoned:
            return
        except SqsRefused as refused:
            self.fail(refused)

    async def _read_attributes(self) -> None:
        """Read the queue's ARN and visibility timeout.

        :raises SqsRefused: if another poller in this process already polls this queue under another URL.
        """
        answer = await self._call(
            "get_queue_attributes", may_be_denied=True, AttributeNames=["QueueArn", "VisibilityTimeout"]
        )
        attributes = answer.get("Attributes", {})
        self.arn = attributes.get("QueueArn", self.arn)
        self._visibility = float(attributes.get("VisibilityTimeout", _VISIBILITY_SECONDS))
        for other in self._others:
            if other is not self and other.readers and self.arn and other.arn == self.arn:
                raise SqsRefused(
                    f"{self.queue.url} and {other.queue.url} are URLs of the same queue, {self.arn}; use one "
                    "of them everywhere. With two URLs, the waits for one URL would miss the messages "
                    "received for the other"
                )

    async def _receive(self, seconds: int) -> list[Message]:
        answer = await self._call(
            "receive_message",
            MaxNumberOfMessages=_BATCH_SIZE,
            WaitTimeSeconds=seconds,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["All"],
        )
        self._receives += 1
        return answer.get("Messages") or []

    def _receive_more(self, messages: Sequence[Message]) -> None:
        """Start one more asyncio task that receives messages, if SQS returned a full batch and the queue is not a FIFO
        queue.
        """
        if len(messages) < _BATCH_SIZE or self.queue.is_fifo or len(self._receivers) + 1 >= _MAX_RECEIVERS:
            return
        receiver = asyncio.create_task(self._receive_until_empty())
        self._receivers.add(receiver)
        receiver.add_done_callback(self._receivers.discard)

    async def _receive_until_empty(self) -> None:
        try:
            messages: Sequence[Message] = [{}] * _BATCH_SIZE
            while self.readers and len(messages) == _BATCH_SIZE:
                messages = await self._receive(0)
                await self._store_and_delete(messages)
        except (_CallAbandoned, SqsRefused):
            # The main poll gets the same error and handles it.
            return

    async def _store_and_delete(self, messages: Sequence[Message]) -> None:
        """Store messages in the inbox, and after that delete them from the queue."""
        if not messages:
            return
        received_at = time.monotonic()
        await self._store([self._event(message) for message in messages])
        delete = asyncio.create_task(self._delete(messages, received_at + self._visibility))
        self._deletes.add(delete)
        delete.add_done_callback(self._deletes.discard)
        if self.queue.is_fifo:
            # Until these messages are deleted, SQS returns no more messages of their groups.
            await asyncio.wait([delete])
        elif len(self._deletes) >= _MAX_DELETES:
            await asyncio.wait(self._deletes, return_when=asyncio.FIRST_COMPLETED)

    def _event(self, message: Message) -> Event:
        event = sqs_event(self.queue.source, message, received_at=time.time())
        size = len(str(message.get("Body", "")).encode(errors="replace"))
        if size <= self._max_payload_bytes:
            return event
        for reader in self.readers:
            reader.warn(
                f"a message of {self.queue.url} is larger than {self._max_payload_bytes} bytes, so its payload is "
                "dropped. Only its attributes and metadata can be matched. To keep larger payloads, raise "
                "[deferrable_ops] max_payload_bytes. For later large messages, there is no warning"
            )
        return event.without_payload(size)

    async def _store(self, events: Sequence[Event]) -> None:
        backoff = Backoff()
        while True:
            try:
                reader = next(iter(self.readers), self._last_reader)
                await reader.store(events)
            except Exception as error:
                log.warning("Cannot store messages of %s; retrying: %r", self.queue.url, error)
                if not self.readers:
                    raise _CallAbandoned from None
                await asyncio.sleep(backoff.failed())
            else:
                return

    async def _delete(self, messages: Sequence[Message], until: float) -> None:
        """Delete messages from the queue. Repeat failed calls until the time `until` on the monotonic clock."""
        left = {str(number): message["ReceiptHandle"] for number, message in enumerate(messages)}
        backoff = Backoff()
        try:
            while left:
                entries = [{"Id": name, "ReceiptHandle": handle} for name, handle in left.items()]
                answer = await self._call("delete_message_batch", until=until, Entries=entries)
                failed = {one["Id"] for one in answer.get("Failed") or () if not one.get("SenderFault")}
                left = {name: handle for name, handle in left.items() if name in failed}
                if left and time.monotonic() > until:
                    # The remaining messages are received again, and the inbox discards the duplicates.
                    return
                await asyncio.sleep(backoff.failed() if left else 0)
        except _CallAbandoned:
            return
        except SqsRefused as refused:
            self.fail(refused)

    async def _call(
        self, operation: str, *, may_be_denied: bool = False, until: float | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """Call an operation of SQS. If the call fails, repeat it while SQS is unavailable.

        :param until: the time on the monotonic clock after which a failed call is not repeated. If `until` is None,
            there is no such time.
        :raises SqsRefused: if SQS has refused the call several times in a row.
        :raises _CallAbandoned: if the call failed and is not repeated, because the queue has no reader any more or the
            time `until` has passed.
        """
        backoff, refused_since, refusals = Backoff(), 0.0, 0
        while True:
            try:
                client = await self._client()
                answer = await getattr(client, operation)(QueueUrl=self.queue.url, **arguments)
            except Exception as error:
                if may_be_denied and is_denied(error):
                    return {}
                now = time.monotonic()
                refused = find_refusal(error, self._settings, self.queue)
                if refused is None:
                    refusals = 0
                    self._note_trouble(operation, error)
                else:
                    refused_since = refused_since if refusals else now
                    refusals += 1
                    if refusals >= _REFUSAL_ATTEMPTS and now - refused_since >= self._timings.refused_after:
                        raise refused from None
            else:
                outages.recovered(sqs_source(self.queue.source))
                return dict(answer)
            pause = backoff.failed()
            if not self.readers or (until is not None and time.monotonic() + pause > until):
                raise _CallAbandoned
            await asyncio.sleep(pause)

    async def _client(self) -> Any:
        return await self._session.client("sqs", self.queue.region, self.queue.own_endpoint)

    def _note_trouble(self, operation: str, error: Exception) -> None:
        detail = summarize(error, self._settings)
        log.warning("%s of %s failed; retrying: %s", operation, self.queue.url, detail)
        outages.failed(sqs_source(self.queue.source), detail, lasts=REPORT_LASTS)
