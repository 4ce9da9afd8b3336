"""PATCH of ``/dag/{dag_id}/task/{task_id}/``: a task's state, set by its name instead of by its wait's token.

The route, its parameters and the fields of its answer are those of airflow_webhook_plugin, for the services
that call it.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement
from starlette.types import Receive, Scope

from deferrable_ops.endpoint.access import bearer_token, verified
from deferrable_ops.endpoint.answers import Answer, Refused, json_answer
from deferrable_ops.endpoint.callbacks import idempotency_key
from deferrable_ops.endpoint.resources import Resources
from deferrable_ops.endpoint.task_parameters import TaskParameters, read_parameters
from deferrable_ops.inbox import Inbox, Wait, WaitState
from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.inbox.waits.callbacks import Callback, Verb

_VERBS: Final = {
    WaitState.SUCCESS: Verb.SUCCESS,
    WaitState.FAILED: Verb.FAILURE,
    WaitState.SKIPPED: Verb.SKIP,
}
_BODIES: Final[dict[WaitState, Any]] = {WaitState.SUCCESS: None, WaitState.FAILED: {}, WaitState.SKIPPED: {}}
_IN_AIRFLOWS_WORDS: Final = {
    WaitState.WAITING: "deferred",
    WaitState.SUCCESS: "success",
    WaitState.FAILED: "failed",
    WaitState.SKIPPED: "skipped",
    WaitState.EXPIRED: "failed",
    WaitState.SUPERSEDED: None,  # the task has gone on without this attempt: the inbox does not know to where
    WaitState.KILLED: None,
}


@dataclass(frozen=True, slots=True)
class _Caller:
    """Who calls.

    :param wait_id: the one wait that the caller's token is for; None for the static token, which is for all.
    """

    wait_id: str | None


async def set_task_state(
    resources: Resources, scope: Scope, receive: Receive, dag_id: str, task_id: str
) -> Answer:
    """Settle the wait of a task instance, and say what its state was and is."""
    caller = await _authenticate(resources, scope)
    body = await resources.bodies.read(scope, receive, resources.limits.max_payload_bytes)
    parameters = read_parameters(scope, body, dag_id, task_id)
    key = idempotency_key(scope)
    inbox = await resources.inbox.get()
    wait = await _find(inbox, caller, parameters)
    payload = _BODIES[parameters.state]
    callback = Callback(
        wait.id, _VERBS[parameters.state], json.dumps(payload).encode(), payload, idempotency_key=key
    )
    receipt = await inbox.callbacks.record(callback)
    return _answer(parameters, receipt.status, json.loads(receipt.body))


async def _authenticate(resources: Resources, scope: Scope) -> _Caller:
    token = bearer_token(scope)
    static = resources.limits.auth_token
    if static is not None and hmac.compare_digest(token.encode(), static.encode()):
        return _Caller(wait_id=None)
    _, wait_id = await verified(resources.inbox, token)
    return _Caller(wait_id)


async def _find(inbox: Inbox, caller: _Caller, parameters: TaskParameters) -> Wait:
    conditions: list[ColumnElement[bool]] = [
        waits.c.dag_id == parameters.dag_id,
        waits.c.task_id == parameters.task_id,
        waits.c.map_index == parameters.map_index,
        waits.c.try_number == parameters.try_number,
    ]
    if parameters.run_id is not None:
        conditions.append(waits.c.run_id == parameters.run_id)
    if parameters.execution_date is not None:
        conditions.append(waits.c.logical_date == parameters.logical_date)
    if caller.wait_id is not None:
        conditions.append(waits.c.id == caller.wait_id)
    found = await inbox.waits.find(*conditions)
    if not found:
        raise Refused(
            400,
            "no such task instance waits or has waited, or it is not the one that the token is for: "
            + ", ".join(f"{name}={value}" for name, value in parameters.identity.items()),
        )
    return max(found, key=lambda wait: wait.created_at)  # a deleted run's waits stay until they are pruned


def _answer(parameters: TaskParameters, status: int, receipt: dict[str, Any]) -> Answer:
    fields: dict[str, Any] = {**parameters.identity, "try_number": parameters.try_number}
    if status == 200:
        fields |= {"previous_state": _IN_AIRFLOWS_WORDS[WaitState.WAITING], "state": parameters.state}
        message = f"Task instance state was updated to '{parameters.state}'."
    else:
        state = _IN_AIRFLOWS_WORDS[WaitState(receipt["state"])] if "state" in receipt else None
        fields |= {"previous_state": state, "state": state, "error": receipt["error"]}
        message = f"Task instance state was not updated: {receipt['error']}."
    return json_answer(status, {**fields, "message": message})
