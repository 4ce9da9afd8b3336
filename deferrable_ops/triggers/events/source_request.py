"""What one wait requests of one source."""

from __future__ import annotations

from dataclasses import dataclass

from deferrable_ops.events.specifications import Specification
from deferrable_ops.inbox import Inbox
from deferrable_ops.triggers.events.collector import EventCollector


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """What one wait requests of one source.

    :param inbox: where the source appends its events, with ``Events.append_all``.
    :param wait_id: identifies the wait, also after a restart; read offsets are stored under it.
    :param is_new: the wait was registered just now, so no offsets are stored for it.
    :param specifications: what the wait is for; all of this source, at least one.
    :param since: seconds since the epoch, from which on events are needed.
    :param collector: the wait's own, to which the source reports warnings and failures.
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
