"""The Kafka upstream against librdkafka's mock cluster, which can inject faults."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from types import SimpleNamespace

import psutil
import pytest
from confluent_kafka import Producer

from deferrable_ops.events import KafkaEvent
from deferrable_ops.exceptions import InboxUnavailable
from deferrable_ops.upstreams.kafka.connection import ClusterSettings, kafka_settings
from deferrable_ops.upstreams.kafka.consumers import ConsumerTimings, KafkaConsumers, open_consumers
from real_kafka import MockKafka, RecordingListener, Stored
from real_kafka.mock import (
    FETCH,
    LEADER_NOT_AVAILABLE,
    LIST_OFFSETS,
    NOT_LEADER,
    TOPIC_AUTHORIZATION,
    UNKNOWN_TOPIC,
)

ALL = KafkaEvent("logs")
BEGINNING = {"0": 0}


@pytest.fixture
def mock() -> Iterator[MockKafka]:
    mock = MockKafka(brokers=3)
    mock.create_topic("logs")
    yield mock
    mock.close()


@pytest.fixture
def stored() -> Stored:
    return Stored()


@pytest.fixture
def timings() -> ConsumerTimings:
    """The timings of the fixture `kafka`; a test gives others."""
    return ConsumerTimings()


@pytest.fixture
async def kafka(mock: MockKafka, stored: Stored, timings: ConsumerTimings) -> AsyncIterator[KafkaConsumers]:
    kafka = await open_consumers(settings(mock.servers), stored, timings=timings)
    yield kafka
    await kafka.close()


def settings(servers: str) -> ClusterSettings:
    connection = SimpleNamespace(conn_id="logs", host=None, port=None, login=None, password=None)
    return kafka_settings(connection, {"bootstrap.servers": servers})


def read(
    kafka: KafkaConsumers,
    key: str,
    event: KafkaEvent,
    *,
    since: float,
    offsets: Mapping[str, int] | None = None,
    failures: list[str] | None = None,
) -> AbstractContextManager[None]:
    listener = RecordingListener()
    listener.failures = [] if failures is None else failures
    return kafka.subscribe(key, [event], since=since, offsets=offsets, listener=listener)


def numbers(begin: int, end: int) -> list[bytes]:
    return [b'{"n": %d}' % number for number in range(begin, end)]


def found(stored: Stored) -> list[int]:
    return [payload["n"] for payload in stored.payloads]


async def test_record_is_stored_with_its_resume_offset(
    kafka: KafkaConsumers, mock: MockKafka, stored: Stored
) -> None:
    mock.produce("logs", *numbers(0, 3))
    with read(kafka, "w", KafkaEvent("logs", match={"n": 4}), since=0, offsets={"0": 3}):
        mock.produce("logs", *numbers(3, 6))
        await stored.until_count(1)

    assert found(stored) == [4]
    assert stored.resume_offsets("w")["0"] in (5, 6)
    assert stored.threads == {threading.get_ident()}, "stored on the event loop of the waits"


async def test_subscription_resumes_at_its_offsets_and_switches_to_live(
    kafka: KafkaConsumers, mock: MockKafka, stored: Stored
) -> None:
    mock.produce("logs", *numbers(0, 2_000))
    with (
        read(kafka, "other", KafkaEvent("logs", match={"n": -1}), since=time.time()),
        read(kafka, "w", ALL, since=0, offsets={"0": 500}),
    ):
        for begin in range(2_000, 4_000, 100):
            await asyncio.to_thread(mock.produce, "logs", *numbers(begin, begin + 100))
        await stored.until_count(3_500)

    assert found(stored) == list(range(500, 4_000)), "no gap, no repetition, in order"
    assert stored.resume_offsets("w") == {"0": 4_000}


async def test_each_wait_starts_at_its_own_offset(
    kafka: KafkaConsumers, mock: MockKafka, stored: Stored
) -> None:
    mock.produce("logs", *numbers(0, 1_000))
    with ExitStack() as subscriptions:
        for begin in range(0, 1_000, 100):
            event, offsets = KafkaEvent("logs", match={"n": begin + 50}), {"0": begin}
            subscriptions.enter_context(read(kafka, f"w{begin}", event, since=0, offsets=offsets))
        await stored.until_count(10)
        for begin in range(0, 1_000, 100):
            mock.produce("logs", *numbers(begin + 50, begin + 51))
        await stored.until_count(20)

    assert sorted(found(stored)) == sorted([*range(50, 1_000, 100)] * 2)


async def test_record_older_than_since_does_not_match(
    kafka: KafkaConsumers, mock: MockKafka, stored: Stored
) -> None:
    now = time.time()
    mock.produce("logs", b'{"n": 1}', timestamp=int((now - 60) * 1_000))
    mock.produce("logs", b'{"n": 2}', timestamp=int((now - 20) * 1_000))
    with read(kafka, "w", ALL, since=now - 40, offsets=BEGINNING):
        await stored.until_count(1)

    assert found(stored) == [2]


async def test_tombstones_keys_headers_and_text_arrive_unchanged(
    kafka: KafkaConsumers, mock: MockKafka, stored: Stored
) -> None:
    with read(kafka, "w", ALL, since=0, offsets=BEGINNING):
        mock.produce("logs", b"no json", key=b"k", headers=[("trace", b"1"), ("none", None)])
        mock.produce("logs", None, key=b"gone")  # type: ignore[arg-type]
        await stored.until_count(2)
    text, tombstone = (event for batch in stored.batches for event in batch.events)

    assert text.payload == "no json"
    assert text.attributes["key"] == "k"
    assert text.attributes["headers"] == {"trace": "1", "none": None}
    assert tombstone.payload is None
    assert tombstone.attributes["key"] == "gone"


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd", "snappy"])
async def test_compressed_records_are_read(
    kafka: KafkaConsumers, mock: MockKafka, stored: Stored, codec: str
) -> None:
    producer = Producer({"bootstrap.servers": mock.servers, "compression.type": codec, "linger.ms": 50})
    for value in numbers(0, 50):
        producer.produce("logs", value)
    producer.flush(20)
    with read(kafka, "w", ALL, since=0, offsets=BEGINNING):
        await stored.until_count(50)

    assert found(stored) == list(range(50))


async def test_reading_continues_when_brokers_return(
    kafka: KafkaConsumers, mock: MockKafka, stored: Stored, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with read(kafka, "w", ALL, since=0, offsets=BEGINNING):
        mock.produce("logs", *numbers(0, 1))
        await stored.until_count(1)
        caplog.clear()
        for broker in (1, 2, 3):
            mock.broker_down(broker)
        # A fixed time: the number of attempts in it is counted.
        await asyncio.sleep(3)
        lines = len(caplog.records)
        for broker in (1, 2, 3):
            mock.broker_up(broker)
        await asyncio.to_thread(mock.produce, "logs", *numbers(1, 10))
        await stored.until_count(10)

    assert found(stored) == list(range(10))
    assert 0 < lines < 150, "aiokafka alone logs 5,165 lines"


async def test_unavailable_cluster_is_waited_for(mock: MockKafka, stored: Stored) -> None:
    mock.produce("logs", *numbers(0, 1))
    for broker in (1, 2, 3):
        mock.broker_down(broker)
    kafka = await open_consumers(settings(mock.servers), stored)
    failures: list[str] = []
    with read(kafka, "w", ALL, since=0, offsets=BEGINNING, failures=failures):
        # A fixed time: no failure may occur in it.
        await asyncio.sleep(1.5)
        for broker in (1, 2, 3):
            mock.broker_up(broker)
        await stored.until_count(1)
    await kafka.close()

    assert failures == []


async def test_leader_changes_are_followed(kafka: KafkaConsumers, mock: MockKafka, stored: Stored) -> None:
    with read(kafka, "w", ALL, since=0, offsets=BEGINNING):
        for round_ in range(6):
            mock.set_leader("logs", 0, round_ % 3 + 1)
            await asyncio.to_thread(mock.produce, "logs", *numbers(round_ * 10, round_ * 10 + 10))
            await stored.until_count(round_ * 10 + 10)

    assert found(stored) == list(range(60))


async def test_broker_errors_lose_no_record_and_fail_no_wait(
    kafka: KafkaConsumers, mock: MockKafka, stored: Stored
) -> None:
    mock.produce("logs", *numbers(0, 100))
    mock.fail_next(LIST_OFFSETS, LEADER_NOT_AVAILABLE, NOT_LEADER, LEADER_NOT_AVAILABLE)
    mock.fail_next(FETCH, *[NOT_LEADER, LEADER_NOT_AVAILABLE] * 2)
    with read(kafka, "w", ALL, since=0, offsets=BEGINNING):
        await stored.until_count(100)
        mock.fail_next(FETCH, *[LEADER_NOT_AVAILABLE, NOT_LEADER] * 2)
        mock.produce("logs", *numbers(100, 200))
        await stored.until_count(200)

    assert found(stored) == list(range(200))


async def test_unauthorized_topic_fails_its_own_waits_only(
    kafka: KafkaConsumers, mock: MockKafka, stored: Stored
) -> None:
    mock.create_topic("secret")
    mock.set_topic_error("secret", TOPIC_AUTHORIZATION)
    failures: list[str] = []
    with (
        read(kafka, "w", ALL, since=0, offsets=BEGINNING),
        read(kafka, "x", KafkaEvent("secret"), since=0, failures=failures),
    ):
        await stored.until(lambda: bool(failures), "the failure")
        mock.produce("logs", *numbers(0, 1))
        await stored.until_count(1)

    assert "'secret'" in failures[0]


@pytest.mark.parametrize("timings", [ConsumerTimings(missing_topic_timeout=1.0)])
async def test_missing_topic_fails_its_waits(kafka: KafkaConsumers, mock: MockKafka, stored: Stored) -> None:
    mock.create_topic("absent")
    mock.set_topic_error("absent", UNKNOWN_TOPIC)
    failures: list[str] = []
    with read(kafka, "x", KafkaEvent("absent"), since=0, failures=failures):
        await stored.until(lambda: bool(failures), "the failure")

    assert "there is no topic 'absent'" in failures[0]


async def test_reading_pauses_while_storing_fails(
    kafka: KafkaConsumers, mock: MockKafka, stored: Stored
) -> None:
    stored.problem = InboxUnavailable("no database")
    with read(kafka, "w", ALL, since=0, offsets=BEGINNING):
        mock.produce("logs", *numbers(0, 10))
        await stored.until(lambda: stored.tries >= 3, "three tries")
        mock.produce("logs", *numbers(10, 20))
        stored.problem = None
        await stored.until_count(20)

    assert found(stored) == list(range(20))


async def test_interrupted_waits_lose_and_repeat_no_record(mock: MockKafka, stored: Stored) -> None:
    timings = ConsumerTimings(switch_interval=0.01)
    mock.create_topic("parts", 3)
    moments, produced = random.Random(4), 0
    offsets: dict[str, dict[str, int]] = {"w0": {}, "w1": {}}

    def produce(count: int) -> None:
        nonlocal produced
        for number in range(produced, produced + count):
            mock.produce("parts", b'{"n": %d, "w": %d}' % (number, number % 2), partition=number % 3)
        produced += count

    for round_ in range(12):
        produce(300)
        kafka = await open_consumers(settings(mock.servers), stored, timings=timings)
        with ExitStack() as subscriptions:
            for number in range(2):
                event = KafkaEvent("parts", match={"w": number})
                subscriptions.enter_context(
                    read(kafka, f"w{number}", event, since=0, offsets=offsets[f"w{number}"])
                )
                await asyncio.sleep(moments.uniform(0, 0.03))
            if round_ == 11:
                # Constant switching makes this slow: 13 s on a busy machine.
                await stored.until_count(produced, 90)
            else:
                await asyncio.sleep(moments.uniform(0, 0.15))
            await kafka.close()
        offsets = {key: stored.resume_offsets(key) for key in offsets}

    assert sorted(found(stored)) == list(range(produced))
    for place in range(6):
        of_place = [number for number in found(stored) if number % 6 == place]
        assert of_place == sorted(of_place), "the order within a partition, for each wait"


async def test_hundreds_of_waits_share_two_consumers_and_one_thread(
    kafka: KafkaConsumers, mock: MockKafka, stored: Stored
) -> None:
    mock.produce("logs", *numbers(0, 300))
    threads = threading.active_count()
    with ExitStack() as subscriptions:
        for number in range(300):
            event = KafkaEvent("logs", match={"n": number})
            subscriptions.enter_context(read(kafka, f"w{number}", event, since=0, offsets=BEGINNING))
        await stored.until_count(300)
        ports = {int(server.rpartition(":")[2]) for server in mock.servers.split(",")}
        connections = [
            one for one in psutil.Process().net_connections("tcp") if one.raddr and one.raddr.port in ports
        ]
        # One connection for each broker, and the bootstrap connection.
        of_producer = 4

        assert threading.active_count() <= threads
        assert len(connections) <= 2 * 3 + of_producer

    assert sorted(found(stored)) == list(range(300))


async def test_closing_ends_the_thread(mock: MockKafka, stored: Stored) -> None:
    kafka = await open_consumers(settings(mock.servers), stored)
    with read(kafka, "w", ALL, since=0, offsets=BEGINNING):
        mock.produce("logs", *numbers(0, 1))
        await stored.until_count(1)
    await kafka.close()

    assert not [thread for thread in threading.enumerate() if thread.name == "deferrable-ops kafka"]
