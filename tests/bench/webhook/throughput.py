"""Callbacks a second on one core, against a bare Starlette route with the same signature check and durability.

Either app is served by one uvicorn process that may use the first core only, with the same options; the
load comes from another core. Each callback ends a wait of its own, which nobody waits for here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from uuid import uuid4

from bench.common.command import Setting
from bench.common.figures import Figure, ratio
from bench.common.inboxes import Databases
from bench.common.load import post, requests_per_second
from bench.common.servers import served
from bench.webhook import rival
from bench.webhook.latency import BODY
from bench.webhook.processes import ENDPOINT, environment
from bench.webhook.waits import tokens_of_new_waits

CONNECTIONS = 512  # enough to keep the core busy: with 128 it idled while Postgres committed


def measure(setting: Setting) -> Iterator[Figure]:
    """Measure it on each database."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cores[1:]) or set(cores))
    try:
        for left, database in zip((2, 1), setting.databases, strict=True):
            yield _measure(setting, database, left, core=cores[0])
    finally:
        os.sched_setaffinity(0, cores)


def _measure(setting: Setting, database: Databases, loops_left: int, core: int) -> Figure:
    each_round = 200 if setting.quick else 5_000
    url = database.create()
    tokens = asyncio.run(tokens_of_new_waits(url, each_round * setting.most_rounds))
    app = served(ENDPOINT, environment(url), output=setting.output, core=core)
    other_app = served(
        "bench.webhook.rival:create_app", {"RIVAL_URL": database.create()}, output=setting.output, core=core
    )
    rounds = []
    with app as port, other_app as other_port:
        for number in setting.rounds(loops_left):
            chosen = tokens[number * each_round : (number + 1) * each_round]
            rounds.append(
                (
                    _per_second(port, [f"/deferrable-ops/callbacks/{token}" for token in chosen]),
                    _per_second(other_port, [f"/callbacks/{rival.token(str(uuid4()))}" for _ in chosen]),
                )
            )
    return ratio(
        f"callbacks a second on one core, {database.name}",
        rounds,
        target=0.75,
        at_least=True,
        against="bare route",
        unit="a second",
    )


def _per_second(port: int, paths: list[str]) -> float:
    return asyncio.run(
        requests_per_second(port, [post(path, BODY) for path in paths], connections=CONNECTIONS)
    )
