"""``WebhookOperator`` and ``WebhookSensor``, and the link to a published callback URL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, ClassVar

from airflow.sdk import BaseOperatorLink

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.base import TriggererOperator, flag, optional_seconds, seconds
from deferrable_ops.triggers.webhook.request import validate
from deferrable_ops.triggers.webhook.trigger import CALLBACK_LINK_KEY, DEFAULT_LAUNCH_TIMEOUT, WebhookTrigger


class CallbackLink(BaseOperatorLink):
    """The task link "Callback", which shows the callback URL of a task that waits with ``publish_url=True``."""

    name = "Callback"

    @property
    def xcom_key(self) -> str:
        """The key of the XCom that contains the link."""
        return CALLBACK_LINK_KEY

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return an empty link. Airflow reads the link from an XCom, and the trigger writes the callback URL to this
        XCom.
        """
        return ""


class _WebhookTask(TriggererOperator):
    """Base class with the arguments that WebhookOperator and WebhookSensor share."""

    trigger_class: ClassVar[type[WebhookTrigger]] = WebhookTrigger

    # Defaults for those arguments of the trigger that a subclass does not have.
    url: str | None = None
    http_conn_id: str | None = None
    path: str | None = None
    method: str = "POST"
    headers: dict[str, str] | None = None
    json: Any = None
    data: str | dict[str, str] | None = None
    launch_timeout: float = DEFAULT_LAUNCH_TIMEOUT
    publish_url: bool = False
    relaunch_when_lost: bool = False
    registered: bool = False

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


class WebhookOperator(_WebhookTask):
    """Send a request that launches work in another system, and wait for the callback of that system.

    The placeholders ``${callback_url}``, ``${callback_token}`` and ``${wait_id}`` are replaced anywhere in `url`,
    `path`, `headers`, `json` and `data` when the request is sent. If these arguments contain no placeholder, the
    callback URL is sent in the header ``Callback-Url``. The header ``Idempotency-Key`` contains the id of the task's
    wait. The callback's payload becomes the task's XCom.

    :param url: the full URL of the request. Instead of `url`, you can give `http_conn_id` and `path`.
    :param http_conn_id: the id of the Airflow connection for the request. The connection contains the host, the login
        and the password. The connection's field Extra may contain ``headers``.
    :param path: the path of the URL, which is appended to the connection's host.
    :param method: the HTTP method of the request: DELETE, GET, PATCH, POST (the default) or PUT.
    :param headers: the HTTP headers of the request, as a dict of strings.
    :param json: a value that is sent as the JSON body of the request.
    :param data: a string that is sent as the body of the request, or a dict of strings that is sent as a form.
    :param launch_timeout: for how long the request is retried after connection errors and the HTTP statuses 429 and
        5xx, as a timedelta or in seconds; 5 minutes by default.
    :param relaunch_when_lost: whether the request is sent again if the inbox was lost, or restored from a backup that
        is older than the launch. Both requests have the same ``Idempotency-Key``. By default, the request is not sent
        again; the task logs an error and waits for a callback.
    :param heartbeat_timeout: the task fails after this time without a heartbeat, as a timedelta or in seconds; by
        default no heartbeats are expected.
    :param success_when: a JMESPath expression that is evaluated on the payload of each callback. The task succeeds
        when the expression `success_when` is true.
    :param failure_when: a JMESPath expression that is evaluated on the payload of each callback, before
        `success_when`. The task fails when the expression `failure_when` is true. If neither `success_when` nor
        `failure_when` is true, the callback only reports progress, and the task continues to wait. If `success_when`
        and `failure_when` are None, the task succeeds with the first callback.
    :param result: a JMESPath expression that selects the task's XCom value from the payload; by default the whole
        payload.
    :param cancel_request: the request that stops the work when a user ends the task, or when the task's deadline
        passes. `cancel_request` is a dict with `url` (or `http_conn_id` and `path`), `method`, `headers`, `json` and
        `data`. Placeholders in `cancel_request` are replaced, too.
    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
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
        relaunch_when_lost: bool = False,
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
        self.relaunch_when_lost = flag("relaunch_when_lost", relaunch_when_lost)
        if url is None and http_conn_id is None:
            raise InputError(
                "url= is missing; give the URL of the request that launches the work, or http_conn_id= and path="
            )
        validate({name: getattr(self, name) for name in self.trigger_class.arguments})


class WebhookSensor(_WebhookTask):
    """Wait for a callback, without sending a request.

    :param publish_url: whether to show the callback URL while the task waits, as the XCom ``callback_url`` and as the
        task link "Callback". Every user who can read the DAG's XComs can then send a callback that ends the task.

    The other arguments are those of :class:`WebhookOperator`, except the arguments that describe the request that
    launches the work, for example `url`.
    """

    template_fields: Sequence[str] = ("success_when", "failure_when", "result", "cancel_request")
    operator_extra_links = (CallbackLink(),)

    def __init__(self, *, publish_url: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.publish_url = flag("publish_url", publish_url)
        validate({name: getattr(self, name) for name in self.trigger_class.arguments})
