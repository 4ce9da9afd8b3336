"""A wait's request to read one source."""

from __future__ import annotations

from dataclasses import dataclass

from deferrable_ops.events.specifications import Specification
from deferrable_ops.inbox import Inbox
from deferrable_ops.triggers.events.collector import EventCollector


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """A wait's request to read one source.

    :param inbox: the inbox to which the source appends its events, with ``Events.append_all``.
    :param wait_id: identifies the wait. The id stays the same after a restart. The offsets that the wait has reached
        are stored under this id.
    :param is_new: whether the wait was registered just now. A new wait has no stored offsets.
    :param specifications: the wait's specifications for this source; at least one.
    :param since: seconds since the epoch. The wait needs no earlier events.
    :param collector: the wait's collector. The source reports warnings and failures to it.
    """

    inbox: Inbox
    wait_id: str
    is_new: bool
    specifications: tuple[Specification, ...]
    since: float
    collector: EventCollector

    @property
    def specification(self) -> Specification:
        """The first specification, which identifies the source."""
        return self.specifications[0]
