"""Event specifications, rules for merging messages, and the messages that a task publishes.

The package ``events`` does no I/O.
"""

from deferrable_ops.events.merging import Merge
from deferrable_ops.events.messages import KafkaMessage, SqsMessage
from deferrable_ops.events.specifications import ChannelEvent, KafkaEvent, SqsEvent

__all__ = ["ChannelEvent", "KafkaEvent", "KafkaMessage", "Merge", "SqsEvent", "SqsMessage"]
