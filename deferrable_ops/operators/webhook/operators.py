"""Launch outside work and wait for its callback, or only wait."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, ClassVar

from airflow.sdk import BaseOperatorLink

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.base import TriggererOperator, optional_seconds, seconds
from deferrable_ops.triggers.webhook.request import validate
from deferrable_ops.triggers.webhook.trigger import CALLBACK_LINK_KEY, DEFAULT_LAUNCH_TIMEOUT, WebhookTrigger


class CallbackLink(BaseOperatorLink):
    """The callback URL of a task that waits with ``publish_url=True``."""

    name = "Callback"

    @property
    def xcom_key(self) -> str:
        """The XCom that holds the link."""
        return CALLBACK_LINK_KEY

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return nothing: the trigger writes the link."""
        return ""


class _WebhookWait(TriggererOperator):
    """What waiting for a callback takes, whatever launched the work."""

    trigger_class: ClassVar[type[WebhookTrigger]] = WebhookTrigger
    ui_color = "#dff3f0"

    # The arguments that a subclass does not offer.
    url: str | None = None
    http_conn_id: str | None = None
    path: str | None = None
    method: str = "POST"
    headers: dict[str, str] | None = None
    json: Any = None
    data: str | dict[str, str] | None = None
    launch_timeout: float = DEFAULT_LAUNCH_TIMEOUT
    publish_url: bool = False

    def __init__(
        self,
        *,
        heartbeat_timeout: timedelta | float | None = None,
        success_when: str | None = None,
        failure_when: str | None = None,
        result: str | None = None,
        cancel_request: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.heartbeat_timeout = optional_seconds("heartbeat_timeout", heartbeat_timeout)
        self.success_when = success_when
        self.failure_when = failure_when
        self.result = result
        self.cancel_request = cancel_request


class WebhookOperator(_WebhookWait):
    """Send a request that launches work elsewhere, and wait until that work calls back.

    ``${callback_url}``, ``${callback_token}`` and ``${wait_id}`` are filled in anywhere in `url`, `path`, `headers`,
    `json` and `data`, at the moment of sending. If none is used, the header ``Callback-Url`` carries the URL. The
    header ``Idempotency-Key`` is the wait's id. The callback's payload becomes the task's XCom.

    :param url: where the request goes: a whole URL. Or give `http_conn_id` and `path`.
    :param http_conn_id: an Airflow connection with host, login, password and, in its extra, ``headers``.
    :param path: appended to the connection's host.
    :param method: DELETE, GET, PATCH, POST (the default) or PUT.
    :param headers: a dict of strings.
    :param json: sent as the JSON body.
    :param data: sent as it is, or as a form when it is a dict of strings.
    :param launch_timeout: for how long connection errors, 429 and 5xx are tried again, as a timedelta or in seconds;
        5 minutes by default.
    :param heartbeat_timeout: the wait fails when no heartbeat comes for so long; None: none are expected.
    :param success_when: JMESPath on a callback's payload: where it is true, the wait has succeeded.
    :param failure_when: JMESPath on a callback's payload, asked first: where it is true, the wait has failed. A
        callback for which neither is true is progress. Without either, any callback is a success.
    :param result: JMESPath on the payload that picks the XCom's value; the whole payload by default.
    :param cancel_request: the request that stops the work when a user ends the task or its deadline passes: a dict
        with `url` (or `http_conn_id` and `path`), `method`, `headers`, `json`, `data`, and the placeholders.
    :raises InputError: an argument is wrong; the message names it and the fix.
    """

    template_fields: Sequence[str] = (
        "url",
        "path",
        "headers",
        "json",
        "data",
        "success_when",
        "failure_when",
        "result",
        "cancel_request",
    )

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
        launch_timeout: timedelta | float = DEFAULT_LAUNCH_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.url = url
        self.http_conn_id = http_conn_id
        self.path = path
        self.method = method
        self.headers = headers
        self.json = json
        self.data = data
        self.launch_timeout = seconds("launch_timeout", launch_timeout)
        if url is None and http_conn_id is None:
            raise InputError(
                "url= is missing: say where the launching request goes, or give http_conn_id= and path="
            )
        validate({name: getattr(self, name) for name in self.trigger_class.arguments})


class WebhookSensor(_WebhookWait):
    """Wait for a callback, and send nothing.

    :param publish_url: show the callback URL while the task waits, as XCom ``callback_url`` and as the task link
        "Callback". Whoever may read the DAG's XComs can then end the wait.

    The other parameters are those of :class:`WebhookOperator`.
    """

    template_fields: Sequence[str] = ("success_when", "failure_when", "result", "cancel_request")
    operator_extra_links = (CallbackLink(),)

    def __init__(self, *, publish_url: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.publish_url = publish_url
        if not isinstance(publish_url, bool):
            raise InputError(f"publish_url={publish_url!r} must be True or False")
        validate({name: getattr(self, name) for name in self.trigger_class.arguments})
