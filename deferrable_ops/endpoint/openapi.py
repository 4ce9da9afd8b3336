"""The endpoint's OpenAPI description.

FastAPI cannot generate the whole description, because FastAPI's router does not know the endpoint's routes.
"""

from __future__ import annotations

from typing import Any, Final

_Json = dict[str, Any]

_TEXT: Final[_Json] = {"type": "string"}
_TIME: Final[_Json] = {"type": ["string", "null"], "format": "date-time"}
_STATES: Final = ["waiting", "success", "failed", "skipped", "expired", "superseded", "killed"]


def describe(generated: _Json) -> _Json:
    """Return FastAPI's OpenAPI description with the endpoint's routes added."""
    schemas = generated.get("components", {}).get("schemas", {}) | _SCHEMAS
    return {
        **generated,
        "paths": _paths() | generated["paths"],
        "components": {
            **generated.get("components", {}),
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _paths() -> _Json:
    in_path: _Json = {"parameters": [_TOKEN]}
    in_header: _Json = {"security": [{"token": []}]}
    paths: _Json = {}
    for prefix, access in (("/callbacks/{token}", in_path), ("/callbacks", in_header)):
        name = "" if access is in_path else "_by_header"
        paths[prefix] = {
            "get": _operation("Show the wait's state and times", f"show_wait{name}", access, _WAIT_SHOWN),
            "post": _callback(
                "Send a result, which the operator's expressions evaluate", f"post{name}", access, "Any"
            ),
        }
        for verb, (summary, body) in _VERBS.items():
            paths[f"{prefix}/{verb}"] = {"post": _callback(summary, f"{verb}{name}", access, body)}
    paths["/health"] = _health("Show that the process answers; the inbox is not used", "health", {})
    paths["/health/ready"] = _health(
        "Show whether callbacks can be stored, which means that the inbox can be read and written",
        "ready",
        {status: _error(_ERRORS[status]) for status in ("500", "503")},
    )
    paths["/channels/{name}"] = {"post": _channel_operation()}
    paths["/dag/{dag_id}/task/{task_id}/"] = {"patch": _task_operation()}
    return paths


def _callback(summary: str, name: str, access: _Json, body: str) -> _Json:
    described = _operation(summary, name, access, _RECEIPTS if name.startswith("post") else _RECEIPT)
    described["parameters"] = [*described.get("parameters", []), _IDEMPOTENCY_KEY]
    described["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
    described["responses"] |= {status: _error(text) for status, text in _CALLBACK_ERRORS.items()}
    return described


def _operation(summary: str, name: str, access: _Json, successes: _Json) -> _Json:
    errors = {status: _error(text) for status, text in _ERRORS.items()}
    return {"summary": summary, "operationId": name, **access, "responses": successes | errors}


def _task_operation() -> _Json:
    """Return the OpenAPI description of the route that sets a task's state."""
    integer = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
    parameters = [
        _parameter("dag_id", "path", _TEXT | {"minLength": 1}, required=True),
        _parameter("task_id", "path", _TEXT | {"minLength": 1}, required=True),
        _parameter("execution_date", "query", _TEXT | {"format": "date-time"}),
        _parameter("run_id", "query", _TEXT),
        _parameter("try_number", "query", integer, required=True),
        _parameter("map_index", "query", integer | {"minimum": -1, "default": -1}),
        _parameter("state", "query", _TEXT | {"enum": ["success", "failed", "skipped"]}, required=True),
        _IDEMPOTENCY_KEY,
    ]
    errors = {
        **_ERRORS,
        **_CALLBACK_ERRORS,
        "400": "A parameter is missing or malformed, or the task instance does not exist",
    }
    return {
        "summary": "Set a task's state by DAG, task and run",
        "description": "The parameters may also be in a urlencoded form or in a JSON object. Give "
        "execution_date or run_id. Send the token of the wait, or the static token [deferrable_ops] auth_token.",
        "operationId": "set_task_state",
        "security": [{"token": []}],
        "parameters": parameters,
        "responses": {
            "200": _response("The state is set", "TaskState"),
            **{status: _error(text) for status, text in errors.items()},
        },
    }


def _channel_operation() -> _Json:
    name = _TEXT | {"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"}
    taken = _response(
        "The event is committed; a duplicate gets the receipt of the first event", "EventReceipt"
    )
    errors = {
        **_ERRORS,
        "400": "The request is a malformed CloudEvent",
        "401": "The signature or token is missing or wrong, or the timestamp is too old",
        "404": "This endpoint's inbox has no such channel",
        **{status: _CALLBACK_ERRORS[status] for status in ("408", "413")},
    }
    return {
        "summary": "Post an event",
        "description": "The body may have any format; tasks can match the keys of a JSON body. The channel's scheme "
        "decides how the request is verified. The request may be a CloudEvent in structured or binary mode. A "
        "duplicate is detected by the sender's delivery id. Without a delivery id, a duplicate is detected by its "
        "body for 5 minutes. The response to a url_verification of Slack contains Slack's challenge.",
        "operationId": "post_event",
        "parameters": [_parameter("name", "path", name, required=True)],
        "requestBody": {"content": {"application/json": {"schema": _ref("Any")}}},
        "responses": {"200": taken, **{status: _error(text) for status, text in errors.items()}},
    }


def _health(summary: str, name: str, errors: _Json) -> _Json:
    successes = {"200": _response("The check succeeded", "Health")}
    return {"get": {"summary": summary, "operationId": name, "responses": successes | errors}}


def _parameter(name: str, place: str, schema: _Json, *, required: bool = False) -> _Json:
    return {"name": name, "in": place, "required": required, "schema": schema}


def _ref(schema: str) -> _Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _response(text: str, schema: str) -> _Json:
    return {"description": text, "content": {"application/json": {"schema": _ref(schema)}}}


def _error(text: str) -> _Json:
    return _response(text, "Error")


def _object(properties: _Json, *required: str) -> _Json:
    return {"type": "object", "properties": properties, "required": list(required)}


_TOKEN: Final = _parameter("token", "path", _TEXT | {"minLength": 1}, required=True)
_IDEMPOTENCY_KEY: Final = _parameter(
    "Idempotency-Key", "header", _TEXT | {"minLength": 1, "maxLength": 255, "pattern": "^[\\x21-\\x7e]+$"}
)
_VERBS: Final = {
    "success": ("End the wait with success", "Any"),
    "failure": ("End the wait with failure", "Failure"),
    "skip": ("End the wait with a skip, because there was nothing to do", "Skip"),
    "heartbeat": ("Report that the work is still running", "Heartbeat"),
}
_ERRORS: Final = {
    "401": "The token is missing, malformed, forged or revoked",
    "404": "The inbox does not contain the wait or has deleted it, or does not have the key that signed the token",
    "500": "The endpoint is set up wrongly, or has an internal error; an administrator must fix the endpoint",
    "503": "The inbox is unavailable; try again after Retry-After seconds",
}
_CALLBACK_ERRORS: Final = {
    "400": "The body is not JSON or does not fit the verb, or the Idempotency-Key is malformed",
    "408": "The body was not complete after 30 s",
    "409": "The wait was already settled by another callback",
    "410": "The task no longer waits, because the wait is expired, superseded or killed",
    "413": "The body is larger than [deferrable_ops] max_payload_bytes",
    "422": "The Idempotency-Key was used before with other content",
}
_WAIT_SHOWN: Final = {"200": _response("State and times of the wait", "Wait")}
_RECEIPT: Final = {
    "200": _response("The callback is committed; a repeated callback gets the same receipt", "Receipt")
}
_RECEIPTS: Final = _RECEIPT | {
    "202": _response("The callback is committed as progress; the task keeps waiting", "Receipt"),
}
_SCHEMAS: Final[_Json] = {
    "Any": {"description": "Any JSON value"},
    "Failure": _object({"reason": _TEXT, "retryable": {"type": "boolean", "default": True}, "payload": {}}),
    "Skip": _object({"reason": _TEXT}),
    "Heartbeat": _object({"progress": {"type": "number", "minimum": 0, "maximum": 1}, "message": _TEXT}),
    "Receipt": _object(
        {
            "wait": _TEXT | {"format": "uuid"},
            "state": _TEXT | {"enum": _STATES[:4]},
            "received_at": _TEXT | {"format": "date-time"},
            "note": _TEXT,
        },
        "wait",
        "state",
        "received_at",
    ),
    "EventReceipt": _object(
        {
            "channel": _TEXT,
            "event": {"type": "integer"},
            "received_at": _TEXT | {"format": "date-time"},
            "challenge": _TEXT,
        }
    ),
    "Wait": _object(
        {
            "wait": _TEXT | {"format": "uuid"},
            "state": _TEXT | {"enum": _STATES},
            **dict.fromkeys(("created_at", "deadline", "last_beat", "settled_at"), _TIME),
        },
        "wait",
        "state",
        "created_at",
        "deadline",
        "last_beat",
        "settled_at",
    ),
    "TaskState": _object(
        {
            "dag_id": _TEXT,
            "task_id": _TEXT,
            "execution_date": {"type": ["string", "null"]},
            "run_id": _TEXT,
            "try_number": {"type": "integer"},
            "previous_state": {"type": ["string", "null"]},
            "state": {"type": ["string", "null"]},
            "message": _TEXT,
        },
        *("dag_id", "task_id", "execution_date", "try_number", "previous_state", "state", "message"),
    ),
    "Health": _object({"status": _TEXT | {"enum": ["ok", "ready"]}}, "status"),
    "Error": _object({"error": _TEXT, "state": {"type": ["string", "null"]}, "parameter": _TEXT}, "error"),
}
