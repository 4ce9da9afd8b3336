"""Counts the recent retriggers of a chain of DAG runs, and computes the pause before the next retrigger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final

from deferrable_ops.high_availability.limits import duration

DEFAULT_DELAY: Final = 10.0
DEFAULT_RESET_AFTER: Final = 600.0
LONGEST_DELAY: Final = 600.0
_MAX_DOUBLINGS: Final = 20


@dataclass(frozen=True, slots=True)
class RecentRetriggers:
    """How many retriggers there were since the last long run of a chain. In a chain, each DAG run has started the next
    one.

    :param count: the number of these retriggers up to the start of the present run.
    :param started: when the present run started; None if this time is unknown.
    """

    count: int
    started: datetime | None

    def at(self, ended_at: datetime, reset_after: float) -> int:
        """Return the number of recent retriggers at the time `ended_at`, when the checks of the present run end.

        The number is 0 if the present run itself is a long run.

        :param reset_after: a run that is longer than this number of seconds is a long run.
        """
        if self.started is not None and (ended_at - self.started).total_seconds() > reset_after:
            return 0
        return self.count


@dataclass(frozen=True, slots=True)
class RetriggerBackoff:
    """The pauses before the retriggers of a chain, in seconds.

    The first retrigger after a long run has no pause. The second retrigger has the pause `delay`. Before each further
    retrigger, the pause doubles, up to 10 minutes. If `delay` is longer than 10 minutes, all these pauses have the
    length `delay`.

    :param delay: the first pause; 0 means no pauses.
    :param reset_after: a run that is longer than this number of seconds is a long run.
    """

    delay: float = DEFAULT_DELAY
    reset_after: float = DEFAULT_RESET_AFTER

    @classmethod
    def of(cls, delay: Any, reset_after: Any) -> RetriggerBackoff:
        """Return the backoff that an operator's arguments set.

        :raises InputError: if an argument is not a duration.
        """
        return cls(
            duration("retrigger_delay", delay),
            duration("retrigger_reset_after", reset_after),
        )

    def pause(self, recent: int) -> float:
        """Return the pause before a retrigger.

        :param recent: the number of earlier retriggers since the last long run.
        """
        if recent == 0:
            return 0.0
        return min(self.delay * 2.0 ** min(recent - 1, _MAX_DOUBLINGS), max(self.delay, LONGEST_DELAY))

    def as_json(self) -> dict[str, Any]:
        """Return this backoff as a JSON object, which becomes a part of the serialized DAG. Fields with their default
        value are omitted. Therefore the default values must never change.
        """
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) != one.default}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RetriggerBackoff:
        """Return the backoff from a JSON object. Unknown fields of another version of the library are ignored."""
        return cls(**{name: data[name] for name in cls.__slots__ if name in data})
