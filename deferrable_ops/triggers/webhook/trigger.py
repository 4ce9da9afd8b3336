"""The webhook trigger, which sends a request that launches external work and waits for the callback."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from deferrable_ops.inbox import Wait, WaitState
from deferrable_ops.inbox.waits.launches import Claim
from deferrable_ops.outages import http_source
from deferrable_ops.outcome import Failure, Outcome
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.lifecycle.launching import LOST
from deferrable_ops.triggers.webhook.launch import LaunchRequest
from deferrable_ops.triggers.webhook.request import (
    EXPRESSIONS,
    RequestTemplate,
    require_endpoint_url,
    validate,
    validate_expression,
)

PROGRESS_KEY = "progress"
CALLBACK_URL_KEY = "callback_url"
CALLBACK_LINK_KEY = "_link_CallbackLink"
DEFAULT_LAUNCH_TIMEOUT = 300.0

_PROGRESS_INTERVAL = 10.0
_LOST: Final = (
    f"The {LOST}. {{}}. Callbacks from before the restore are lost unless the service sends them again"
)
# The triggerer sends one XCom at a time. The progress of many waits must not fill its queue of XComs.
_progress_slot = asyncio.Semaphore(1)


class WebhookTrigger(TaskTrigger):
    """Waits for the callback of external work. If the task has a request that launches the work, the trigger first
    sends this request.

    This trigger has the arguments of :class:`deferrable_ops.operators.webhook.WebhookOperator`. All durations are in
    seconds.

    :param registered: whether a worker registered the wait and launched the work before it deferred the task.
    """

    feature: ClassVar[str] = "webhook"
    classpath: ClassVar[str] = "deferrable_ops.triggers.webhook.WebhookTrigger"
    arguments: ClassVar[tuple[str, ...]] = (
        "url",
        "http_conn_id",
        "path",
        "method",
        "headers",
        "json",
        "data",
        "launch_timeout",
        "heartbeat_timeout",
        "success_when",
        "failure_when",
        "result",
        "cancel_request",
        "publish_url",
        "relaunch_when_lost",
        "registered",
    )

    # The monotonic time of the last push of progress.
    _progress_pushed_at = float("-inf")

    def __init__(
        self,
        *,
        url: str | None = None,
        http_conn_id: str | None = None,
        path: str | None = None,
        method: str = "POST",
        headers: dict[str, str] | None = None,
        json: Any = None,
        data: str | dict[str, str] | None = None,
        launch_timeout: float = DEFAULT_LAUNCH_TIMEOUT,
        heartbeat_timeout: float | None = None,
        success_when: str | None = None,
        failure_when: str | None = None,
        result: str | None = None,
        cancel_request: dict[str, Any] | None = None,
        publish_url: bool = False,
        relaunch_when_lost: bool = False,
        registered: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.url = url
        self.http_conn_id = http_conn_id
        self.path = path
        self.method = method
        self.headers = headers
        self.json = json
        self.data = data
        self.launch_timeout = launch_timeout
        self.heartbeat_timeout = heartbeat_timeout
        self.success_when = success_when
        self.failure_when = failure_when
        self.result = result
        self.cancel_request = cancel_request
        self.publish_url = publish_url
        self.relaunch_when_lost = relaunch_when_lost
        self.registered = registered

    @property
    def launches(self) -> bool:
        """Whether this trigger sends a request before it waits for the callback."""
        return self.url is not None or self.http_conn_id is not None

    @property
    def sources(self) -> tuple[str, ...]:
        """The name of the service that receives the request to launch; empty if the task sends no such request."""
        return (http_source(self.http_conn_id, self.url),) if self.launches else ()

    @property
    def cancellable(self) -> bool:
        """Whether the task has a request that cancels the external work."""
        return self.cancel_request is not None

    @property
    def heartbeats_within(self) -> float | None:
        """The number of seconds without a heartbeat after which the wait fails, or None if no heartbeats are expected.
        The service that does the external work sends the heartbeats.
        """
        return self.heartbeat_timeout

    @property
    def expected(self) -> dict[str, Any]:
        """The JMESPath expressions with which the endpoint evaluates a callback. The keys are names of arguments."""
        expressions = {name: getattr(self, name) for name in EXPRESSIONS}
        return {name: expression for name, expression in expressions.items() if expression is not None}

    @property
    def xcoms_to_clear(self) -> tuple[str, ...]:
        """The keys of XComs that an earlier attempt of the task may have pushed."""
        shown = (PROGRESS_KEY,) if self.heartbeat_timeout or self.expected else ()
        return (
            *super().xcoms_to_clear,
            *shown,
            *((CALLBACK_URL_KEY, CALLBACK_LINK_KEY) if self.publish_url else ()),
        )

    def validate(self) -> None:
        """Check the arguments of the trigger after their templates were rendered.

        :raises InputError: if an argument is invalid. The error message shows which argument is wrong and how to
            correct it.
        """
        validate({name: getattr(self, name) for name in self.arguments})
        for name in EXPRESSIONS:
            validate_expression(name, getattr(self, name))

    async def wait(self) -> Outcome:
        """Launch the external work, unless an earlier run of the trigger has launched the work. Then wait for the
        callback, and return the outcome that the callback reports.
        """
        endpoint = require_endpoint_url()
        if urlsplit(endpoint).hostname in ("localhost", "127.0.0.1", "::1"):
            self.log.warning(
                "The callback URL starts with %s, which only this machine can reach; set [deferrable_ops] endpoint_url "
                "to a URL that the external service can reach",
                endpoint,
            )
        if self.registered and self.current.is_new:
            self.log.error(_LOST.format("The worker has launched the work"))
        if self.publish_url:
            await self._publish(endpoint)
        if self.launches and self.current.launched_at is None and await self._may_launch():
            await self._launch(endpoint)
        self.log.info("Waiting for the callback of wait %s at %s/callbacks/***", self.current.id, endpoint)
        return await self.wait_until_settled()

    async def cancel(self, wait: Wait) -> None:
        """Send the request that cancels the external work, unless the work was never launched."""
        if self.cancel_request is None or (self.launches and not wait.launch_claimed):
            return
        request = await self._prepare(RequestTemplate(**self.cancel_request), wait, require_endpoint_url())
        await request.send_once()

    async def on_wait_updated(self) -> None:
        """Push the progress from the callbacks to an XCom, at most once every 10 s."""
        if self.current.progress is None or time.monotonic() - self._progress_pushed_at < _PROGRESS_INTERVAL:
            return
        if self.current.state is not WaitState.WAITING or _progress_slot.locked():
            return
        self._progress_pushed_at = time.monotonic()
        async with _progress_slot:
            try:
                await self.push_xcom(PROGRESS_KEY, self.current.progress)
            except Exception as error:
                self.log.warning(
                    "Could not push the progress as an XCom: %s; the wait continues", type(error).__name__
                )

    async def expired(self) -> Outcome:
        """Return a failure, because the deadline has passed. If the inbox had lost the launch, the failure's reason
        says so.
        """
        outcome = await super().expired()
        if not (self.current.launch_answer or {}).get("lost") or not isinstance(outcome, Failure):
            return outcome
        return Failure(
            f"{outcome.reason}; the inbox had lost this wait after the launch, so the callback may be lost, and the "
            "work was not launched again"
        )

    async def _may_launch(self) -> bool:
        """Return whether the work may be launched.

        If an earlier run of the trigger has launched the work, but the inbox has lost the record of this launch, return
        False. With ``relaunch_when_lost=True``, return True also in this case.
        """
        if await self.lost_launch() is None:
            return True
        if self.relaunch_when_lost:
            self.log.warning(_LOST.format("The work is launched again, because relaunch_when_lost=True"))
            return True
        self.log.error(
            _LOST.format("An earlier run has launched the work, so the work is not launched again")
        )
        await self.launch_once(_launched_before)
        return False

    async def _publish(self, endpoint: str) -> None:
        token = await self.inbox.keys.token(self.current.id, self.current.key_id)
        url = f"{endpoint}/callbacks/{token}"
        await self.push_xcom(CALLBACK_URL_KEY, url)
        await self.push_xcom(CALLBACK_LINK_KEY, url)

    async def _launch(self, endpoint: str) -> None:
        template = RequestTemplate(
            self.url, self.http_conn_id, self.path, self.method, self.headers, self.json, self.data
        )
        request = await self._prepare(template, self.current, endpoint)
        status = None

        async def send(claim: Claim) -> dict[str, Any]:
            nonlocal status
            check = partial(self.record_and_check, claim)
            response = await request.send_with_retries(check, self.launch_timeout, self.sources[0])
            status = response.status
            return {"status": status, "body": request.redact(response.text)}

        await self.launch_once(send)
        if status is not None:
            self.log.info("Launched the work: %s answered with HTTP status %d", request.redacted_url, status)

    async def _prepare(self, template: RequestTemplate, wait: Wait, endpoint: str) -> LaunchRequest:
        token = await self.inbox.keys.token(wait.id, wait.key_id)
        return LaunchRequest(
            await template.fill(endpoint=endpoint, token=token, wait_id=wait.id), token, self.log
        )


async def _launched_before(_claim: Claim) -> dict[str, Any]:
    """Return the value that is stored in place of the service's response, if the inbox has lost the record of the
    launch.
    """
    return {"lost": True}
