"""What waits for SQS' messages do, on moto's SQS: how often they ask, and how soon they fire.

Calls: two processes that nothing comes for, with 10 and with 1,000 waits, each on a queue of its own, are watched for
the same minutes. Latency: in these minutes another process with 1,000 waits on one queue, and the amazon provider's
SqsSensor with 200 waits, are sent their messages at a steady rate. The sensor has its default interval of a minute, and
each of its waits a queue of its own: on a shared one it hides the messages that are for others, in which it is spared.
The clock runs from before sending a message until the trigger yields its event.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median

from bench.common.command import Setting
from bench.common.figures import Figure, ratio
from bench.common.processes import Child
from bench.common.rivals import rivals_are_there
from bench.events.arrivals import latencies, p99
from bench.events.processes import rival_triggerer, triggerer
from bench.events.triggers import OURS, sqs_waits
from real_sqs import REGION, RealSqs, name_of

FEW, MANY, RIVALS_WAITS = 10, 1_000, 200
_RIVAL = "bench.events.rivals.SqsSensor"
_ARRIVE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Plan:
    """How much is measured.

    :param minute: seconds of a round.
    :param ours: how many of our waits are sent their message in a round; as `rivals`.
    :param interval: seconds between two looks of one of the rival's waits.
    """

    many: int
    rivals_waits: int
    minute: float
    ours: int
    rivals: int
    interval: int


_Message = tuple[str, str]  # to which queue, for which wait


def measure(setting: Setting) -> Iterator[Figure]:
    """Measure it on SQLite."""
    plan = _Plan(50, 5, 2.0, 40, 5, 1) if setting.quick else _Plan(MANY, RIVALS_WAITS, 60.0, 180, 40, 60)
    with _sqs() as sqs, ExitStack() as stack:

        def start() -> Child:
            process = triggerer(setting, sqs.connection(), setting.databases[0].create())
            return stack.enter_context(process)

        idle = [sqs.create_queue("idle_few"), sqs.create_queue("idle_many")]
        for url, count in zip(idle, (FEW, plan.many), strict=True):
            start().ask("grow", OURS, sqs_waits(url, _names(count)))
        ours, busy = start(), sqs.create_queue("busy")
        memory = _slope(ours, OURS, sqs_waits(busy, _names(plan.many)))
        rival, rivals_memory, queues = None, 0.0, {}
        if rivals_are_there("events", setting):
            rival = stack.enter_context(rival_triggerer(setting, sqs.connection()))
            queues = {name: sqs.create_queue(name) for name in _names(plan.rivals_waits)}
            rivals_memory = _slope(rival, _RIVAL, [_rivals_kwargs(plan, url) for url in queues.values()])
        calls, rivals_calls, ours_ms, rivals_sent = [], [], [], []
        for number in setting.rounds():
            before = [_polls(sqs, name_of(url)) for url in idle]
            rivals_before = _polls(sqs, "wait_")
            chosen = _part(_names(plan.many), number, plan.ours)
            rivals_chosen = _part(list(queues), number, plan.rivals)
            sent, sent_to_rival = _send(
                sqs,
                plan.minute,
                [(busy, name) for name in chosen],
                [(queues[name], name) for name in rivals_chosen],
            )
            few, many = (_polls(sqs, name_of(url)) - count for url, count in zip(idle, before, strict=True))
            calls.append((max(1.0, many), max(1.0, few)))
            rivals_calls.append(_polls(sqs, "wait_") - rivals_before)
            ours_ms.append(latencies(ours, sent, _ARRIVE_SECONDS))
            rivals_sent.append(sent_to_rival)
        if rival is not None:
            rivals_ms = [latencies(rival, sent, plan.interval + _ARRIVE_SECONDS) for sent in rivals_sent]
    beside = {"SqsSensor at 200 waits, a minute": float(rivals_calls[0])} if rival else {}
    yield ratio(
        "SQS calls at 1,000 waits", calls, target=1.1, against="at 10 waits", unit="a minute", **beside
    )
    if rival is not None:
        yield ratio(
            "sent to SQS to event, p99",
            [(p99(ours), p99(rivals)) for ours, rivals in zip(ours_ms, rivals_ms, strict=True)],
            target=1 / 10,
            against="SqsSensor",
            unit="ms",
            **{
                "ours, median ms": median(map(median, ours_ms)),
                "SqsSensor, median ms": median(map(median, rivals_ms)),
            },
        )
        yield ratio(
            "memory per wait for SQS",
            [(memory, rivals_memory)],
            target=None,
            against="SqsSensor",
            unit="bytes",
        )


@contextmanager
def _sqs() -> Iterator[RealSqs]:
    # Who is thrown away at the end leaves its last poll behind.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    server = RealSqs()
    try:
        server.start()
        yield server
    finally:
        server.remove()


def _names(count: int) -> list[str]:
    return [f"wait_{number}" for number in range(count)]


def _part(names: list[str], number: int, size: int) -> list[str]:
    return names[number * size : (number + 1) * size]


def _rivals_kwargs(plan: _Plan, queue_url: str) -> dict[str, object]:
    return {"sqs_queue": queue_url, "waiter_delay": plan.interval, "region_name": REGION}


def _polls(sqs: RealSqs, queue: str) -> int:
    return sqs.proxy.count("ReceiveMessage", queue)


def _send(
    sqs: RealSqs, seconds: float, ours: list[_Message], rivals: list[_Message]
) -> tuple[dict[str, float], dict[str, float]]:
    """Send either at a steady rate, and return when each wait was sent its message, once the time has passed."""
    began = time.monotonic()
    sent: tuple[dict[str, float], dict[str, float]] = {}, {}
    plan = sorted(
        (began + seconds * number / len(messages), whose, message)
        for whose, messages in enumerate((ours, rivals))
        for number, message in enumerate(messages)
    )
    for at, whose, (queue_url, wait) in plan:
        time.sleep(max(0.0, at - time.monotonic()))
        sent[whose][wait] = time.monotonic()
        sqs.send(queue_url, {"db": "db0", "table": "orders", "wait": wait})
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    return sent


def _slope(process: Child, classpath: str, kwargs: list[dict[str, object]]) -> float:
    few = max(1, len(kwargs) // 10)
    before = process.ask("grow", classpath, kwargs[:few])
    after = process.ask("grow", classpath, kwargs[few:])
    return max(1.0, (after - before) / (len(kwargs) - few))
