"""The trigger of the webhook operators."""

from deferrable_ops.triggers.webhook.trigger import WebhookTrigger

__all__ = ["WebhookTrigger"]
