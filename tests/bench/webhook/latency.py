"""From a callback's answer to the trigger's event, at 10,000 waits, against the database's bare signal between
two processes.

The endpoint is served by uvicorn in a process of its own, and the triggers run in another. Callbacks come
at a steady rate. The clock starts when the sender has the whole answer and stops when the trigger's
``run()`` yields its event; what Airflow's supervisor would be asked meanwhile (the XCom) is answered at
once.

The floor, at the same rate and in turns with it: on Postgres from sending ``NOTIFY`` to the callback of a
process that listens; on SQLite from the end of a commit until a process that polls ``PRAGMA data_version``
every 50 ms sees it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from statistics import median, quantiles

from bench.common.command import Setting
from bench.common.figures import Figure, ratio
from bench.common.inboxes import Databases
from bench.common.load import answered_at_rate, post
from bench.common.processes import Child
from bench.common.servers import served
from bench.webhook.processes import ENDPOINT, environment, triggerer
from bench.webhook.signals import send_signals

PER_SECOND = 80.0
BODY = b'{"state": "done", "metrics": {"accuracy": 0.93, "rows": 120000}, "job": "churn-2026-01-01"}'
_ARRIVE_SECONDS = 30.0


def measure(setting: Setting) -> Iterator[Figure]:
    """Measure it on each database."""
    for left, database in zip((2, 1), setting.databases, strict=True):
        yield _measure(setting, database, left)


def _measure(setting: Setting, database: Databases, loops_left: int) -> Figure:
    waits, each_round = (60, 20) if setting.quick else (10_000, 300)
    url, bare_url = database.create(), database.create()
    listening = {"BENCH_SIGNALS_URL": bare_url}
    with (
        triggerer(setting, url) as triggers,
        served(ENDPOINT, environment(url), output=setting.output) as port,
        Child("bench.webhook.signals", listening, output=setting.output) as listener,
    ):
        triggers.ask("grow", "timed", waits)
        tokens = triggers.ask("tokens")
        rounds, medians = [], []
        for number in setting.rounds(loops_left):
            chosen = tokens[number * each_round : (number + 1) * each_round]
            ours = _callback_latencies(port, triggers, chosen)
            floor = asyncio.run(send_signals(bare_url, listener, each_round, PER_SECOND))
            rounds.append((1000 * _p99(ours), 1000 * _p99(floor)))
            medians.append((1000 * median(ours), 1000 * median(floor)))
    return ratio(
        f"callback answered to event, p99, {database.name}",
        rounds,
        target=3.0,
        against="bare signal",
        unit="ms",
        **{
            "ours, median ms": median(ours for ours, _ in medians),
            "bare signal, median ms": median(floor for _, floor in medians),
        },
    )


def _callback_latencies(port: int, triggers: Child, tokens: list[tuple[str, str]]) -> list[float]:
    requests = [post(f"/deferrable-ops/callbacks/{token}", BODY) for _, token in tokens]
    answered = asyncio.run(answered_at_rate(port, requests, PER_SECOND))
    give_up_at = time.monotonic() + _ARRIVE_SECONDS
    while time.monotonic() < give_up_at:
        fired = triggers.ask("fired")
        if all(wait_id in fired for wait_id, _ in tokens):
            return [fired[wait_id] - at for (wait_id, _), at in zip(tokens, answered, strict=True)]
        time.sleep(0.2)
    raise RuntimeError("some triggers have not fired")


def _p99(latencies: list[float]) -> float:
    return quantiles(latencies, n=100, method="inclusive")[98]
