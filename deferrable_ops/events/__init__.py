"""Event specifications, messages to publish and merge rules. Pure logic without I/O."""

from deferrable_ops.events.merging import Merge
from deferrable_ops.events.messages import KafkaMessage, SqsMessage
from deferrable_ops.events.specifications import ChannelEvent, KafkaEvent, SqsEvent

__all__ = ["ChannelEvent", "KafkaEvent", "KafkaMessage", "Merge", "SqsEvent", "SqsMessage"]
