"""Errors while records are published: which of them may pass, and which need a change by a user."""

from __future__ import annotations

import pytest
from aiokafka import errors

from deferrable_ops.exceptions import KafkaRefused, KafkaUnavailable, LaunchRefused
from deferrable_ops.upstreams.kafka.connection import ClusterSettings
from deferrable_ops.upstreams.kafka.producer_errors import translate_error

SETTINGS = ClusterSettings("kafka_tests", "broker:9092", "PLAINTEXT", "", None, None)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        # A full batch waited for a broker that is away.
        (errors.KafkaTimeoutError(), KafkaUnavailable),
        (errors.CorruptRecordException(), KafkaUnavailable),
        (errors.NotLeaderForPartitionError(), KafkaUnavailable),
        (errors.UnknownProducerId(), KafkaUnavailable),
        (errors.TopicAuthorizationFailedError(), KafkaRefused),
        (errors.ClusterAuthorizationFailedError(), KafkaRefused),
        (errors.MessageSizeTooLargeError(), LaunchRefused),
        (errors.InvalidTimestampError(), LaunchRefused),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_error_may_pass_or_refuses_the_login_or_rejects_a_record(
    error: Exception, kind: type[Exception]
) -> None:
    assert type(translate_error(SETTINGS, "etl", error, 7)) is kind
