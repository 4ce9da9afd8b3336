"""Finds the route that handles the path of a request, and masks callback tokens in paths for access logs."""

from __future__ import annotations

import re
from typing import Final

from starlette.types import Scope

from deferrable_ops.inbox.waits.callbacks import Verb

_VERBS: Final = {verb.value: verb for verb in Verb if verb is not Verb.POST}
_CALLBACKS = re.compile(r"/callbacks(?:/([^/]+)(?:/([^/]+))?)?/?")
_CHANNEL = re.compile(r"/channels/([^/]+)/?")
_CHANNEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TASK = re.compile(r"/dag/([^/]+)/task/([^/]+)/?")
_WAIT_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?=\.)")
_TOKEN = re.compile(rf"({_WAIT_ID.pattern})\.[0-9a-f]{{8}}\.[A-Za-z0-9_-]{{43}}")
_MASK = "masked"
_MASKED_TOKEN: Final = rf"\1.{_MASK}"


def path_in_app(scope: Scope) -> str:
    """Return the request's path without the prefix under which the app is mounted."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def find_callback(path: str) -> tuple[str | None, Verb] | None:
    """Return the token and the verb in the path of a callback, or None for any other path.

    If the path contains no token, the returned token is None, and a header of the request must contain the token.
    """
    match = _CALLBACKS.fullmatch(path)
    if match is None:
        return None
    token, word = match.groups()
    if word is None and token in _VERBS:
        return None, _VERBS[token]
    verb = Verb.POST if word is None else _VERBS.get(word)
    return None if verb is None else (token, verb)


def find_task(path: str) -> tuple[str, str] | None:
    """Return the DAG id and the task id in a path of the route that sets a task's state, or None for any other path."""
    match = _TASK.fullmatch(path)
    return None if match is None else (match[1], match[2])


def find_channel(path: str) -> str | None:
    """Return the channel's name in a path such as ``/channels/orders``, or None for any other path."""
    match = _CHANNEL.fullmatch(path)
    return None if match is None else match[1]


def is_channel_name(name: str) -> bool:
    """Return whether a string is a valid channel name."""
    return _CHANNEL_NAME.fullmatch(name) is not None


def mask_tokens(scope: Scope, path: str) -> None:
    """Mask tokens in the parts of the ASGI scope that access logs read.

    uvicorn reads these parts when the response starts, and Airflow reads them after the response is sent. The id of the
    wait is not masked, because this id grants no access.

    :param path: the request's path without the prefix under which the app is mounted.
    """
    masked, found = _TOKEN.subn(_MASKED_TOKEN, path)
    # A truncated or mistyped token is masked, too.
    if not found and path.startswith("/callbacks/"):
        masked = "/".join(["", "callbacks", *map(_masked, path.split("/")[2:])])
    if masked != path:
        scope["path"] = scope["path"].removesuffix(path) + masked
        scope["raw_path"] = scope["path"].encode()
    if scope["query_string"]:
        query = scope["query_string"].decode("latin-1")
        scope["query_string"] = _TOKEN.sub(_MASKED_TOKEN, query).encode("latin-1")


def _masked(segment: str) -> str:
    if not segment or segment in _VERBS:
        return segment
    wait_id = _WAIT_ID.match(segment)
    return f"{wait_id[0]}.{_MASK}" if wait_id else _MASK
