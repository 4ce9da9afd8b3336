"""What waits for Kafka's records do, on a real Kafka: whether they fire, how soon, and through how many connections.

1,000 waits begin whose `since` is 10 minutes back. A tenth of the records they are for lie there, among others; the
rest come later, at a steady rate, in each round some of them. The rival of each round is the kafka provider's shared
stream with as many triggers on a topic of its own, which cannot look back. The clock runs from giving a record to the
producer until the trigger yields its event. Both processes run at the same time and are sent a record in turns.

The provider's AwaitMessage is measured once, for the context, with fewer waits and a time limit. Its waits share the
``group.id`` of their connection, as those of one DAG do, and so all but one of them are given no partition.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from statistics import median

from bench.common.command import Setting
from bench.common.figures import Figure, ratio
from bench.common.inboxes import Databases
from bench.common.processes import Child
from bench.common.rivals import rivals_are_there
from bench.events.arrivals import latencies, p99, until_fired
from bench.events.broker import BACK_SECONDS, kafka, port_of, send_each, send_in_turns, write_past
from bench.events.processes import (
    Watched,
    kafka_connection,
    rival_triggerer,
    triggerer,
)
from bench.events.triggers import OURS, kafka_waits
from real_kafka import RealKafka

WAITS = 1_000
AWAIT_MESSAGE_WAITS = 200
_OTHERS = 20_000
_PAST_SECONDS = 120.0
_ARRIVE_SECONDS = 60.0
_WARM_UP = "warm_up"


def measure(setting: Setting) -> Iterator[Figure]:
    """Measure it on each database; a quick run is content with the first."""
    server = kafka()
    databases = setting.databases[:1] if setting.quick else setting.databases
    for number, database in enumerate(databases):
        yield from _measure(setting, server, database, loops_left=len(databases) - number)
    if rivals_are_there("events", setting):
        yield _await_message(setting, server)


def _measure(setting: Setting, server: RealKafka, database: Databases, loops_left: int) -> Iterator[Figure]:
    names = [f"wait_{number}" for number in range(50 if setting.quick else WAITS)]
    later = [name for number, name in enumerate(names) if number % 10]
    each_round = len(later) // setting.most_rounds
    per_second = 100.0 if setting.quick else 20.0
    topic, rivals_topic = f"events_{database.name}", f"rivals_{database.name}"
    ours_ms: list[list[float]] = []
    rivals_ms: list[list[float]] = []
    with ExitStack() as stack:
        rival = None
        if rivals_are_there("events", setting):
            server.create_topic(rivals_topic)
            rival = stack.enter_context(_rival(setting, server, group=rivals_topic))
            _start_shared_stream(rival, server, rivals_topic, names)
        ours = stack.enter_context(_ours(setting, server, database))
        most, seconds = _start_ours(ours, server, topic, names)
        unsent = later
        for number in setting.rounds(loops_left):
            unsent = later[(number + 1) * each_round :]
            chosen = later[number * each_round : (number + 1) * each_round]
            topics = [topic] if rival is None else [topic, rivals_topic]
            sent, *rivals_sent = send_in_turns(server, topics, chosen, per_second)
            ours_ms.append(latencies(ours, sent, _ARRIVE_SECONDS))
            if rival is not None:
                rivals_ms.append(latencies(rival, *rivals_sent, _ARRIVE_SECONDS))
        # On a slow machine, not all rounds fit the time.
        send_each(server, topic, unsent, per_second=200)
        until_fired(ours, later, _ARRIVE_SECONDS)
        fired, threads = len(ours.ask("fired").keys() & set(names)), Watched(ours).threads()
    yield Figure(
        f"fired of 1,000 waits, {database.name}",
        fired / len(names),
        target=1.0,
        at_least=True,
        absolutes={
            "fired": fired,
            "of the last 10 minutes": len(names) - len(later),
            "these after, s": seconds,
        },
    )
    yield Figure(
        f"connections to Kafka, most at once, {database.name}",
        most,
        target=2.0,
        unit="",
        absolutes={"waits": len(names), "threads": threads},
    )
    if rival is not None:
        yield ratio(
            f"produced to event, p99, {database.name}",
            [(p99(ours), p99(rivals)) for ours, rivals in zip(ours_ms, rivals_ms, strict=True)],
            target=1.0,
            against="shared stream",
            unit="ms",
            **{
                "ours, median ms": median(map(median, ours_ms)),
                "shared stream, median ms": median(map(median, rivals_ms)),
            },
        )


def _ours(setting: Setting, server: RealKafka, database: Databases) -> Child:
    return triggerer(setting, kafka_connection(server.servers), database.create())


def _rival(setting: Setting, server: RealKafka, group: str) -> Child:
    return rival_triggerer(setting, rivals_connection(server, group))


def _start_ours(process: Child, server: RealKafka, topic: str, names: list[str]) -> tuple[int, float]:
    """Return the most connections at any time, and the seconds until those had fired whose record was there."""
    server.create_topic(topic)
    past = names[::10]
    write_past(server, topic, past, _OTHERS if len(names) == WAITS else len(names))
    since = datetime.fromtimestamp(time.time() - BACK_SECONDS - 60, UTC).isoformat()
    began = time.monotonic()
    with Watched(process).most_connections(port_of(server)) as most:
        process.ask("run", OURS, kafka_waits(topic, names, since))
        fired = until_fired(process, past, _PAST_SECONDS)
        process.ask("quiet")
    process.ask("grow", OURS, kafka_waits(topic, [_WARM_UP]))
    send_each(server, topic, [_WARM_UP], per_second=5)
    until_fired(process, [_WARM_UP], _ARRIVE_SECONDS)
    return most(), max(fired[name] for name in past) - began


def _start_shared_stream(process: Child, server: RealKafka, topic: str, names: list[str]) -> None:
    """Return once it is sent what its topic is sent: its consumer group needs a moment."""
    process.ask("run", *shared_stream(topic, [_WARM_UP, *names]))
    give_up_at = time.monotonic() + _ARRIVE_SECONDS
    while _WARM_UP not in process.ask("fired"):
        if time.monotonic() > give_up_at:
            raise RuntimeError("the shared stream is sent nothing")
        send_each(server, topic, [_WARM_UP], per_second=5)
    process.ask("quiet")


def rivals_connection(server: RealKafka, group: str) -> dict[str, str]:
    """Return the environment of the rivals, which read as a consumer group."""
    settings = {"group_id": group, "enable_auto_commit": "false", "auto_offset_reset": "latest"}
    return kafka_connection(server.servers, **settings)


def shared_stream(topic: str, names: list[str]) -> tuple[str, list[dict[str, object]]]:
    """Return the classpath of the shared stream's triggers, and the kwargs of one for each wait."""
    stream = {"topics": [topic], "kafka_config_id": "kafka_default", "poll_timeout": 1.0, "dlq_topic": None}
    return "bench.events.rivals.SharedStreamTrigger", [{**stream, "wait": name} for name in names]


def _await_message(setting: Setting, server: RealKafka) -> Figure:
    """Return what its waits hold, and how many had fired when the time was up."""
    count, seconds = (10, 5.0) if setting.quick else (AWAIT_MESSAGE_WAITS, 60.0)
    names, topic = [f"wait_{number}" for number in range(count)], "events_await_message"
    server.create_topic(topic)
    kwargs = [
        {
            "topics": [topic],
            "apply_function": "bench.events.rivals.value_if_wanted",
            "apply_function_args": [name],
        }
        for name in names
    ]
    classpath = "bench.events.rivals.AwaitMessage"
    with _rival(setting, server, group=topic) as process:
        process.ask("run", classpath, kwargs[:1])
        process.ask("quiet")
        memory = process.ask("memory")
        process.ask("run", classpath, kwargs[1:])
        began = time.monotonic()
        send_each(server, topic, names, per_second=20)
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        watched, fired = Watched(process), process.ask("fired")
        threads = watched.threads()
        return Figure(
            "threads per wait, AwaitMessage",
            threads / count,
            target=None,
            unit="",
            absolutes={
                "waits": count,
                "fired": len(fired),
                "after, s": seconds,
                "threads": threads,
                "connections": watched.connections(port_of(server)),
                "MB a wait": (process.ask("memory") - memory) / (count - 1) / 1e6,
            },
        )
