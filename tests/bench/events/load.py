"""What a busy topic costs: 5,000 records a second that nobody waits for, with 1,000 waits and with 10.

Every wait's `match` is another one. Each round has, in turns, 10 and 1,000 waits in a process and on a topic of their
own, first without and then with the records; what the process needs without them is taken off. At the end of a round
comes a record that somebody waits for: who had not kept up would be late with it.

The event loop's lag is by how much a timer of 5 ms is late. Kafka is read in a thread of its own, but Python runs one
thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from bench.common.command import Setting
from bench.common.figures import Figure, ratio
from bench.common.processes import Child
from bench.events.arrivals import latencies, p99
from bench.events.broker import kafka, send_each, send_others
from bench.events.processes import kafka_connection, triggerer
from bench.events.triggers import OURS, kafka_waits
from real_kafka import RealKafka

FEW, MANY = 10, 1_000
PER_SECOND = 5_000.0
_KEPT_UP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Cost:
    """What a round cost one process.

    :param per_message: µs of CPU time.
    :param idle: ms, the 99th percentile of the event loop's lag without messages; as `busy`, with them.
    :param late: ms, from sending the last message to its event.
    :param per_second: messages.
    """

    per_message: float
    idle: float
    busy: float
    late: float
    per_second: float


def measure(setting: Setting) -> Iterator[Figure]:
    """Measure it on SQLite: what nobody waits for does not reach the inbox."""
    seconds, many = (1.0, 50) if setting.quick else (8.0, MANY)
    rounds = []
    server = kafka()
    with ExitStack() as stack:
        processes = {}
        for count in (FEW, many):
            topic = f"events_load_{count}"
            server.create_topic(topic)
            connection = kafka_connection(server.servers)
            process = stack.enter_context(triggerer(setting, connection, setting.databases[0].create()))
            names = [f"wait_{number}" for number in range(count)]
            process.ask("grow", OURS, kafka_waits(topic, names))
            processes[topic] = process
        for number in setting.rounds():
            last = f"wait_{number}"
            few, many_ = (_cost(server, *one, last, seconds) for one in processes.items())
            rounds.append((few, many_))
    yield ratio(
        "CPU per message at 1,000 waits",
        [(many_.per_message, few.per_message) for few, many_ in rounds],
        target=2.0,
        against="at 10 waits",
        unit="µs",
        **{
            "messages a second": median(many_.per_second for _, many_ in rounds),
            "last message to its event, ms": median(many_.late for _, many_ in rounds),
        },
    )
    yield ratio(
        "loop lag at 5,000 messages a second, p99",
        [(many_.busy, many_.idle) for _, many_ in rounds],
        target=3.0,
        against="idle",
        unit="ms",
        **{
            "at 10 waits, ms": median(few.busy for few, _ in rounds),
            "at 10 waits, idle, ms": median(few.idle for few, _ in rounds),
        },
    )


def _cost(server: RealKafka, topic: str, process: Child, last: str, seconds: float) -> _Cost:
    idle_lags, idle_cpu = process.ask("lags", seconds)
    process.tell("lags", seconds)
    began = time.monotonic()
    sent = send_others(server, topic, PER_SECOND, seconds)
    lasted = time.monotonic() - began
    busy_lags, busy_cpu = process.answer()
    (late,) = latencies(process, send_each(server, topic, [last], PER_SECOND), _KEPT_UP_SECONDS)
    return _Cost(
        per_message=1e6 * max(1e-9, busy_cpu - idle_cpu) / sent,
        idle=1000 * p99(idle_lags),
        busy=1000 * p99(busy_lags),
        late=late,
        per_second=sent / lasted,
    )
