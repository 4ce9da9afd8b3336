"""A mixin for operators whose tasks run on a worker and then wait for a callback in the triggerer."""

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
from deferrable_ops.operators.base import (
    attempt_of,
    finish,
    finish_event,
    optional_seconds,
    register_on_worker,
    seconds,
)
from deferrable_ops.operators.templates import find_templates
from deferrable_ops.operators.worker_reasons import worker_end_reasons
from deferrable_ops.triggers.base import DEFAULT_TIMEOUT
from deferrable_ops.triggers.webhook.request import EXPRESSIONS, require_endpoint_url, validate
from deferrable_ops.triggers.webhook.trigger import WebhookTrigger

_RETRY_TIMEOUT = 300.0
TEMPLATABLE = (*EXPRESSIONS, "cancel_request")
"""The names of the arguments that may contain templates, if the operator's ``template_fields`` contain these names."""

LAUNCHED_KEY = "launched"
"""The XCom key of the operator's own return value."""


class WebhookOperatorMixin(metaclass=BaseOperatorMeta):
    """Gives an operator a callback URL, and makes its task wait for the callback.

    For example, ``class PythonAsyncOperator(WebhookOperatorMixin, PythonOperator)`` does its work on a worker. On the
    worker, the callback URL is ``self.callback_url`` (and ``callback_url`` in the context). The operator may also
    defer itself to a trigger of its own. The wait for the callback begins after the operator has finished its own
    work. The callback's payload becomes the task's XCom, and the operator's return value becomes the XCom
    ``launched``.

    :param callback_timeout: how long to wait for the callback, as a timedelta or in seconds; 7 days by default.
    :param heartbeat_timeout: see :class:`deferrable_ops.operators.webhook.WebhookOperator`, which also describes the
        parameters `success_when`, `failure_when`, `result` and `cancel_request`.
    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
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
        self._check_templates_are_rendered()
        validate({name: getattr(self, name) for name in TEMPLATABLE})

    @property
    def callback_url(self) -> str:
        """The URL for this attempt's callback, available while the task runs on a worker.

        :raises DeferrableOpsError: if the task is not running on a worker.
        """
        if self._callback_url is None:
            raise DeferrableOpsError(
                "callback_url is available only while the task runs on a worker; read it in execute(), not when the "
                "DAG is parsed"
            )
        return self._callback_url

    def execute(self, context: Context) -> Any:
        """Do the operator's work, then wait for the callback."""
        self._prepare_callback_url(context)
        return self._defer_until_callback(super().execute(context), context)  # type: ignore[misc]

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continue after a deferral.

        If the operator had deferred itself, resume the operator and then wait for the callback. If the wait for the
        callback is over, end the task.
        """
        if next_method == self.next_method:
            return super().resume_execution(next_method, next_kwargs, context)  # type: ignore[misc]
        self._prepare_callback_url(context)
        value = super().resume_execution(next_method, next_kwargs, context)  # type: ignore[misc]
        return self._defer_until_callback(value, context)

    def callback_received(self, context: Context, event: dict[str, Any]) -> Any:
        """End the task after the wait for the callback: return the callback's payload, or fail or skip the task."""
        return finish_event(event)

    def _check_templates_are_rendered(self) -> None:
        task: BaseOperator = self  # type: ignore[assignment]
        for name in TEMPLATABLE:
            template = next(find_templates(getattr(self, name)), None)
            if template is not None and name not in task.template_fields:
                raise InputError(
                    f"{name}= has the template {template!r}, which {type(self).__name__} does not render; "
                    f"add {name!r} to its template_fields"
                )

    def _prepare_callback_url(self, context: Context) -> None:
        # The wait is committed to the inbox before its token leaves this process.
        endpoint = require_endpoint_url()
        token = run_sync(self._register(context))
        mask_secret(token)
        self._callback_url = f"{endpoint}/callbacks/{token}"
        context["callback_url"] = self._callback_url  # type: ignore[typeddict-unknown-key]

    async def _register(self, context: Context) -> str:
        trigger = self._trigger(context)
        async with use_inbox(retry_timeout=_RETRY_TIMEOUT) as inbox:
            new = trigger.new_wait(trigger.identify())
            wait = await register_on_worker(inbox, new, trigger.log)
            return await inbox.keys.token(wait.id, wait.key_id)

    def _defer_until_callback(self, value: Any, context: Context) -> Any:
        task: BaseOperator = self  # type: ignore[assignment]
        wait_id = attempt_of(context).wait_id
        if value is not None and task.do_xcom_push:
            context["ti"].xcom_push(LAUNCHED_KEY, value)
        self._callback_url = None
        # The callback may have arrived while this worker was still running.
        outcome = read_outcome(wait_id)
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
            registered=True,
        )
