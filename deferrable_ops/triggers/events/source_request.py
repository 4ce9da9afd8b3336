"""The request of one wait to read one source: a channel, a Kafka topic or an SQS queue."""

from __future__ import annotations

from dataclasses import dataclass

from deferrable_ops.events.specifications import Specification
from deferrable_ops.inbox import Inbox
from deferrable_ops.triggers.events.collector import EventCollector


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """The request of one wait to read one source: a channel, a Kafka topic or an SQS queue.

    :param inbox: the inbox. Its method ``Events.append_all`` stores the events of the source.
    :param wait_id: the id of the wait, which stays the same after a restart. The inbox stores the wait's Kafka offsets
        under `wait_id`.
    :param is_new: whether the wait was registered just now. A new wait has no stored Kafka offsets.
    :param specifications: the event specifications of the wait for this source; at least one.
    :param since: a time in seconds since the epoch. The task does not need events with an earlier time.
    :param collector: the EventCollector of the wait, to which the reader of the source reports warnings and failures.
    """

    inbox: Inbox
    wait_id: str
    is_new: bool
    specifications: tuple[Specification, ...]
    since: float
    collector: EventCollector

    @property
    def specification(self) -> Specification:
        """The first of the event specifications, which identifies the source."""
        return self.specifications[0]
