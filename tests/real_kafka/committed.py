"""What counts of a topic, for those who read what is committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from confluent_kafka import Consumer, TopicPartition

if TYPE_CHECKING:
    from real_kafka.server import RealKafka


class Found(NamedTuple):
    """A record."""

    value: bytes | None
    key: bytes | None
    headers: dict[str, str]


def committed(server: RealKafka, topic: str) -> dict[int, list[Found]]:
    """Return all records of a topic that count, by partition, in their order."""
    settings = {"bootstrap.servers": server.servers, "group.id": "tests", "isolation.level": "read_committed"}
    found: dict[int, list[Found]] = {}
    for partition, (start, end) in server.ends(topic).items():
        found[partition] = []
        if start == end:
            continue
        consumer = Consumer({**settings, "enable.partition.eof": True, "log_level": 0})
        consumer.assign([TopicPartition(topic, partition, start)])
        while True:
            record = consumer.poll(30)
            assert record is not None, "the topic's end was not reached"
            if record.error():  # the end of the partition
                break
            pairs: Any = record.headers() or ()
            headers = {name: value.decode() for name, value in pairs}
            value: Any = record.value()
            key: Any = record.key()
            found[partition].append(Found(value, key, headers))
        consumer.close()
    return found
