"""The Kafka upstream against a real Apache Kafka, for what a mock cluster does not implement."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

import real_kafka
from deferrable_ops.events import KafkaEvent
from deferrable_ops.upstreams.kafka.connection import kafka_settings
from deferrable_ops.upstreams.kafka.consumers import ConsumerTimings, KafkaConsumers, open_consumers
from real_kafka import RealKafka, Stored

_numbers = itertools.count(1)
MINUTE = 60.0


@pytest.fixture
def topic(kafka_server: RealKafka) -> str:
    """A topic of one partition."""
    return new_topic(kafka_server)


@pytest.fixture
def stored() -> Stored:
    return Stored()


@pytest.fixture
def timings() -> ConsumerTimings:
    """The timings of the fixture `kafka`; a test gives others."""
    return ConsumerTimings()


@pytest.fixture
async def kafka(
    kafka_server: RealKafka, stored: Stored, timings: ConsumerTimings
) -> AsyncIterator[KafkaConsumers]:
    async with opened(stored, {"bootstrap.servers": kafka_server.servers}, timings) as kafka:
        yield kafka


@asynccontextmanager
async def opened(
    stored: Stored, extra: dict[str, Any], timings: ConsumerTimings | None = None
) -> AsyncIterator[KafkaConsumers]:
    connection: Any = SimpleNamespace(conn_id="logs", host=None, port=None, login=None, password=None)
    kafka = await open_consumers(
        kafka_settings(connection, extra), stored, timings=timings or ConsumerTimings()
    )
    try:
        yield kafka
    finally:
        await kafka.close()


class RecordingListener(real_kafka.RecordingListener):
    """Records the warnings and failures of a subscription."""

    def read(
        self,
        kafka: KafkaConsumers,
        topic: str,
        *,
        since: float = 0,
        match: Any = None,
        offsets: Mapping[str, int] | None = None,
        key: str = "w",
    ) -> AbstractContextManager[None]:
        return kafka.subscribe(
            key,
            [KafkaEvent(topic, match=match)],
            since=since,
            offsets=offsets,
            listener=self,
        )


def new_topic(server: RealKafka, partitions: int = 1, **config: str) -> str:
    name = f"logs-{next(_numbers)}"
    server.create_topic(name, partitions, **config)
    return name


def numbers(begin: int, end: int) -> list[bytes]:
    return [b'{"n": %d}' % number for number in range(begin, end)]


def found(stored: Stored) -> list[int]:
    return [payload["n"] for payload in stored.payloads]


def produce_at(server: RealKafka, topic: str, moment: float, *values: bytes) -> None:
    server.produce(topic, *values, timestamp=int(moment * 1_000))


async def test_wait_matches_records_since_its_start_and_new_ones(
    kafka_server: RealKafka, kafka: KafkaConsumers, topic: str, stored: Stored
) -> None:
    now = time.time()
    for age in (60, 30, 20, 5):
        produce_at(kafka_server, topic, now - age * MINUTE, b'{"n": %d}' % age)
    with RecordingListener().read(kafka, topic, since=now - 25 * MINUTE):
        await stored.until_count(2)
        produce_at(kafka_server, topic, now, b'{"n": 0}')
        await stored.until_count(3)

    assert found(stored) == [20, 5, 0]
    assert stored.resume_offsets("w") == {"0": 5}


async def test_search_starts_before_since_because_clocks_differ(
    kafka_server: RealKafka, kafka: KafkaConsumers, topic: str, stored: Stored
) -> None:
    now = time.time()
    produce_at(kafka_server, topic, now - 60 * MINUTE, b'{"n": 1}')
    # Written in this order: a producer whose clock is 4 minutes ahead, then one whose clock is right.
    produce_at(kafka_server, topic, now - 6 * MINUTE, b'{"n": 2}')
    produce_at(kafka_server, topic, now - 10 * MINUTE, b'{"n": 3}')
    with RecordingListener().read(kafka, topic, since=now - 10.5 * MINUTE):
        await stored.until_count(2)

    assert found(stored) == [2, 3]


async def test_since_newer_than_all_records_starts_at_the_end(
    kafka_server: RealKafka, kafka: KafkaConsumers, topic: str, stored: Stored
) -> None:
    produce_at(kafka_server, topic, time.time() - 60 * MINUTE, *numbers(0, 3))
    with RecordingListener().read(kafka, topic, since=time.time()):
        # Let the subscription start before the next record. A later start finds it too.
        await asyncio.sleep(0.5)
        kafka_server.produce(topic, b'{"n": 3}')
        await stored.until_count(1)

    assert found(stored) == [3]


async def test_no_record_is_lost_or_repeated_while_subscriptions_start(
    kafka_server: RealKafka, kafka: KafkaConsumers, stored: Stored
) -> None:
    topic = new_topic(kafka_server, partitions=3)
    total, began = 12_000, time.time() - 1
    done = threading.Event()

    def produce() -> None:
        producer = kafka_server.producer(linger_ms=2)
        for number in range(total):
            producer.produce(topic, json.dumps({"n": number, "w": number % 50}), partition=number % 3)
            producer.poll(0)
            if number % 100 == 0:
                time.sleep(0.005)
        producer.flush(30)
        done.set()

    threading.Thread(target=produce).start()
    with ExitStack() as subscriptions:
        for number in range(50):
            subscription = RecordingListener().read(
                kafka, topic, since=began, match={"w": number}, key=f"w{number}"
            )
            subscriptions.enter_context(subscription)
            await asyncio.sleep(0.02)
        await stored.until(done.is_set, "the producer", 60)
        await stored.until_count(total, 60)

    events = [event for batch in stored.batches for event in batch.events]
    assert len({event.dedupe_key for event in events}) == len(events) == total
    for number in range(50):
        mine = [event for event in events if event.payload["w"] == number]
        for partition in range(3):
            offsets = [e.attributes["metadata"]["offset"] for e in mine if e.payload["n"] % 3 == partition]
            assert offsets == sorted(offsets), "the order within a partition"


async def test_reopened_wait_resumes_at_its_offsets(
    kafka_server: RealKafka, topic: str, stored: Stored
) -> None:
    extra = {"bootstrap.servers": kafka_server.servers}
    offsets: dict[str, int] | None = None
    for round_ in range(3):
        kafka_server.produce(topic, *numbers(round_ * 10, round_ * 10 + 10))
        async with opened(stored, extra) as kafka:
            with RecordingListener().read(kafka, topic, offsets=offsets):
                await stored.until_count(round_ * 10 + 10)
        offsets = stored.resume_offsets("w")

    assert found(stored) == list(range(30)), "no record is read twice"


async def test_transactions_count_when_they_are_committed(
    kafka_server: RealKafka, kafka: KafkaConsumers, topic: str, stored: Stored
) -> None:
    producer = kafka_server.producer(transactional_id="t")
    producer.init_transactions(30)
    with RecordingListener().read(kafka, topic):
        for number, is_kept in enumerate([True, False, True]):
            producer.begin_transaction()
            producer.produce(topic, b'{"n": %d}' % number)
            producer.flush(30)
            if is_kept:
                producer.commit_transaction(30)
            else:
                producer.abort_transaction(30)
        await stored.until_count(2)

    assert found(stored) == [0, 2]


async def test_subscription_catches_up_past_transaction_markers(
    kafka_server: RealKafka, kafka: KafkaConsumers, topic: str, stored: Stored
) -> None:
    producer = kafka_server.producer(transactional_id="marks")
    producer.init_transactions(30)
    for commit in (True, False):
        producer.begin_transaction()
        producer.produce(topic, b'{"n": 1}')
        producer.flush(30)
        if commit:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)
    with RecordingListener().read(kafka, topic, match={"n": 2}):
        kafka_server.produce(topic, b'{"n": 2}')
        await stored.until_count(1)

        assert stored.resume_offsets("w") == {"0": kafka_server.ends(topic)[0][1]}


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd", "snappy"])
async def test_compressed_records_are_read(
    kafka_server: RealKafka, kafka: KafkaConsumers, topic: str, stored: Stored, codec: str
) -> None:
    producer = kafka_server.producer(compression_type=codec, linger_ms=50)
    for value in numbers(0, 200):
        producer.produce(topic, value)
    producer.flush(30)
    with RecordingListener().read(kafka, topic):
        await stored.until_count(200)

    assert found(stored) == list(range(200))


async def test_deleted_records_cause_a_warning(
    kafka_server: RealKafka, kafka: KafkaConsumers, topic: str, stored: Stored
) -> None:
    kafka_server.produce(topic, *numbers(0, 10))
    kafka_server.delete_records(topic, 6)
    listener, reopened, late = RecordingListener(), RecordingListener(), RecordingListener()
    with (
        listener.read(kafka, topic, since=time.time() - 60 * MINUTE),
        reopened.read(kafka, topic, offsets={"0": 2}, key="x"),
        late.read(kafka, topic, since=time.time(), key="y"),
    ):
        await stored.until_count(4)
        await stored.until(lambda: bool(listener.warnings and reopened.warnings), "the warnings")

    assert sorted(set(found(stored))) == [6, 7, 8, 9]
    assert "may be deleted already" in listener.warnings[0]
    assert "from offset 2 to 6 were deleted" in reopened.warnings[0]
    assert late.warnings == []
    assert not listener.failures + reopened.failures


async def test_compacted_topic_is_read(
    kafka_server: RealKafka, kafka: KafkaConsumers, stored: Stored
) -> None:
    topic = new_topic(
        kafka_server,
        cleanup_policy="compact",
        segment_ms="100",
        min_cleanable_dirty_ratio="0.01",
        max_compaction_lag_ms="100",
    )
    for number in range(10):
        kafka_server.produce(topic, b'{"n": %d}' % number, key=b"one")
        # One segment for each record.
        await asyncio.sleep(0.12)
    kafka_server.produce(topic, None, key=b"two")
    with RecordingListener().read(kafka, topic):
        await stored.until(lambda: None in stored.payloads, "the tombstone")
        kafka_server.produce(topic, b'{"n": 10}', key=b"one")
        await stored.until(lambda: {"n": 10} in stored.payloads, "what came last")

    assert {"n": 9} in stored.payloads


@pytest.mark.parametrize("timings", [ConsumerTimings(metadata_interval=1.0, discovery_interval=0.5)])
async def test_new_partitions_are_read_from_their_beginning(
    kafka_server: RealKafka, kafka: KafkaConsumers, topic: str, stored: Stored
) -> None:
    with RecordingListener().read(kafka, topic):
        kafka_server.produce(topic, b'{"n": 0}')
        await stored.until_count(1)
        kafka_server.add_partitions(topic, 3)
        await asyncio.to_thread(_produce_to_new_partition, kafka_server, topic, 2)
        await stored.until_count(2, 60)

    assert found(stored) == [0, 1]
    assert stored.resume_offsets("w") == {"0": 1, "1": 0, "2": 1}


async def test_recreated_topic_is_read_again(kafka_server: RealKafka, topic: str, stored: Stored) -> None:
    kafka_server.produce(topic, *numbers(0, 10))
    listener = RecordingListener()
    async with opened(stored, {"bootstrap.servers": kafka_server.servers}) as kafka:
        with listener.read(kafka, topic, offsets={"0": 1_000}):
            await stored.until_count(10)

    assert found(stored) == list(range(10))
    assert "recreated" in listener.warnings[0]


async def test_reading_continues_after_a_broker_restart(
    kafka_server: RealKafka, kafka: KafkaConsumers, topic: str, stored: Stored
) -> None:
    listener = RecordingListener()
    with listener.read(kafka, topic):
        kafka_server.produce(topic, *numbers(0, 10))
        await stored.until_count(10)
        await asyncio.to_thread(kafka_server.kill)
        await asyncio.to_thread(kafka_server.start)
        await asyncio.to_thread(kafka_server.produce, topic, *numbers(10, 20))
        await stored.until_count(20, 60)

    assert found(stored) == list(range(20))
    assert listener.failures == []


def login(server: RealKafka, mechanism: str = "SCRAM-SHA-256", **changes: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": server.sasl_servers,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": mechanism,
        "sasl.username": server.user,
        "sasl.password": server.password,
        **{name.replace("_", "."): value for name, value in changes.items()},
    }


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
async def test_users_may_log_in(
    kafka_server: RealKafka, topic: str, stored: Stored, mechanism: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    kafka_server.produce(topic, b'{"n": 1}')
    async with opened(stored, login(kafka_server, mechanism)) as kafka:
        with RecordingListener().read(kafka, topic):
            await stored.until_count(1)

    assert kafka_server.password not in caplog.text


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_refused_credentials_fail_the_waits(
    kafka_server: RealKafka, topic: str, stored: Stored, mechanism: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    listener = RecordingListener()
    async with opened(stored, login(kafka_server, mechanism, sasl_password="rabbit-hole")) as kafka:
        with listener.read(kafka, topic):
            await stored.until(lambda: bool(listener.failures), "the failure")

    assert kafka_server.sasl_servers in listener.failures[0]
    assert "sasl.password" in listener.failures[0]
    assert "rabbit-hole" not in listener.failures[0] + caplog.text


async def test_tls_connection_verifies_the_broker(
    kafka_server: RealKafka, topic: str, stored: Stored
) -> None:
    kafka_server.produce(topic, b'{"n": 1}')
    extra = login(
        kafka_server, "PLAIN", security_protocol="SASL_SSL", bootstrap_servers=kafka_server.tls_servers
    )
    listener = RecordingListener()
    async with opened(stored, extra) as kafka:
        with listener.read(kafka, topic):
            await stored.until(lambda: bool(listener.failures), "the failure")
    assert "ssl.ca.location" in listener.failures[0]

    async with opened(stored, {**extra, "ssl.ca.location": str(kafka_server.authority)}) as kafka:
        with RecordingListener().read(kafka, topic):
            await stored.until_count(1)


@pytest.mark.parametrize("timings", [ConsumerTimings(missing_topic_timeout=1.0)])
async def test_absent_topic_fails_its_waits(kafka: KafkaConsumers, stored: Stored) -> None:
    listener = RecordingListener()
    with listener.read(kafka, "absent"):
        await stored.until(lambda: bool(listener.failures), "the failure")

    assert "there is no topic 'absent'" in listener.failures[0]


async def test_unauthorized_topic_fails_its_own_waits_only(
    kafka_server: RealKafka, topic: str, stored: Stored
) -> None:
    secret = new_topic(kafka_server)
    principal, deny = f"User:{kafka_server.user}", AclPermissionType.DENY
    for operation in (AclOperation.READ, AclOperation.DESCRIBE):
        acl = AclBinding(
            ResourceType.TOPIC, secret, ResourcePatternType.LITERAL, principal, "*", operation, deny
        )
        for future in kafka_server.admin.create_acls([acl]).values():
            future.result(30)
    kafka_server.produce(topic, b'{"n": 1}')
    listener = RecordingListener()
    async with opened(stored, login(kafka_server)) as kafka:
        with listener.read(kafka, secret), RecordingListener().read(kafka, topic, key="x"):
            await stored.until(lambda: bool(listener.failures), "the failure")
            await stored.until_count(1)

    assert f"read the topic '{secret}'" in listener.failures[0]


def _produce_to_new_partition(server: RealKafka, topic: str, partition: int) -> None:
    """Produce to a new partition that the producer may not know yet."""
    producer = server.producer(topic_metadata_refresh_interval_ms="500")
    producer.produce(topic, b'{"n": 1}', partition=partition)
    producer.flush(30)
