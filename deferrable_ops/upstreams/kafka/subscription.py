"""One who reads a topic: what the reading thread knows of it, and what it hands back to the waiting trigger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from deferrable_ops.events import KafkaEvent
from deferrable_ops.events.event import Event
from deferrable_ops.exceptions import KafkaRefused
from deferrable_ops.upstreams.kafka.positions import Offsets, Standing


@dataclass(frozen=True, slots=True)
class Batch:
    """What is to be stored in one transaction.

    :param source: the topic, as :attr:`~deferrable_ops.events.KafkaEvent.source` says it.
    :param events: of this source, each asked for by some reading here, in the order of each partition; maybe none.
    :param reached: by the key of a reading, the offsets at which it goes on after a restart, once this is stored.
    :param asked: for each event, those of :class:`Told` who asked for it. They are handed it once it is stored.
    """

    source: str
    events: tuple[Event, ...]
    reached: Mapping[str, Offsets]
    asked: tuple[tuple[Told, ...], ...] = ()


class Told(Protocol):
    """Who is told of trouble, on the event loop of the waits."""

    def warn(self, text: str, /) -> None:
        """Take what the task's log should say; reading goes on."""

    def fail(self, reason: str, /) -> None:
        """Take the reason why nothing can be read any more, and trying again would not help."""


class Reading(Standing):
    """What one wait asks a topic for, while it is read for.

    :ivar key: tells it from other readings of its topic, in :attr:`Batch.reached`.
    :ivar told: whose it is.
    :ivar offsets: where it goes on; None: it has read nothing yet.
    """

    __slots__ = ("_loop", "_warned", "key", "offsets", "told")

    def __init__(
        self,
        key: str,
        events: Sequence[KafkaEvent],
        *,
        since: float,
        offsets: Mapping[str, int] | None,
        told: Told,
    ) -> None:
        super().__init__(events, since)
        self.key = key
        self.offsets = None if offsets is None else {int(number): at for number, at in offsets.items()}
        self.told = told
        self._warned: str | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def event(self) -> KafkaEvent:
        """One of what it asks for, which says what the topic is."""
        return self.events[0]

    def warn(self, text: str) -> None:
        """Hand over a warning, from the reading thread."""
        if text != self._warned:
            self._warned = text
            self._tell(self.told.warn, text)

    def fail(self, refused: KafkaRefused) -> None:
        """End it for good, from the reading thread."""
        self._tell(self.told.fail, str(refused))

    def _tell(self, take: Callable[[str], None], news: str) -> None:
        try:
            self._loop.call_soon_threadsafe(take, news)
        except RuntimeError:
            return  # its event loop is closed: nobody waits any more
