"""Operators that wait for the callback of another system, and that can launch the work in that system first."""

from deferrable_ops.operators.webhook.mixin import WebhookOperatorMixin
from deferrable_ops.operators.webhook.operators import CallbackLink, WebhookOperator, WebhookSensor

__all__ = ["CallbackLink", "WebhookOperator", "WebhookOperatorMixin", "WebhookSensor"]
