"""The endpoint's app.

The app routes callbacks and events itself, because FastAPI's routing would take longer than all other work on a
request. The app is a FastAPI app for two reasons: Airflow's API server runs the lifespan only of mounted FastAPI apps,
and the pages with Airflow's authentication are FastAPI routes.
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
from deferrable_ops.endpoint.background import (
    BackgroundJob,
    announce,
    announce_host,
    prune,
    run_in_background,
)
from deferrable_ops.endpoint.body import Disconnected
from deferrable_ops.endpoint.callbacks import accept_callback, show_wait
from deferrable_ops.endpoint.channels import accept_event
from deferrable_ops.endpoint.health import HEALTHY, Readiness
from deferrable_ops.endpoint.paths import find_callback, find_channel, find_task, mask_tokens, path_in_app
from deferrable_ops.endpoint.resources import Resources, RetryAfter
from deferrable_ops.endpoint.responses import (
    JsonResponse,
    RequestRejected,
    json_response,
    send_response,
    with_privacy,
)
from deferrable_ops.endpoint.task_states import set_task_state
from deferrable_ops.exceptions import ConfigurationError, InboxUnavailable, UnknownChannel, UnknownWait
from deferrable_ops.inbox.hosts import Component
from deferrable_ops.inbox.waits.callbacks import UNKNOWN_WAIT
from deferrable_ops.settings import ENDPOINT_PREFIX

log = logging.getLogger(__name__)

HEALTH_PATHS: Final = ("/health", "/health/ready")
SET_UP_WRONGLY: Final = (
    "the endpoint is set up wrongly; an administrator must fix the error in the endpoint's log"
)


def create_app(
    component: Component = Component.ENDPOINT, *, background: Iterable[BackgroundJob] = ()
) -> FastAPI:
    """Create the endpoint's app.

    :param component: the kind of process in which the app runs: Airflow's API server, or a standalone endpoint. The
        inbox records the component and its host.
    :param background: jobs that run during the app's lifespan, in addition to `announce`, `announce_host` and `prune`.
        Each job receives the inbox, and is restarted after it raises an exception.
    """
    return Endpoint([announce, announce_host(component), prune, *background])


class Endpoint(FastAPI):
    """The endpoint as an ASGI app."""

    def __init__(self, jobs: Iterable[BackgroundJob]) -> None:
        self._resources = Resources()
        self._readiness = Readiness(self._resources.inbox)
        self._retry_after = RetryAfter()
        self._jobs = tuple(jobs)
        super().__init__(
            title="airflow-deferrable-ops", docs_url=None, redoc_url=None, lifespan=Endpoint._lifespan
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection, which is an HTTP request or the lifespan (start and end) of the app."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        # A standalone endpoint also serves the paths that it has in the API server.
        if not scope.get("root_path") and scope["path"].startswith(f"{ENDPOINT_PREFIX}/"):
            scope["root_path"] = ENDPOINT_PREFIX
        path = path_in_app(scope)
        mask_tokens(scope, path)
        try:
            response = await self._respond(scope, receive, path)
        except Disconnected:
            return
        if response is None:
            await super().__call__(scope, receive, with_privacy(send))
        else:
            await send_response(send, response)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI description of every route."""
        if not self.openapi_schema:
            self.openapi_schema = openapi.describe(super().openapi())
        return self.openapi_schema

    async def _respond(self, scope: Scope, receive: Receive, path: str) -> JsonResponse | None:
        """Handle a request, and return the response. If FastAPI must handle the request, return None."""
        try:
            response = await self._route(scope, receive, path)
            if response is not None and response.status < 300 and response is not HEALTHY:
                # The inbox has answered.
                self._retry_after.succeeded()
            return response
        except RequestRejected as rejected:
            return rejected.response
        except UnknownWait:
            return json_response(404, {"error": UNKNOWN_WAIT})
        except UnknownChannel as error:
            return json_response(404, {"error": str(error)})
        except InboxUnavailable as error:
            log.warning(
                "Answered a request with 503; the sender should repeat the request later. The error was: %s",
                error,
            )
        except TimeoutError:
            log.warning(
                "Answered a request with 503, because the inbox did not answer in time; the sender should repeat "
                "the request"
            )
        except ConfigurationError as error:
            # No 503: a service would repeat its request in vain until the error is fixed.
            log.error(
                "Answered a request with 500; every request gets 500 until this error is fixed: %s", error
            )
            return json_response(500, {"error": SET_UP_WRONGLY})
        except (Disconnected, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("Answered a request with 500, because the endpoint raised an unexpected error")
            return json_response(500, {"error": "internal error; see the endpoint's log"})
        retry_after = (b"retry-after", b"%d" % self._retry_after.failed())
        return json_response(503, {"error": "the inbox is unavailable; try again later"}, (retry_after,))

    async def _route(self, scope: Scope, receive: Receive, path: str) -> JsonResponse | None:
        if callback := find_callback(path):
            token, verb = callback
            if scope["method"] == "POST":
                return await accept_callback(self._resources, scope, receive, token, verb)
            if scope["method"] == "GET" and verb == "post":
                return await show_wait(self._resources, scope, token)
            return _not_allowed("GET, POST" if verb == "post" else "POST")
        if channel := find_channel(path):
            if scope["method"] != "POST":
                return _not_allowed("POST")
            return await accept_event(self._resources, scope, receive, channel)
        if task := find_task(path):
            if scope["method"] != "PATCH":
                return _not_allowed("PATCH")
            return await set_task_state(self._resources, scope, receive, *task)
        if path in HEALTH_PATHS:
            if scope["method"] not in ("GET", "HEAD"):
                return _not_allowed("GET, HEAD")
            return HEALTHY if path == "/health" else await self._readiness.response()
        return None

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        async with run_in_background(self._jobs, self._resources.inbox):
            yield


def _not_allowed(allowed: str) -> JsonResponse:
    return json_response(
        405, {"error": f"this path accepts only the HTTP methods {allowed}"}, ((b"allow", allowed.encode()),)
    )
