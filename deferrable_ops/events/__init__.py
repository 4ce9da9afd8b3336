"""What an event is waited for by: specifications, matching, conditions, windows. Pure logic: no input, no output."""

from deferrable_ops.events.specifications import ChannelEvent, KafkaEvent, SqsEvent

__all__ = ["ChannelEvent", "KafkaEvent", "SqsEvent"]
