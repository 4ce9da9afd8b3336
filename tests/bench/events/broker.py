"""A real Kafka, and the records that are sent to it."""

from __future__ import annotations

import atexit
import time
from collections.abc import Iterable
from functools import cache
from typing import Final

from real_kafka import RealKafka

BACK_SECONDS: Final = 600.0
_BATCH_SECONDS: Final = 0.01
_DONE_SECONDS: Final = 60.0


@cache
def kafka() -> RealKafka:
    """Return the Kafka of this run, which is started at the first call and removed at the end."""
    server = RealKafka()
    atexit.register(server.remove)
    server.start()
    return server


def port_of(server: RealKafka) -> int:
    """Return where it listens."""
    return int(server.servers.rpartition(":")[2])


def record(wait: str) -> bytes:
    """Return the value of the record that a wait is for; with another name, of one that nobody waits for."""
    return b'{"db": "db0", "table": "orders", "wait": "%s", "rows": 120000, "state": "done"}' % wait.encode()


def write_past(server: RealKafka, topic: str, waits: list[str], others: int) -> None:
    """Write what a topic was sent in the last 10 minutes: the records of waits, spread among others."""
    producer = server.producer(linger_ms=20)
    started = time.time() - BACK_SECONDS
    step, place = max(1, others // len(waits)), iter(waits)
    for number in range(others):
        sent_at = int(1000 * (started + BACK_SECONDS * number / others))
        producer.produce(topic, record(f"other_{number}"), timestamp=sent_at)
        if number % step == step - 1 and (wait := next(place, None)) is not None:
            producer.produce(topic, record(wait), timestamp=sent_at)
        producer.poll(0)
    assert producer.flush(_DONE_SECONDS) == 0
    assert next(place, None) is None, "every wait has its record"


def send_each(server: RealKafka, topic: str, waits: Iterable[str], per_second: float) -> dict[str, float]:
    """Send each wait its record at a steady rate, and return when it was given to the producer."""
    (sent,) = send_in_turns(server, [topic], waits, per_second)
    return sent


def send_in_turns(
    server: RealKafka, topics: list[str], waits: Iterable[str], per_second: float
) -> list[dict[str, float]]:
    """Do so on several topics, one record here and one there, so that what disturbs the machine disturbs all.

    :param per_second: records to each topic.
    """
    producer, sent = server.producer(linger_ms=0), [dict[str, float]() for _ in topics]
    for wait in waits:
        for times, topic in zip(sent, topics, strict=True):
            times[wait] = time.monotonic()
            producer.produce(topic, record(wait))
            producer.poll(0)
            time.sleep(max(0.0, times[wait] + 1 / per_second / len(topics) - time.monotonic()))
    assert producer.flush(_DONE_SECONDS) == 0
    return sent


def send_others(server: RealKafka, topic: str, per_second: float, seconds: float) -> int:
    """Send records that nobody waits for at a steady rate, and return how many."""
    producer = server.producer(linger_ms=5, queue_buffering_max_messages=1_000_000)
    started, sent = time.monotonic(), 0
    while (passed := time.monotonic() - started) < seconds:
        for number in range(sent, int(passed * per_second)):
            producer.produce(topic, record(f"other_{number}"))
            sent = number + 1
        producer.poll(0)
        time.sleep(_BATCH_SECONDS)
    assert producer.flush(_DONE_SECONDS) == 0
    return sent
