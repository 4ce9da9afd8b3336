"""librdkafka's mock cluster, which speaks the real protocol on loopback and has the faults that it is told to have.

It answers every search for a time with "none", keeps about 5 MB of a partition, and knows no SASL.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import confluent_kafka
from confluent_kafka import Producer

FETCH, LIST_OFFSETS, METADATA = 1, 2, 3
"""Kinds of requests, as the protocol numbers them."""

OFFSET_OUT_OF_RANGE, UNKNOWN_TOPIC, LEADER_NOT_AVAILABLE, NOT_LEADER, TOPIC_AUTHORIZATION = 1, 3, 5, 6, 29
"""Errors, as the protocol numbers them."""


class MockKafka:
    """A mock cluster, which lives as long as the process or until it is closed."""

    def __init__(self, brokers: int = 1) -> None:
        self._library = _library()
        conf = self._library.rd_kafka_conf_new()
        message = ctypes.create_string_buffer(512)
        self._library.rd_kafka_conf_set(conf, b"log_level", b"0", message, len(message))
        self._handle = self._library.rd_kafka_new(0, conf, message, len(message))
        assert self._handle, message.value
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._handle, brokers)
        self.servers = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        self._producer = Producer({"bootstrap.servers": self.servers, "linger.ms": 0, "log_level": 0})

    def close(self) -> None:
        """Stop all brokers."""
        self._producer.flush(5)
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._handle)

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Create a topic; every broker has a copy of every partition."""
        self._check(self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1))

    def produce(self, topic: str, *values: bytes, partition: int = 0, **arguments: Any) -> None:
        """Append records, and return once they are there."""
        errors: list[Any] = []
        for value in values:
            self._producer.produce(
                topic,
                value=value,
                partition=partition,
                on_delivery=lambda error, _: errors.append(error) if error else None,
                **arguments,
            )
            self._producer.poll(0)
        assert self._producer.flush(20) == 0
        assert not errors, errors[0]

    def broker_down(self, number: int = 1) -> None:
        """Stop a broker: connections are refused, the data is kept."""
        self._check(self._library.rd_kafka_mock_broker_set_down(self._cluster, number))

    def broker_up(self, number: int = 1) -> None:
        """Start a broker again, on the same port."""
        self._check(self._library.rd_kafka_mock_broker_set_up(self._cluster, number))

    def fail_next(self, request: int, *errors: int) -> None:
        """Answer the next requests of a kind with these errors."""
        array = (ctypes.c_int * len(errors))(*errors)
        self._library.rd_kafka_mock_push_request_errors_array(self._cluster, request, len(errors), array)

    def set_topic_error(self, topic: str, error: int) -> None:
        """Answer every question for a topic's partitions with this error."""
        self._library.rd_kafka_mock_topic_set_error(self._cluster, topic.encode(), error)

    def set_leader(self, topic: str, partition: int, broker: int) -> None:
        """Give a partition another leader; -1: none."""
        self._check(
            self._library.rd_kafka_mock_partition_set_leader(self._cluster, topic.encode(), partition, broker)
        )

    def set_delay(self, milliseconds: int, broker: int = 1) -> None:
        """Let a broker take so long for each answer."""
        self._check(self._library.rd_kafka_mock_broker_set_rtt(self._cluster, broker, milliseconds))

    def _check(self, error: int) -> None:
        assert error == 0, f"librdkafka's error {error}"


def _library() -> Any:
    """Return the library that the wheel of confluent-kafka brings, with the types of what is used here."""
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    library = ctypes.CDLL(str(next(folder.glob("librdkafka-*.so*"))))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in [
        ("rd_kafka_conf_new", pointer, []),
        ("rd_kafka_conf_set", number, [pointer, text, text, text, ctypes.c_size_t]),
        ("rd_kafka_new", pointer, [number, pointer, text, ctypes.c_size_t]),
        ("rd_kafka_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_new", pointer, [pointer, number]),
        ("rd_kafka_mock_cluster_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_bootstraps", text, [pointer]),
        ("rd_kafka_mock_topic_create", number, [pointer, text, number, number]),
        ("rd_kafka_mock_topic_set_error", None, [pointer, text, number]),
        ("rd_kafka_mock_broker_set_down", number, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_up", number, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_rtt", number, [pointer, ctypes.c_int32, number]),
        ("rd_kafka_mock_partition_set_leader", number, [pointer, text, ctypes.c_int32, ctypes.c_int32]),
        (
            "rd_kafka_mock_push_request_errors_array",
            None,
            [pointer, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(number)],
        ),
    ]:
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
