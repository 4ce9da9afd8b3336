"""Why a cluster does not take what is published, in words that name the fix."""

from __future__ import annotations

from typing import Final

from deferrable_ops.exceptions import KafkaError, KafkaRefused, KafkaUnavailable
from deferrable_ops.upstreams.kafka.connection import ClusterSettings

TRANSACTIONAL_PREFIX: Final = "deferrable-ops-"
"""What all transactional ids begin with, for a prefixed ACL."""

NO_COORDINATOR: Final = (
    "no broker coordinates transactions; where there are fewer brokers than its "
    "transaction.state.log.replication.factor, none ever will: lower that, or give transactional=False"
)
_NEEDS_NEW_PRODUCER: Final = frozenset(
    {
        "IllegalOperation",
        "InvalidProducerIdMapping",
        "InvalidTxnState",
        "OutOfOrderSequenceNumber",
        "ProducerClosed",
        "UnknownError",
        "UnknownProducerId",
    }
)
_FENCED: Final = frozenset({"InvalidProducerEpoch", "ProducerFenced", "TransactionCoordinatorFenced"})


class ProducerFenced(KafkaError):
    """Another process goes on with what this one published, or Kafka ended the transaction because it took too long."""


def translate_error(
    settings: ClusterSettings, topic: str, error: BaseException, size: int | None = None, index: int = 0
) -> KafkaError:
    """Return what an error of aiokafka's means.

    :param size: of the record at fault, in bytes.
    :param index: of the record at fault.
    """
    name, said = type(error).__name__, settings.without_secrets(str(error) or type(error).__name__)
    cluster, who = f"the cluster of the connection {settings.conn_id!r}", settings.username or "us"
    if name in _FENCED:
        return ProducerFenced(
            f"the transaction is over ({name}): another process goes on, or it took too long"
        )
    if name == "TopicAuthorizationFailedError":
        return topic_write_refusal(settings, topic)
    if name == "TransactionalIdAuthorizationFailed":
        return KafkaRefused(
            f"{cluster} does not let {who} use transactions; grant WRITE and DESCRIBE on the transactional ids that "
            f"begin with {TRANSACTIONAL_PREFIX}, or give transactional=False"
        )
    if name == "ClusterAuthorizationFailedError":
        return KafkaRefused(
            f"{cluster} does not let {who} publish each message once; grant IDEMPOTENT_WRITE on the cluster, or WRITE "
            f"on the topic {topic!r} where its brokers are 2.8 or newer"
        )
    if name in ("MessageSizeTooLargeError", "RecordListTooLargeError"):
        return KafkaRefused(
            f"messages[{index}] has {size} bytes, and the topic {topic!r} takes less; raise its max.message.bytes, or "
            "publish where the data is, and not the data"
        )
    if getattr(error, "retriable", False) or name in _NEEDS_NEW_PRODUCER or not hasattr(error, "retriable"):
        return KafkaUnavailable(f"{cluster} ({settings.servers}) does not take messages now: {said}")
    return KafkaRefused(f"{cluster} does not take messages[{index}] in the topic {topic!r}: {name}: {said}")


def topic_write_refusal(settings: ClusterSettings, topic: str) -> KafkaRefused:
    """Return the error of a topic that we may not write to."""
    return KafkaRefused(
        f"the cluster of the connection {settings.conn_id!r} does not let {settings.username or 'us'} write to the "
        f"topic {topic!r}; grant WRITE and DESCRIBE on it"
    )
