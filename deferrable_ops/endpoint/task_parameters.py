"""The parameters of the route that sets a task's state, read from the query, a form or a JSON object."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.types import Scope

from deferrable_ops.endpoint.body import header, parse_json
from deferrable_ops.endpoint.responses import RequestRejected
from deferrable_ops.inbox import WaitState

_STATES: Final = {state.value: state for state in (WaitState.SUCCESS, WaitState.FAILED, WaitState.SKIPPED)}
_INTEGER = re.compile(r"-?[0-9]{1,10}")
# The largest INTEGER of both databases.
_MAX_INTEGER: Final = 2**31 - 1
# In characters. Airflow's ids have at most 250 characters.
_MAX_TEXT_LENGTH: Final = 1000


@dataclass(frozen=True, slots=True)
class TaskParameters:
    """The parameters of a request: a task instance, and the state that the request sets.

    :param execution_date: the logical date of the DAG run, as a string from the request. `execution_date` is None if
        the request contains only the run id.
    :param logical_date: the same date in seconds since the epoch. `logical_date` is None if `execution_date` is None.
    """

    dag_id: str
    task_id: str
    run_id: str | None
    execution_date: str | None
    logical_date: float | None
    try_number: int
    map_index: int
    state: WaitState

    @property
    def identity(self) -> dict[str, str | None]:
        """The ids of the DAG, the task and the DAG run, which the response contains to identify the task instance."""
        names = {"dag_id": self.dag_id, "task_id": self.task_id, "execution_date": self.execution_date}
        return names if self.run_id is None else {**names, "run_id": self.run_id}


def read_parameters(scope: Scope, body: bytes, dag_id: str, task_id: str) -> TaskParameters:
    """Return the parameters of a request. A parameter in the body overrides the same parameter in the query.

    :raises RequestRejected: with status 400, if a parameter is missing or malformed.
    """
    given = _pairs(scope["query_string"], "query") | _body_parameters(scope, body)
    execution_date = _text(given, "execution_date")
    run_id = _text(given, "run_id")
    if execution_date is None and run_id is None:
        raise _invalid("execution_date", "is missing; give execution_date or run_id")
    return TaskParameters(
        dag_id=_checked_text("dag_id", dag_id),
        task_id=_checked_text("task_id", task_id),
        run_id=run_id,
        execution_date=execution_date,
        logical_date=None if execution_date is None else _timestamp(execution_date),
        try_number=_integer(given, "try_number", lowest=0),
        map_index=_integer(given | {"map_index": given.get("map_index", -1)}, "map_index", lowest=-1),
        state=_state(given),
    )


def _body_parameters(scope: Scope, body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    media_type = (header(scope, b"content-type") or b"").partition(b";")[0].strip().lower()
    if media_type == b"application/x-www-form-urlencoded":
        return _pairs(body, "form")
    if media_type not in (b"", b"application/json"):
        raise RequestRejected(
            400,
            "the header Content-Type is not supported; send the parameters in the query, in a urlencoded form or in a "
            "JSON object",
        )
    given = parse_json(body)
    if not isinstance(given, dict):
        raise RequestRejected(400, "the body must be a JSON object with the parameters")
    return given


def _pairs(encoded: bytes, where: str) -> dict[str, Any]:
    try:
        return dict(parse_qsl(encoded.decode("ascii"), keep_blank_values=True, errors="strict"))
    except ValueError:
        raise RequestRejected(
            400, f"the parameters in the {where} are not urlencoded UTF-8; correct their encoding"
        ) from None


def _text(given: dict[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _invalid(name, "must be a string")
    return _checked_text(name, value)


def _checked_text(name: str, value: str) -> str:
    if "\0" in value or len(value) > _MAX_TEXT_LENGTH:
        raise _invalid(name, f"must have at most {_MAX_TEXT_LENGTH} characters, and must not contain U+0000")
    return value


def _integer(given: dict[str, Any], name: str, *, lowest: int) -> int:
    value = given.get(name)
    if value is None or value == "":
        raise _invalid(name, "is missing; add it to the query or the body")
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= _MAX_INTEGER:
        raise _invalid(name, f"must be an integer from {lowest} to {_MAX_INTEGER}")
    return value


def _state(given: dict[str, Any]) -> WaitState:
    value = given.get("state")
    if value is None or value == "":
        raise _invalid("state", "is missing; add it to the query or the body")
    state = _STATES.get(value) if isinstance(value, str) else None
    if state is None:
        raise _invalid("state", f"must be one of {', '.join(_STATES)}")
    return state


def _timestamp(execution_date: str) -> float:
    # An unescaped plus sign in a query is decoded as a space.
    text = execution_date.replace(" ", "+") if "T" in execution_date else execution_date
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise _invalid("execution_date", "must be an ISO 8601 date and time") from None


def _invalid(name: str, problem: str) -> RequestRejected:
    return RequestRejected(400, f"the parameter {name} {problem}", parameter=name)
