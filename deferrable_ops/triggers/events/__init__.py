"""The trigger that waits for events, and the one that publishes them."""

from deferrable_ops.triggers.events.publish.trigger import PublishEventTrigger
from deferrable_ops.triggers.events.trigger import EventsTrigger

__all__ = ["EventsTrigger", "PublishEventTrigger"]
