"""PATCH of ``/dag/{dag_id}/task/{task_id}/``: sets a task's state; the request names the DAG, the task and the run.

The route, its parameters and the fields of its response are the same as in airflow_webhook_plugin. Services that were
written for airflow_webhook_plugin work without changes.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement
from starlette.types import Receive, Scope

from deferrable_ops.endpoint.authentication import bearer_token, verify_token
from deferrable_ops.endpoint.callbacks import idempotency_key
from deferrable_ops.endpoint.logs import WAIT
from deferrable_ops.endpoint.resources import Resources
from deferrable_ops.endpoint.responses import JsonResponse, RequestRejected, json_response
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
_AIRFLOW_STATES: Final = {
    WaitState.WAITING: "deferred",
    WaitState.SUCCESS: "success",
    WaitState.FAILED: "failed",
    WaitState.SKIPPED: "skipped",
    WaitState.EXPIRED: "failed",
    # This attempt no longer decides the task's state, and the inbox does not know that state.
    WaitState.SUPERSEDED: None,
    WaitState.KILLED: None,
}


@dataclass(frozen=True, slots=True)
class _Caller:
    """An authenticated caller.

    :param wait_id: the id of the wait that the caller's token belongs to; None for the static token, which is valid for
        every wait.
    """

    wait_id: str | None


async def set_task_state(
    resources: Resources, scope: Scope, receive: Receive, dag_id: str, task_id: str
) -> JsonResponse:
    """Settle the wait of a task instance, and return a response with the task's state before and after this request."""
    caller = await _authenticate(resources, scope)
    body = await resources.bodies.read(scope, receive, resources.settings.max_payload_bytes)
    parameters = read_parameters(scope, body, dag_id, task_id)
    key = idempotency_key(scope)
    inbox = await resources.inbox.get()
    wait = await _find(inbox, caller, parameters)
    scope[WAIT] = wait.id
    payload = _BODIES[parameters.state]
    callback = Callback(
        wait.id, _VERBS[parameters.state], json.dumps(payload).encode(), payload, idempotency_key=key
    )
    receipt = await inbox.callbacks.record(callback)
    return _response(parameters, receipt.status, json.loads(receipt.body))


async def _authenticate(resources: Resources, scope: Scope) -> _Caller:
    token = bearer_token(scope)
    static = resources.settings.auth_token
    if static is not None and hmac.compare_digest(token.encode(), static.encode()):
        return _Caller(wait_id=None)
    _, wait_id = await verify_token(resources, scope, token)
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
        raise RequestRejected(
            400,
            "no such task instance has waited, or the token belongs to another task instance; check the token and "
            "these parameters: "
            + ", ".join(f"{name}={value}" for name, value in parameters.identity.items()),
        )
    # A DAG run that was deleted and created again may have older waits, which are kept until they are pruned.
    return max(found, key=lambda wait: wait.created_at)


def _response(parameters: TaskParameters, status: int, receipt: dict[str, Any]) -> JsonResponse:
    fields: dict[str, Any] = {**parameters.identity, "try_number": parameters.try_number}
    if status == 200:
        fields |= {"previous_state": _AIRFLOW_STATES[WaitState.WAITING], "state": parameters.state}
        message = f"Task instance state was updated to '{parameters.state}'."
    else:
        state = _AIRFLOW_STATES[WaitState(receipt["state"])] if "state" in receipt else None
        fields |= {"previous_state": state, "state": state, "error": receipt["error"]}
        message = f"Task instance state was not updated: {receipt['error']}."
    return json_response(status, {**fields, "message": message})
