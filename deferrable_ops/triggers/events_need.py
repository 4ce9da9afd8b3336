"""What one wait needs of a source."""

from __future__ import annotations

from dataclasses import dataclass

from deferrable_ops.events.specifications import Specification
from deferrable_ops.inbox import Inbox
from deferrable_ops.triggers.events_intake import Intake


@dataclass(frozen=True, slots=True)
class Need:
    """What one wait needs for one of its events.

    :param inbox: where the source's events are appended, by :meth:`~deferrable_ops.inbox.events.Events.append_all`.
    :param key: tells this need from all others, the same after a restart: for how far it is read.
    :param specification: says which source, and which of its events.
    :param since: seconds since the epoch, from when on its events are needed.
    :param intake: the wait's, which is told of trouble.
    """

    inbox: Inbox
    key: str
    specification: Specification
    since: float
    intake: Intake

    def warn(self, text: str) -> None:
        """Tell the task's log of trouble; the wait goes on."""
        self.intake.warn(text)

    def fail(self, reason: str) -> None:
        """End the wait with a reason, for trouble that only a person can end, as credentials that are refused."""
        self.intake.fail(reason)
