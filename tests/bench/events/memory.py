"""Memory per wait: the slope between 1,000 and 4,000 waits for records of one topic, against a bare trigger's in the
same runner.

It is the memory that is the process's alone (USS), as the machine pays for it: what Python's allocators leave unused
counts. Nothing comes for the waits. The rivals', measured in the same way, are for the context: the shared stream's
with as many, the amazon provider's with fewer, because each of them makes an AWS client of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from bench.common.command import Setting
from bench.common.figures import Figure, ratio
from bench.common.processes import Child
from bench.common.rivals import rivals_are_there
from bench.events.broker import kafka
from bench.events.kafka import rivals_connection, shared_stream
from bench.events.processes import kafka_connection, rival_triggerer, triggerer
from bench.events.triggers import BARE, UNTIMED, kafka_waits

_TOPIC = "events_memory"


def measure(setting: Setting) -> Iterator[Figure]:
    """Measure it on SQLite: the inbox keeps nothing of a wait in memory that depends on the database."""
    few, many = (20, 60) if setting.quick else (1_000, 4_000)
    names = [f"wait_{number}" for number in range(many)]
    rounds, shared = [], []
    server = kafka()
    server.create_topic(_TOPIC)
    for number in setting.rounds():
        connection = kafka_connection(server.servers)
        with triggerer(setting, connection, setting.databases[0].create()) as process:
            ours = _slope(process, UNTIMED, kafka_waits(_TOPIC, names), few)
        with triggerer(setting, {}, "") as process:
            rounds.append((ours, _slope(process, BARE, [{}] * many, few)))
        if rivals_are_there("events", setting):
            with rival_triggerer(setting, rivals_connection(server, f"memory_{number}")) as process:
                shared.append(_slope(process, *shared_stream(_TOPIC, names), few))
    beside = {"shared stream, bytes": median(shared)} if shared else {}
    yield ratio("memory per wait", rounds, target=1.25, against="bare trigger", unit="bytes", **beside)


def _slope(process: Child, classpath: str, kwargs: list[dict[str, object]], few: int) -> float:
    before = process.ask("grow", classpath, kwargs[:few])
    after = process.ask("grow", classpath, kwargs[few:])
    return max(1.0, (after - before) / (len(kwargs) - few))
