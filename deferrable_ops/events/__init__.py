"""What an event is waited for by, and published as. Pure logic: no input, no output."""

from deferrable_ops.events.merging import Merge
from deferrable_ops.events.messages import KafkaMessage, SqsMessage
from deferrable_ops.events.specifications import ChannelEvent, KafkaEvent, SqsEvent

__all__ = ["ChannelEvent", "KafkaEvent", "KafkaMessage", "Merge", "SqsEvent", "SqsMessage"]
