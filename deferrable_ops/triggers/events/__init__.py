"""The trigger that waits for events, and the trigger that publishes events."""

from deferrable_ops.triggers.events.publish.trigger import PublishEventTrigger
from deferrable_ops.triggers.events.trigger import EventsTrigger

__all__ = ["EventsTrigger", "PublishEventTrigger"]
