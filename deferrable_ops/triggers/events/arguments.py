"""What an events wait is told: its events, its DAG run's times, and until when it may wait."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from deferrable_ops import settings
from deferrable_ops.events.payloads import decode_payload
from deferrable_ops.events.specifications import Specification, specification_from_json
from deferrable_ops.events.windows import next_interval_end, timezone_named
from deferrable_ops.exceptions import InputError
from deferrable_ops.plain_data import plain_copy


def specifications_of(events: Any) -> dict[str, Specification]:
    """Return the specifications that an operator's ``events`` have become, templates rendered.

    :raises InputError: one of them is wrong; the message names it and the fix.
    """
    if not isinstance(events, Mapping):
        raise InputError(f"events={events!r} is not a dict of names and events")
    found = {}
    for name, data in events.items():
        try:
            found[sys.intern(str(name))] = specification_from_json(_with_shared_texts(data))
        except InputError as error:
            raise InputError(f"events[{name!r}]: {error}") from None
    return found


def _with_shared_texts(value: Any) -> Any:
    # Thousands of waits match on the same keys, and mostly on the same values: each is kept once.
    if type(value) is str:
        return sys.intern(value)
    if type(value) is dict:
        return {_with_shared_texts(key): _with_shared_texts(item) for key, item in value.items()}
    return [_with_shared_texts(item) for item in value] if type(value) is list else value


@dataclass(frozen=True, slots=True)
class RunTimes:
    """When a DAG run started, and its data interval. A run without a logical date has none.

    :param start: None where Airflow does not tell.
    """

    start: datetime | None = None
    interval_start: datetime | None = None
    interval_end: datetime | None = None

    @classmethod
    def of(cls, dag_run: Any) -> RunTimes:
        """Return the times of one of Airflow's DAG runs, of whatever class."""
        return cls(dag_run.start_date, dag_run.data_interval_start, dag_run.data_interval_end)

    @classmethod
    def from_json(cls, data: Mapping[str, str | None]) -> RunTimes:
        """Return the times that :meth:`as_json` wrote."""
        return cls(*(_moment(data.get(name)) for name in cls.__slots__))

    def as_json(self) -> dict[str, str | None]:
        """Return the times as a JSON object."""
        moments: list[datetime | None] = [getattr(self, name) for name in self.__slots__]
        return {
            name: None if moment is None else moment.isoformat()
            for name, moment in zip(self.__slots__, moments, strict=True)
        }


def end_of_next_interval(
    told: Mapping[str, Any], times: RunTimes, run_start: datetime, timezone: str
) -> datetime:
    """Return until when a wait with ``until_next_interval=True`` may wait at most.

    :param told: what the operator could tell of its DAG's schedule: ``cron``, ``seconds`` or neither.
    :param run_start: stands in for the data interval of a run that has none.
    :raises InputError: there is no telling.
    """
    schedule = told.get("cron")
    if schedule is None and told.get("seconds") is not None:
        schedule = timedelta(seconds=told["seconds"])
    moment = next_interval_end(
        schedule,
        interval_start=times.interval_start or run_start,
        interval_end=times.interval_end or run_start,
        timezone=timezone_named(timezone),
    )
    if moment is None:
        raise InputError(
            "until_next_interval=True cannot be kept: this DAG run's data interval has no length, and its schedule is "
            "neither cron nor a timedelta; leave it out, and give a timeout="
        )
    return moment


def check_payload(payload: Any) -> None:
    """Check the payload of an event that is to be published.

    :raises InputError: it is no JSON value that the inbox can keep, or too large.
    """
    plain_copy("payload=", payload)
    body = json.dumps(payload).encode()
    if len(body) > settings.max_payload_bytes():
        raise InputError(
            f"payload= has {len(body)} bytes of JSON, and at most {settings.max_payload_bytes()} are taken "
            "([deferrable_ops] max_payload_bytes); publish where the data is, and not the data"
        )
    if decode_payload(body) != payload:
        raise InputError(
            "payload= cannot be kept: numbers have at most 64 bits, and texts neither U+0000 nor half a surrogate pair"
        )


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
