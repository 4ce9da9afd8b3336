"""The trigger of WebhookOperator, WebhookSensor and ``@task.webhook``."""

from deferrable_ops.triggers.webhook.trigger import WebhookTrigger

__all__ = ["WebhookTrigger"]
