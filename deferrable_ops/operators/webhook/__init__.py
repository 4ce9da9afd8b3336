"""Operators that launch work in another system and wait for its callback, or only wait."""

from deferrable_ops.operators.webhook.mixin import WebhookOperatorMixin
from deferrable_ops.operators.webhook.operators import CallbackLink, WebhookOperator, WebhookSensor

__all__ = ["CallbackLink", "WebhookOperator", "WebhookOperatorMixin", "WebhookSensor"]
