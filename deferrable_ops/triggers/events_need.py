"""What one wait needs of a source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deferrable_ops.events.specifications import Specification
from deferrable_ops.inbox import Inbox


@dataclass(frozen=True, slots=True)
class Need:
    """What one wait needs for one of its events.

    :param inbox: where the source's events are appended, by :meth:`~deferrable_ops.inbox.events.Events.append_all`.
    :param key: tells this need from all others, the same after a restart: for how far it is read.
    :param specification: says which source, and which of its events.
    :param since: seconds since the epoch, from when on its events are needed.
    :param warn: tells the task's log of trouble; the wait goes on.
    :param fail: ends the wait with a reason, for trouble that only a person can end, as credentials that are refused.
    """

    inbox: Inbox
    key: str
    specification: Specification
    since: float
    warn: Callable[[str], None]
    fail: Callable[[str], None]
