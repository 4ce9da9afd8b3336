"""The webhook wait: send a request that launches outside work, then wait for its callback."""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar
from urllib.parse import urlsplit

from deferrable_ops.inbox import Wait, WaitState
from deferrable_ops.inbox.waits.launches import ClaimLost
from deferrable_ops.outcome import Failure, Outcome
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.webhook.launch import Launch, LaunchFailed
from deferrable_ops.triggers.webhook.request import (
    EXPRESSIONS,
    RequestTemplate,
    endpoint_url_or_error,
    validate,
    validate_expression,
)

PROGRESS = "progress"
CALLBACK_URL = "callback_url"
CALLBACK_LINK_KEY = "_link_CallbackLink"
DEFAULT_LAUNCH_TIMEOUT = 300.0

_PROGRESS_EVERY = 10.0
_progress_turn = asyncio.Semaphore(
    1
)  # the triggerer serves one XCom at a time: progress must not fill that queue


class WebhookTrigger(TaskTrigger):
    """Sends the launching request, when there is one, and waits for the callback.

    The arguments are those of :class:`deferrable_ops.operators.webhook.WebhookOperator`, durations in seconds.
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
    )

    _shown_at = float("-inf")  # when progress was shown last

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

    @property
    def launches(self) -> bool:
        """Whether a request is sent before the wait."""
        return self.url is not None or self.http_conn_id is not None

    @property
    def cancellable(self) -> bool:
        """Whether there is a request that stops the outside work."""
        return self.cancel_request is not None

    @property
    def heartbeats_within(self) -> float | None:
        """Seconds between two heartbeats after which the wait fails; None when none are expected."""
        return self.heartbeat_timeout

    @property
    def expected(self) -> dict[str, Any]:
        """The expressions by which the endpoint judges a callback."""
        expressions = {name: getattr(self, name) for name in EXPRESSIONS}
        return {name: expression for name, expression in expressions.items() if expression is not None}

    @property
    def xcoms_to_clear(self) -> tuple[str, ...]:
        """The XComs that an earlier attempt may have left."""
        shown = (PROGRESS,) if self.heartbeat_timeout or self.expected else ()
        return (
            *super().xcoms_to_clear,
            *shown,
            *((CALLBACK_URL, CALLBACK_LINK_KEY) if self.publish_url else ()),
        )

    def validate(self) -> None:
        """Check the rendered arguments.

        :raises InputError: one of them is wrong; the message names it and the fix.
        """
        validate({name: getattr(self, name) for name in self.arguments})
        for name in EXPRESSIONS:
            validate_expression(name, getattr(self, name))

    async def wait(self) -> Outcome:
        """Launch the work unless that was done, and return what the callback says."""
        endpoint = endpoint_url_or_error()
        if urlsplit(endpoint).hostname in ("localhost", "127.0.0.1", "::1"):
            self.log.warning(
                "Callbacks are expected at %s, which only this machine reaches; set [deferrable_ops] endpoint_url",
                endpoint,
            )
        if self.publish_url:
            await self._publish(endpoint)
        if self.launches and self.current.launched_at is None:
            failure = await self._launch(endpoint)
            if failure is not None:
                return failure
        self.log.info("Waiting for the callback of wait %s at %s/callbacks/***", self.current.id, endpoint)
        return await self.wait_until_settled()

    async def cancel(self, wait: Wait) -> None:
        """Send the cancelling request, if the work may have been launched."""
        if self.cancel_request is None or (self.launches and not wait.launch_claimed):
            return
        launch = await self._prepare(RequestTemplate(**self.cancel_request), wait, endpoint_url_or_error())
        await launch.send_once()

    async def on_wait_updated(self) -> None:
        """Show the progress that came, at most every 10 s."""
        if self.current.progress is None or time.monotonic() - self._shown_at < _PROGRESS_EVERY:
            return
        if self.current.state is not WaitState.WAITING or _progress_turn.locked():
            return
        self._shown_at = time.monotonic()
        async with _progress_turn:
            try:
                await self.push_xcom(PROGRESS, self.current.progress)
            except Exception as error:
                self.log.warning("The progress could not be shown: %s", type(error).__name__)

    async def _publish(self, endpoint: str) -> None:
        token = await self.inbox.keys.token(self.current.id, self.current.key_id)
        url = f"{endpoint}/callbacks/{token}"
        await self.push_xcom(CALLBACK_URL, url)
        await self.push_xcom(CALLBACK_LINK_KEY, url)

    async def _launch(self, endpoint: str) -> Failure | None:
        template = RequestTemplate(
            self.url, self.http_conn_id, self.path, self.method, self.headers, self.json, self.data
        )
        try:
            launch = await self._prepare(template, self.current, endpoint)
            async with self.inbox.launches.claim(self.current.id) as claim:
                if claim is not None:
                    answer = await launch.send_until_answered(claim.check, self.launch_timeout)
                    await claim.record({"status": answer.status, "body": launch.redact(answer.text)})
                    self.log.info("Launched: %s answered %d", launch.shown_url, answer.status)
        except ClaimLost:
            return None
        except LaunchFailed as error:
            return Failure(str(error))
        return None

    async def _prepare(self, template: RequestTemplate, wait: Wait, endpoint: str) -> Launch:
        token = await self.inbox.keys.token(wait.id, wait.key_id)
        return Launch(await template.fill(endpoint=endpoint, token=token, wait_id=wait.id), token, self.log)
