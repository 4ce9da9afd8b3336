"""Publishing to a real Apache Kafka: each message exactly once, also after kills."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)
from integration.inboxes import open_inbox
from unit.triggers.events.support import payloads, value_of, waiting_for_events
from unit.triggers.support import Run, Runs, new_attempt

from deferrable_ops.events import KafkaEvent, KafkaMessage
from deferrable_ops.inbox.waits.launches import Claim, Launches
from deferrable_ops.operators.events import PublishEventOperator
from deferrable_ops.outcome import Failure
from deferrable_ops.testing import running
from deferrable_ops.triggers.events.publish.trigger import PublishEventTrigger
from deferrable_ops.upstreams.kafka import transactional_producer
from deferrable_ops.upstreams.kafka.connection import ClusterSettings
from deferrable_ops.upstreams.kafka.producers import Record, open_producer_pool
from real_airflow.ports import free_port
from real_kafka import RealKafka
from real_kafka.committed import committed

_numbers = itertools.count(1)
ID = "deferrable-ops-id"


@pytest.fixture
def topic(kafka_server: RealKafka, monkeypatch: pytest.MonkeyPatch) -> str:
    """A topic of two partitions, on the cluster of the connection kafka_default."""
    connect(monkeypatch, {"bootstrap.servers": kafka_server.servers})
    name = f"published-{next(_numbers)}"
    kafka_server.create_topic(name, 2)
    return name


def connect(monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any]) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps({"conn_type": "kafka", "extra": extra}))


def values(server: RealKafka, topic: str) -> list[Any]:
    """Return the committed payloads, those of one partition in order."""
    return [json.loads(value) for records in committed(server, topic).values() for value, *_ in records]


async def test_message_releases_a_wait_of_another_task(
    kafka_server: RealKafka, topic: str, runs: Runs
) -> None:
    wait = runs.start(waiting_for_events({"loaded": KafkaEvent(topic, match={"table": "orders"})}))
    publish = PublishEventTrigger(kafka=topic, payload={"table": "orders", "day": "2026-11-21"})
    value = await value_of(runs.start(publish))
    assert value["count"] == 1
    assert value["topic"] == topic
    assert payloads(await value_of(wait))["loaded"] == {"table": "orders", "day": "2026-11-21"}


async def test_operator_publishes_keys_headers_texts_and_tombstones(
    kafka_server: RealKafka, topic: str
) -> None:
    messages = [
        KafkaMessage("plain text", partition=1),
        KafkaMessage({"é": [1, None]}, key="k", headers={"trace": "7"}, partition=1),
        KafkaMessage(None, key="gone", partition=1),
        "without anything",
        "by the common key",
    ]
    operator = PublishEventOperator(task_id="tell", kafka=topic, messages=messages[:3])
    async with running(operator) as task, asyncio.timeout(30):
        wait_id = (await task.wait()).id
        value = (await task.outcome()).value
    assert value["partitions"] == {"1": {"count": 3, "first_offset": 0, "last_offset": 2}}
    assert committed(kafka_server, topic)[1] == [
        (b"plain text", None, {ID: f"{wait_id}/0"}),
        ('{"é":[1,null]}'.encode(), b"k", {"trace": "7", ID: f"{wait_id}/1"}),
        (None, b"gone", {ID: f"{wait_id}/2"}),
    ]
    with_key = PublishEventOperator(task_id="more", kafka=topic, messages=messages[3:], key="all")
    async with running(with_key) as task, asyncio.timeout(30):
        await task.outcome()
    keys = [key for records in committed(kafka_server, topic).values() for _, key, _ in records]
    assert keys.count(b"all") == 2


@pytest.mark.parametrize("transactional", [True, False])
async def test_many_messages_keep_their_order(
    kafka_server: RealKafka, topic: str, runs: Runs, transactional: bool
) -> None:
    messages = [{"n": n, "text": "x" * 500} for n in range(2_000)]
    publish = PublishEventTrigger(kafka=topic, messages=messages, transactional=transactional)
    value = await value_of(runs.start(publish))
    assert value["count"] == 2_000
    found = committed(kafka_server, topic)
    assert sorted(len(records) for records in found.values()) == [0, 2_000]
    assert values(kafka_server, topic) == messages


class Interruptions:
    """Kills a run before or after its n-th call to Kafka or the inbox."""

    def __init__(self, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        self._runs = runs
        self.reached = asyncio.Event()
        producer = transactional_producer.Producer
        for name in ("start", "begin", "append", "commit", "stop"):
            monkeypatch.setattr(producer, name, self._stopping(getattr(producer, name)))
        waits = runs.inbox.waits
        monkeypatch.setattr(waits, "save_progress", self._stopping(waits.save_progress))
        monkeypatch.setattr(waits, "settle", self._stopping(waits.settle))
        monkeypatch.setattr(Claim, "check", self._stopping(Claim.check))
        monkeypatch.setattr(Claim, "record", self._stopping(Claim.record))

    def _stopping(self, step: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def stop_around(*arguments: Any, **named: Any) -> Any:
            await self._hang_if_it_is_time()
            result = await step(*arguments, **named)
            await self._hang_if_it_is_time()
            return result

        return stop_around

    async def _hang_if_it_is_time(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.reached.set()
            await asyncio.Event().wait()

    async def interrupt(self, run: Run, at: int) -> bool:
        """Kill a run when it reaches a step; return False if it ended before."""
        self.left = at
        self.reached.clear()
        reached = asyncio.create_task(self.reached.wait())
        await asyncio.wait([reached, run.task], return_when=asyncio.FIRST_COMPLETED)
        was_reached = self.reached.is_set()
        # Calls during the kill are not interrupted.
        self.left = -1
        reached.cancel()
        await run.kill_process() if was_reached else await run.task
        return was_reached


async def test_each_message_is_published_once_after_a_kill_at_any_step(
    kafka_server: RealKafka, topic: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    interruptions = Interruptions(runs, monkeypatch)
    expected: list[Any] = []
    for step in itertools.count(1):
        messages = [{"step": step, "n": n} for n in range(3)]
        publish = PublishEventTrigger(kafka=topic, messages=messages)
        run = runs.start(publish)
        was_killed = await interruptions.interrupt(run, step)
        value = await value_of(runs.start(publish, run.attempt))
        assert value["count"] == 3
        expected += messages
        if not was_killed:
            break
    assert step > 15, "the run was hardly interrupted"
    assert sorted(values(kafka_server, topic), key=json.dumps) == sorted(expected, key=json.dumps)


async def test_without_a_transaction_repeated_messages_have_the_same_id(
    kafka_server: RealKafka, topic: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    interruptions = Interruptions(runs, monkeypatch)
    messages = list(range(250))
    publish = PublishEventTrigger(kafka=topic, messages=messages, transactional=False)
    run = runs.start(publish)
    # The second hundred is appended, but its progress is not stored yet.
    assert await interruptions.interrupt(run, 12)
    value = await value_of(runs.start(publish, run.attempt))
    assert value["count"] == 250
    records = [record for found in committed(kafka_server, topic).values() for record in found]
    assert len(records) == 350
    by_id = {headers[ID]: json.loads(value) for value, _, headers in records}
    assert by_id == {f"{run.attempt.wait_id}/{n}": n for n in messages}


async def test_two_triggerers_at_once_publish_once(
    kafka_server: RealKafka, topic: str, runs: Runs, tmp_path: Path
) -> None:
    messages = list(range(500))
    publish = PublishEventTrigger(kafka=topic, messages=messages)
    attempt = new_attempt()

    async def other_triggerer() -> Any:
        inbox = await open_inbox(tmp_path)
        others = Runs(inbox)
        try:
            return await value_of(others.start(publish, attempt))
        finally:
            await others.stop()
            await inbox.close()

    one = runs.start(publish, attempt)
    other = asyncio.create_task(asyncio.to_thread(asyncio.run, other_triggerer()))
    assert await value_of(one) == await other
    assert values(kafka_server, topic) == messages


@pytest.mark.parametrize("step", ["append", "commit"])
async def test_paused_triggerer_cannot_publish_again(
    kafka_server: RealKafka, topic: str, runs: Runs, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    paused, resume = asyncio.Event(), asyncio.Event()
    original = getattr(transactional_producer.Producer, step)

    async def pause(*arguments: Any) -> Any:
        if not paused.is_set():
            paused.set()
            await resume.wait()
        return await original(*arguments)

    monkeypatch.setattr(transactional_producer.Producer, step, pause)
    # Not renewed: a paused triggerer would not renew it either.
    runs.inbox.launches = Launches(
        runs.inbox.database, runs.inbox.owner, lease=0.5, send_margin=0.05, acquire_interval=0.05
    )
    attempt, publish = new_attempt(), PublishEventTrigger(kafka=topic, messages=[1, 2])
    first = runs.start(publish, attempt)
    await asyncio.wait_for(paused.wait(), 20)
    second = runs.start(publish, attempt)
    value = await value_of(second)
    resume.set()
    assert await value_of(first) == value
    assert values(kafka_server, topic) == [1, 2]


async def test_record_is_found_where_it_was_committed(kafka_server: RealKafka, topic: str) -> None:
    producers = await open_producer_pool(
        ClusterSettings("tests", kafka_server.servers, "PLAINTEXT", "", None, None)
    )
    records = [Record(b"x", None, (("id", str(n).encode()),), 0) for n in range(3)]
    for transactional_id, commits in (("deferrable-ops-1", True), ("deferrable-ops-2", False)):
        async with producers.open(topic, transactional_id) as producer:
            await producer.begin()
            places = await producer.append(records)
            if commits:
                await producer.commit()
                first = places
    assert await producers.find(topic, first[0], ("id", b"2")) == first[2]
    assert await producers.find(topic, first[1], ("id", b"0")) is None, "it stands before"
    assert await producers.find(topic, places[0], ("id", b"0")) is None, "it was never committed"
    kafka_server.delete_records(topic, first[2].offset)
    assert await producers.find(topic, first[0], ("id", b"2")) == first[2], "what is before it was deleted"


async def test_missing_topic_fails_the_task(topic: str, runs: Runs) -> None:
    run = runs.start(PublishEventTrigger(kafka="nowhere", payload=1))
    async with asyncio.timeout(40):
        await run.task
    outcome = await run.outcome()
    assert isinstance(outcome, Failure)
    assert "there is no topic 'nowhere'" in outcome.reason


async def test_too_large_message_is_named(kafka_server: RealKafka, topic: str, runs: Runs) -> None:
    messages = ["small", "x" * 2_000_000]
    outcome = await runs.start(PublishEventTrigger(kafka=topic, messages=messages)).outcome()
    assert isinstance(outcome, Failure)
    assert "messages[1] has 2000000 bytes" in outcome.reason
    assert "max.message.bytes" in outcome.reason
    assert values(kafka_server, topic) == [], "some of a transaction count"


async def test_unreachable_cluster_is_retried_until_the_timeout(
    topic: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, {"bootstrap.servers": f"127.0.0.1:{free_port()}"})
    outcome = await runs.start(PublishEventTrigger(kafka=topic, payload=1, timeout=2.0)).outcome()
    assert isinstance(outcome, Failure)
    assert "not published within the timeout of 2 s" in outcome.reason
    assert "kafka_default" in outcome.reason


async def test_missing_partition_is_named(topic: str, runs: Runs) -> None:
    publish = PublishEventOperator(task_id="t", kafka=topic, messages=[KafkaMessage("x", partition=7)])
    async with running(publish) as task, asyncio.timeout(30):
        outcome = await task.outcome()
    assert isinstance(outcome, Failure)
    assert "messages[0]: partition=7 is not one of the 2" in outcome.reason


@pytest.mark.parametrize(
    "resource, name, transactional, message",
    [
        (ResourceType.TOPIC, None, True, "write to the topic"),
        (ResourceType.TRANSACTIONAL_ID, "deferrable-ops-", True, "transactional ids that begin with"),
    ],
)
async def test_missing_permission_is_named(
    kafka_server: RealKafka,
    topic: str,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    resource: ResourceType,
    name: str | None,
    transactional: bool,
    message: str,
) -> None:
    login = {"sasl.mechanism": "PLAIN", "sasl.username": "alice", "sasl.password": "wonderland"}
    connect(monkeypatch, {"bootstrap.servers": kafka_server.sasl_servers, **login})
    acl = AclBinding(
        resource,
        name or topic,
        ResourcePatternType.PREFIXED,
        "User:alice",
        "*",
        AclOperation.WRITE,
        AclPermissionType.DENY,
    )
    for future in kafka_server.admin.create_acls([acl]).values():
        future.result(20)
    try:
        publish = PublishEventTrigger(kafka=topic, payload=1, transactional=transactional)
        outcome = await runs.start(publish).outcome()
    finally:
        everything = AclBindingFilter(
            ResourceType.ANY,
            None,
            ResourcePatternType.ANY,
            None,
            None,
            AclOperation.ANY,
            AclPermissionType.ANY,
        )
        for future in kafka_server.admin.delete_acls([everything]).values():
            future.result(20)
    assert isinstance(outcome, Failure)
    assert message in outcome.reason
    assert "wonderland" not in outcome.reason
