"""Any operator's work on a worker, then the wait for its callback in the triggerer."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import Any, ClassVar

from airflow.sdk import BaseOperator, Context
from airflow.sdk.bases.operator import BaseOperatorMeta
from airflow.sdk.log import mask_secret

from deferrable_ops.exceptions import DeferrableOpsError, InputError
from deferrable_ops.inbox import use_inbox
from deferrable_ops.inbox.large_values import read_outcome, run_sync
from deferrable_ops.operators.base import attempt_of, finish, finish_event, optional_seconds, seconds
from deferrable_ops.operators.templates import find_templates
from deferrable_ops.operators.worker_reasons import worker_end_reasons
from deferrable_ops.triggers.base import DEFAULT_TIMEOUT
from deferrable_ops.triggers.webhook.request import EXPRESSIONS, endpoint_url_or_error, validate
from deferrable_ops.triggers.webhook.trigger import WebhookTrigger

_RETRY_TIMEOUT = 300.0
RENDERABLE = (*EXPRESSIONS, "cancel_request")
"""The arguments that may hold templates, where the operator's ``template_fields`` name them."""

LAUNCHED = "launched"
"""The XCom key of what the operator itself returned."""


class WebhookOperatorMixin(metaclass=BaseOperatorMeta):
    """Give an operator a callback URL, and make its task wait for the callback.

    ``class PythonAsyncOperator(WebhookOperatorMixin, PythonOperator)`` does its work on a worker as ever, with
    ``self.callback_url`` at hand (and ``callback_url`` in the context). The wait begins when the operator's last
    method returns, also when it defers itself. The callback's payload becomes the task's XCom; what the operator
    returned is XCom ``launched``.

    :param callback_timeout: how long to wait for the callback, as a timedelta or in seconds; 7 days by default.
    :param heartbeat_timeout: see :class:`deferrable_ops.operators.webhook.WebhookOperator`, as `success_when`,
        `failure_when`, `result` and `cancel_request`.
    """

    next_method: ClassVar[str] = "callback_received"
    _callback_url: str | None = None

    def __init__(
        self,
        *,
        callback_timeout: timedelta | float = DEFAULT_TIMEOUT,
        heartbeat_timeout: timedelta | float | None = None,
        success_when: str | None = None,
        failure_when: str | None = None,
        result: str | None = None,
        cancel_request: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.callback_timeout = seconds("callback_timeout", callback_timeout)
        self.heartbeat_timeout = optional_seconds("heartbeat_timeout", heartbeat_timeout)
        self.success_when = success_when
        self.failure_when = failure_when
        self.result = result
        self.cancel_request = cancel_request
        self._require_what_is_rendered()
        validate({name: getattr(self, name) for name in RENDERABLE})

    @property
    def callback_url(self) -> str:
        """The URL on which this attempt's callback is expected. It exists while the task runs on a worker.

        :raises DeferrableOpsError: the task does not run.
        """
        if self._callback_url is None:
            raise DeferrableOpsError("callback_url exists only while the task runs")
        return self._callback_url

    def execute(self, context: Context) -> Any:
        """Do the operator's work, then wait."""
        self._expect_callback(context)
        return self._wait_after(super().execute(context), context)  # type: ignore[misc]

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on with the operator's own deferral and then wait, or end the wait."""
        if next_method == self.next_method:
            return super().resume_execution(next_method, next_kwargs, context)  # type: ignore[misc]
        self._expect_callback(context)
        value = super().resume_execution(next_method, next_kwargs, context)  # type: ignore[misc]
        return self._wait_after(value, context)

    def callback_received(self, context: Context, event: dict[str, Any]) -> Any:
        """Take over what the wait came to, and return the callback's payload."""
        return finish_event(event)

    def _require_what_is_rendered(self) -> None:
        task: BaseOperator = self  # type: ignore[assignment]
        for name in RENDERABLE:
            template = next(find_templates(getattr(self, name)), None)
            if template is not None and name not in task.template_fields:
                raise InputError(
                    f"{name}= holds the template {template!r}, which {type(self).__name__} does not render; "
                    f"add {name!r} to its template_fields"
                )

    def _expect_callback(self, context: Context) -> None:
        # The wait's row is committed before its token leaves this process.
        endpoint = endpoint_url_or_error()
        token = run_sync(self._register(context))
        mask_secret(token)
        self._callback_url = f"{endpoint}/callbacks/{token}"
        context["callback_url"] = self._callback_url  # type: ignore[typeddict-unknown-key]

    async def _register(self, context: Context) -> str:
        trigger = self._trigger(context)
        async with use_inbox(retry_timeout=_RETRY_TIMEOUT) as inbox:
            wait = await inbox.waits.register(trigger.new_wait(trigger.identify()))
            return await inbox.keys.token(wait.id, wait.key_id)

    def _wait_after(self, value: Any, context: Context) -> Any:
        task: BaseOperator = self  # type: ignore[assignment]
        wait_id = attempt_of(context).wait_id
        if value is not None and task.do_xcom_push:
            context["ti"].xcom_push(LAUNCHED, value)
        self._callback_url = None
        outcome = read_outcome(wait_id)  # the callback may have been quicker than this worker
        if outcome is not None:
            return finish(wait_id, outcome)
        return task.defer(
            trigger=self._trigger(context),
            method_name=self.next_method,
            timeout=timedelta(seconds=self.callback_timeout),
        )

    def _trigger(self, context: Context) -> WebhookTrigger:
        task: BaseOperator = self  # type: ignore[assignment]
        return WebhookTrigger(
            timeout=self.callback_timeout,
            attempt=asdict(attempt_of(context)),
            ends_on_worker=worker_end_reasons(task),
            do_xcom_push=task.do_xcom_push,
            heartbeat_timeout=self.heartbeat_timeout,
            success_when=self.success_when,
            failure_when=self.failure_when,
            result=self.result,
            cancel_request=self.cancel_request,
        )
