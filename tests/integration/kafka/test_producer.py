"""The producer against librdkafka's mock cluster: errors are transient or named, and no task is left running."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from deferrable_ops.exceptions import KafkaUnavailable
from deferrable_ops.upstreams.kafka.connection import ClusterSettings
from deferrable_ops.upstreams.kafka.producers import ProducerPool, Record, RecordPosition, open_producer_pool
from real_kafka import MockKafka

RECORDS = [Record(str(n).encode(), None, (("id", str(n).encode()),), 0) for n in range(3)]


@pytest.fixture
def kafka() -> Iterator[MockKafka]:
    """A cluster of one broker with the topic etl."""
    cluster = MockKafka()
    cluster.create_topic("etl")
    yield cluster
    cluster.close()


@pytest.fixture
async def producers(kafka: MockKafka) -> AsyncIterator[ProducerPool]:
    """The cluster's producer pool; no task of it may be left running."""
    yield await open_producer_pool(ClusterSettings("kafka_tests", kafka.servers, "PLAINTEXT", "", None, None))
    own = asyncio.current_task()
    deadline = time.monotonic() + 10
    while left := [task for task in asyncio.all_tasks() if task is not own]:
        assert time.monotonic() < deadline, f"tasks are left: {left}"
        await asyncio.wait(left, timeout=0.1)


@pytest.mark.parametrize("transactional_id", ["deferrable-ops-1", None])
async def test_records_are_appended_in_order(producers: ProducerPool, transactional_id: str | None) -> None:
    async with producers.open("etl", transactional_id) as producer:
        assert producer.partitions == {0}
        if transactional_id:
            await producer.begin()
        assert await producer.append(RECORDS) == [
            RecordPosition(0, 0),
            RecordPosition(0, 1),
            RecordPosition(0, 2),
        ]
        if transactional_id:
            await producer.commit()


@pytest.mark.parametrize("transactional_id", ["deferrable-ops-1", None])
async def test_unreachable_broker_is_a_transient_error(
    kafka: MockKafka, producers: ProducerPool, transactional_id: str | None
) -> None:
    kafka.broker_down()
    with pytest.raises(KafkaUnavailable, match="kafka_tests"):
        async with asyncio.timeout(10), producers.open("etl", transactional_id):
            pytest.fail("no broker answers")
    kafka.broker_up()
    async with producers.open("etl", transactional_id):
        pass


async def test_producer_waits_for_a_broker_to_return(kafka: MockKafka, producers: ProducerPool) -> None:
    async with producers.open("etl", "deferrable-ops-1") as producer:
        await producer.begin()
        await producer.append(RECORDS)
        kafka.broker_down()
        appending = asyncio.create_task(producer.append(RECORDS))
        await asyncio.sleep(0)
        kafka.broker_up()
        async with asyncio.timeout(30):
            await appending
            await producer.commit()


@pytest.mark.parametrize("while_", ["append", "commit"])
async def test_closing_a_producer_in_an_outage_leaves_no_retries(
    kafka: MockKafka,
    producers: ProducerPool,
    caplog: pytest.LogCaptureFixture,
    while_: str,
) -> None:
    impatient = ProducerPool(producers.settings, None, abort_timeout=0.5)
    caplog.set_level(logging.INFO, "aiokafka")

    async def publish() -> None:
        async with impatient.open("etl", "deferrable-ops-1") as producer:
            await producer.begin()
            if while_ == "commit":
                await producer.append(RECORDS)
            kafka.broker_down()
            began.set()
            await (producer.append(RECORDS) if while_ == "append" else producer.commit())

    began = asyncio.Event()
    publishing = asyncio.create_task(publish())
    await began.wait()
    await asyncio.wait([publishing], timeout=2)
    assert not publishing.done(), "no broker answers"
    publishing.cancel()
    async with asyncio.timeout(20):
        await asyncio.gather(publishing, return_exceptions=True)
    lines = [record for record in caplog.records if record.name.startswith("aiokafka")]
    assert len(lines) < 200, "it was retried without a pause"


async def test_at_most_eight_producers_are_open_at_once(producers: ProducerPool) -> None:
    open_now, full = 0, asyncio.Event()

    async def publish(number: int) -> None:
        nonlocal open_now
        async with producers.open("etl", f"deferrable-ops-{number}") as producer:
            open_now += 1
            assert open_now <= 8
            if open_now == 8:
                full.set()
            await asyncio.wait_for(full.wait(), 20)
            await producer.begin()
            await producer.append(RECORDS)
            await producer.commit()
            open_now -= 1

    await asyncio.gather(*map(publish, range(20)))
