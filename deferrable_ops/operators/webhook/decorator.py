"""The decorator ``@task.webhook``: a function launches work in another system, and a task waits for the callback."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import Context
from airflow.sdk.bases.decorator import DecoratedOperator, TaskDecorator, task_decorator_factory

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.webhook.mixin import TEMPLATABLE, WebhookOperatorMixin

_URL_PARAMETER = "callback_url"


class WebhookDecoratedOperator(WebhookOperatorMixin, DecoratedOperator, PythonOperator):
    """The operator behind ``@task.webhook``."""

    template_fields: Sequence[str] = (*PythonOperator.template_fields, *TEMPLATABLE)
    custom_operator_name = "@task.webhook"

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Sequence[Any] = (),
        op_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if _URL_PARAMETER not in inspect.signature(python_callable).parameters:
            raise InputError(
                f"@task.webhook: {python_callable.__name__}() has no parameter {_URL_PARAMETER}; "
                "add this parameter, which receives the callback URL"
            )
        call: dict[str, Any] = {
            "python_callable": python_callable,
            "op_args": op_args,
            "op_kwargs": {_URL_PARAMETER: None, **(op_kwargs or {})},
        }
        super().__init__(kwargs_to_upstream=call, **call, **kwargs)

    def execute(self, context: Context) -> Any:
        """Call the function with the callback URL, then wait for the callback."""
        return super().execute(context)

    def determine_kwargs(self, context: Context) -> dict[str, Any]:  # type: ignore[override]
        """Return the function's arguments.

        Only this method adds the callback URL to the function's arguments, so that Airflow does not store the URL with
        the rendered template fields.
        """
        return {**super().determine_kwargs(context), _URL_PARAMETER: self.callback_url}


def webhook_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Turn a function into a task that launches work in another system and waits for the callback of that system.

    :param python_callable: the function that launches the work. The function's parameter ``callback_url`` receives the
        callback URL. The function's return value becomes the XCom ``launched``. The callback's payload becomes the
        task's XCom.
    """
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=WebhookDecoratedOperator, **kwargs
    )
