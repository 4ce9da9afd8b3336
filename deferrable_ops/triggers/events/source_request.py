"""What one wait needs of a source."""

from __future__ import annotations

from dataclasses import dataclass

from deferrable_ops.events.specifications import Specification
from deferrable_ops.inbox import Inbox
from deferrable_ops.triggers.events.intake import Intake


@dataclass(frozen=True, slots=True)
class Need:
    """What one wait needs of one source.

    :param inbox: where the source's events are appended, by ``Events.append_all``.
    :param wait_id: tells who needs it, the same after a restart: for how far the source is read.
    :param is_new: whether it has needed nothing before: then nothing is read for it yet.
    :param specifications: what it waits for, all of them of this source; at least one.
    :param since: seconds since the epoch, from when on its events are needed.
    :param intake: the wait's, which is told of trouble.
    """

    inbox: Inbox
    wait_id: str
    is_new: bool
    specifications: tuple[Specification, ...]
    since: float
    intake: Intake

    @property
    def specification(self) -> Specification:
        """One of them, which says what the source is."""
        return self.specifications[0]
