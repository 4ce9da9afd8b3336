"""The trigger that waits for a callback."""

from deferrable_ops.triggers.webhook.trigger import WebhookTrigger

__all__ = ["WebhookTrigger"]
