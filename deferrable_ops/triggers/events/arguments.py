"""Parses the arguments of a task that waits for events: the events, the DAG run's times, and the next data interval."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from deferrable_ops import settings
from deferrable_ops.events.payloads import decode_payload
from deferrable_ops.events.specifications import Specification, specification_from_json
from deferrable_ops.events.windows import next_interval_end, timezone_named
from deferrable_ops.exceptions import InputError
from deferrable_ops.plain_data import plain_copy


def parse_events(events: Any) -> dict[str, Specification]:
    """Return the event specifications in an operator's rendered argument ``events``, by event name.

    :raises InputError: if an event specification is invalid. The error message shows which specification is wrong and
        how to correct it.
    """
    if isinstance(events, str):
        with suppress(ValueError):
            events = json.loads(events)
    if not isinstance(events, Mapping):
        raise InputError(
            f"events={events!r} must be a dict of names and events, for example {'orders': KafkaEvent('orders')}"
        )
    found = {}
    for name, data in events.items():
        try:
            found[sys.intern(str(name))] = specification_from_json(_intern_texts(data))
        except InputError as error:
            raise InputError(f"events[{name!r}]: {error}") from None
    return found


def _intern_texts(value: Any) -> Any:
    # This saves memory: thousands of waits match on the same keys, and mostly on the same values.
    if type(value) is str:
        return sys.intern(value)
    if type(value) is dict:
        return {_intern_texts(key): _intern_texts(item) for key, item in value.items()}
    return [_intern_texts(item) for item in value] if type(value) is list else value


@dataclass(frozen=True, slots=True)
class RunTimes:
    """The start and the data interval of a DAG run. A run without a logical date has no data interval.

    :param start: when the DAG run started; None if Airflow did not provide the start.
    """

    start: datetime | None = None
    interval_start: datetime | None = None
    interval_end: datetime | None = None

    @classmethod
    def of(cls, dag_run: Any) -> RunTimes:
        """Return the times of a DAG run. `dag_run` is an object of any of Airflow's DAG run classes."""
        return cls(dag_run.start_date, dag_run.data_interval_start, dag_run.data_interval_end)

    @classmethod
    def from_json(cls, data: Mapping[str, str | None]) -> RunTimes:
        """Return the RunTimes of a JSON object that :meth:`as_json` has returned."""
        return cls(*(_moment(data.get(name)) for name in cls.__slots__))

    def as_json(self) -> dict[str, str | None]:
        """Return the start and the data interval of the DAG run as a JSON object."""
        moments: list[datetime | None] = [getattr(self, name) for name in self.__slots__]
        return {
            name: None if moment is None else moment.isoformat()
            for name, moment in zip(self.__slots__, moments, strict=True)
        }


def parse_next_interval_end(
    interval: Mapping[str, Any], times: RunTimes, run_start: datetime, timezone: str
) -> datetime:
    """Return the end of the next data interval, at which a wait with ``until_next_interval=True`` times out.

    :param interval: the DAG's schedule as ``{"cron": ...}``, ``{"seconds": ...}``, or ``{}`` for any other schedule.
    :param run_start: the DAG run's start, which is used instead of the data interval if the DAG run has no data
        interval.
    :raises InputError: if the end of the next data interval cannot be determined.
    """
    schedule = interval.get("cron")
    if schedule is None and interval.get("seconds") is not None:
        schedule = timedelta(seconds=interval["seconds"])
    moment = next_interval_end(
        schedule,
        interval_start=times.interval_start or run_start,
        interval_end=times.interval_end or run_start,
        timezone=timezone_named(timezone),
    )
    if moment is None:
        raise InputError(
            "until_next_interval=True cannot be used in this DAG run; give timeout= instead. The end of the next data "
            "interval is unknown, because the DAG run's data interval has no length, and the DAG's schedule is neither "
            "a cron expression nor a timedelta"
        )
    return moment


def check_payload(payload: Any) -> None:
    """Check the payload of an event that a task publishes to a channel.

    :raises InputError: if the payload is too large, or is not a JSON value that the inbox can store.
    """
    plain_copy("payload=", payload)
    body = json.dumps(payload).encode()
    if len(body) > settings.max_payload_bytes():
        raise InputError(
            f"payload= has {len(body)} bytes of JSON; the limit is {settings.max_payload_bytes()} "
            "([deferrable_ops] max_payload_bytes); publish a reference to the data instead"
        )
    if decode_payload(body) != payload:
        raise InputError(
            "payload= cannot be stored; numbers must fit into 64 bits, and text must not contain the characters "
            "U+0000 and U+D800 to U+DFFF"
        )


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
