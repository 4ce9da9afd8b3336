"""``@task.webhook``: a function that launches outside work with its ``callback_url``, and whose task then waits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import Context
from airflow.sdk.bases.decorator import DecoratedOperator, TaskDecorator, task_decorator_factory

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.webhook.mixin import RENDERABLE, WebhookOperatorMixin

_PARAMETER = "callback_url"


class WebhookDecoratedOperator(WebhookOperatorMixin, DecoratedOperator, PythonOperator):
    """The operator behind ``@task.webhook``."""

    template_fields: Sequence[str] = (*PythonOperator.template_fields, *RENDERABLE)
    custom_operator_name = "@task.webhook"

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Sequence[Any] = (),
        op_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if _PARAMETER not in inspect.signature(python_callable).parameters:
            raise InputError(
                f"@task.webhook: {python_callable.__name__}() must take {_PARAMETER}, where the service calls back"
            )
        call: dict[str, Any] = {
            "python_callable": python_callable,
            "op_args": op_args,
            "op_kwargs": {_PARAMETER: None, **(op_kwargs or {})},
        }
        super().__init__(kwargs_to_upstream=call, **call, **kwargs)

    def execute(self, context: Context) -> Any:
        """Call the function with its URL, then wait."""
        return super().execute(context)

    def determine_kwargs(self, context: Context) -> dict[str, Any]:  # type: ignore[override]
        """Return the function's arguments. The URL joins them here, after they were rendered and shown."""
        return {**super().determine_kwargs(context), _PARAMETER: self.callback_url}


def webhook_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a function into a task that launches outside work and waits for its callback.

    :param python_callable: takes ``callback_url``, and launches; what it returns is XCom ``launched``. The callback's
        payload becomes the task's XCom.
    """
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=WebhookDecoratedOperator, **kwargs
    )
