"""Converts errors that aiokafka raises while records are published into errors of this library.

The message of each of these errors shows how to correct the problem.
"""

from __future__ import annotations

from typing import Final

from deferrable_ops.error_table import ErrorKind, kind_of_code
from deferrable_ops.exceptions import KafkaError, KafkaRefused, KafkaUnavailable, LaunchRefused
from deferrable_ops.upstreams.kafka.connection import ClusterSettings

TRANSACTIONAL_PREFIX: Final = "deferrable-ops-"
"""The prefix of all transactional ids. One ACL for this prefix can grant access to all these ids."""

NO_COORDINATOR: Final = (
    "no transaction coordinator answered; if the cluster has fewer brokers than its "
    "transaction.state.log.replication.factor, lower that setting, or set transactional=False"
)
_FENCED: Final = frozenset({"InvalidProducerEpoch", "ProducerFenced", "TransactionCoordinatorFenced"})


class ProducerFenced(KafkaError):
    """Another producer uses the same transactional id now, or Kafka has aborted the transaction after its timeout."""


def translate_error(
    settings: ClusterSettings, topic: str, error: BaseException, size: int | None = None, index: int = 0
) -> KafkaError | LaunchRefused:
    """Return the error of this library that corresponds to an error of aiokafka: a LaunchRefused if Kafka rejects a
    record.

    :param size: the size, in bytes, of the record that could not be sent; None if it is unknown.
    :param index: the index of this record in the argument ``messages`` of the task.
    """
    name, detail = type(error).__name__, settings.without_secrets(str(error) or type(error).__name__)
    cluster, who = f"the cluster of the connection {settings.conn_id!r}", settings.username or "this client"
    if name in _FENCED:
        return ProducerFenced(
            f"Kafka aborted the transaction ({name}), because another attempt of the task has taken over, or the "
            "transaction timed out"
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
            f"{cluster} does not let {who} use the idempotent producer; grant IDEMPOTENT_WRITE on the cluster. If "
            f"its brokers are 2.8 or newer, WRITE on the topic {topic!r} is enough"
        )
    if name in ("MessageSizeTooLargeError", "RecordListTooLargeError"):
        return LaunchRefused(
            f"messages[{index}] has {size} bytes, more than the topic {topic!r} accepts; raise its max.message.bytes, "
            "or publish a reference to the data instead"
        )
    is_temporary = kind_of_code("kafka", name) is ErrorKind.TEMPORARY
    if is_temporary or getattr(error, "retriable", True):
        return KafkaUnavailable(f"{cluster} ({settings.servers}) does not accept messages now: {detail}")
    return LaunchRefused(f"{cluster} rejects messages[{index}] for the topic {topic!r}: {name}: {detail}")


def topic_write_refusal(settings: ClusterSettings, topic: str) -> KafkaRefused:
    """Return the error to raise if the Kafka user has no permission to write to a topic."""
    return KafkaRefused(
        f"the cluster of the connection {settings.conn_id!r} does not let {settings.username or 'this client'} "
        f"write to the topic {topic!r}; grant WRITE and DESCRIBE on it"
    )
