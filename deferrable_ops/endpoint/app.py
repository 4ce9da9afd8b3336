"""The app: callbacks and events are dispatched here, before FastAPI, whose machinery would cost more than they do.

It is a FastAPI app all the same, because Airflow's API server runs the lifespan of a mounted app only then,
and because pages with Airflow's authentication are FastAPI routes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from deferrable_ops.endpoint import openapi
from deferrable_ops.endpoint.answers import Answer, Refused, json_answer, send_answer, with_privacy
from deferrable_ops.endpoint.background import Chore, announce, prune, running
from deferrable_ops.endpoint.body import Disconnected
from deferrable_ops.endpoint.callbacks import show_wait, take_callback
from deferrable_ops.endpoint.channels import take_event
from deferrable_ops.endpoint.paths import find_callback, find_channel, find_task, mask_tokens, path_in_app
from deferrable_ops.endpoint.resources import Resources
from deferrable_ops.endpoint.tasks import set_task_state
from deferrable_ops.exceptions import ConfigurationError, InboxUnavailable, UnknownChannel, UnknownWait
from deferrable_ops.inbox.waits.callbacks import UNKNOWN_WAIT
from deferrable_ops.settings import ENDPOINT_PREFIX

log = logging.getLogger(__name__)

_RETRY_AFTER: Final = ((b"retry-after", b"2"),)


def create_app(*, background: Iterable[Chore] = ()) -> FastAPI:
    """Return the endpoint.

    :param background: chores of its lifespan, besides announcing itself and pruning the inbox; each is given
        the inbox, and is started again when it fails.
    """
    return Endpoint([announce, prune, *background])


class Endpoint(FastAPI):
    """The endpoint as an ASGI app."""

    def __init__(self, chores: Iterable[Chore]) -> None:
        self._resources = Resources()
        self._chores = tuple(chores)
        super().__init__(
            title="airflow-deferrable-ops", docs_url=None, redoc_url=None, lifespan=Endpoint._lifespan
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if not scope.get("root_path") and scope["path"].startswith(f"{ENDPOINT_PREFIX}/"):
            scope["root_path"] = ENDPOINT_PREFIX  # on its own, the endpoint has the API server's paths too
        path = path_in_app(scope)
        mask_tokens(scope, path)
        try:
            answer = await self._answer(scope, receive, path)
        except Disconnected:
            return
        if answer is None:
            await super().__call__(scope, receive, with_privacy(send))
        else:
            await send_answer(send, answer)

    def openapi(self) -> dict[str, Any]:
        """Return the description of every route."""
        if not self.openapi_schema:
            self.openapi_schema = openapi.describe(super().openapi())
        return self.openapi_schema

    async def _answer(self, scope: Scope, receive: Receive, path: str) -> Answer | None:
        """Return the answer; None when the path is for FastAPI."""
        try:
            return await self._route(scope, receive, path)
        except Refused as refused:
            return refused.answer
        except UnknownWait:
            return json_answer(404, {"error": UNKNOWN_WAIT})
        except UnknownChannel as error:
            return json_answer(404, {"error": str(error)})
        except InboxUnavailable as error:
            log.warning("A request could not be taken: %s", error)
        except TimeoutError:
            log.warning("A request could not be taken: the inbox did not answer in time")
        except ConfigurationError as error:
            log.error("No request can be taken: %s", error)
        except (Disconnected, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("A request could not be taken")
            return json_answer(500, {"error": "the endpoint failed; its log says why"})
        return json_answer(503, {"error": "the inbox does not answer now; try again"}, _RETRY_AFTER)

    async def _route(self, scope: Scope, receive: Receive, path: str) -> Answer | None:
        if callback := find_callback(path):
            token, verb = callback
            if scope["method"] == "POST":
                return await take_callback(self._resources, scope, receive, token, verb)
            if scope["method"] == "GET" and verb == "post":
                return await show_wait(self._resources, scope, token)
            return _not_allowed("GET, POST" if verb == "post" else "POST")
        if channel := find_channel(path):
            if scope["method"] != "POST":
                return _not_allowed("POST")
            return await take_event(self._resources, scope, receive, channel)
        if task := find_task(path):
            if scope["method"] != "PATCH":
                return _not_allowed("PATCH")
            return await set_task_state(self._resources, scope, receive, *task)
        return None

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        async with running(self._chores, self._resources.inbox):
            yield


def _not_allowed(allowed: str) -> Answer:
    return json_answer(405, {"error": f"the method must be {allowed}"}, ((b"allow", allowed.encode()),))
