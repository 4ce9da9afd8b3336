"""What 500 checks every 5 s cost in a triggerer, against airflow-ha's sensor, that has two processes for each.

Ours run in Airflow's own runner of triggers, with its inbox on SQLite. The rival runs as many as fit, one after the
other with ours; its figures are those of one check. It is in a folder of its own, that
``scripts/bench high_availability`` fills from ``tests/bench/requirements-high_availability.txt``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from cryptography.fernet import Fernet

from bench.common.command import Setting
from bench.common.figures import Figure, ratio
from bench.common.processes import Child
from bench.common.rivals import import_path, rivals_are_there

_HOUR = 3600


@dataclass(frozen=True, slots=True)
class _Plan:
    few: int = 50
    many: int = 500
    of_rival: int = 40
    interval: float = 5.0
    intervals: int = 6


@dataclass(frozen=True, slots=True)
class _Cost:
    """Of one check: bytes, CPU seconds a second, and processes that it holds."""

    memory: float
    cpu: float
    processes: float


@dataclass(frozen=True, slots=True)
class _Ours(_Cost):
    block: float


def measure(setting: Setting) -> Iterator[Figure]:
    """Measure it in each round, and make figures of it. Only a quick run goes without the rival and what needs it.

    :raises RuntimeError: the rival is missing.
    """
    plan = _Plan(5, 20, 3, 0.5, 4) if setting.quick else _Plan()
    with_rival = rivals_are_there("high_availability", setting)
    rounds: list[_Ours] = []
    rival: list[_Cost] = []
    for _ in setting.rounds():
        rounds.append(_ours(setting, plan))
        if with_rival:
            rival.append(_rival(setting, plan))
    yield Figure(
        name="worker-seconds per check and hour",
        value=median(one.processes for one in rounds) * _HOUR,
        target=0.0,
        unit="s",
        absolutes={"rival, s": float(_HOUR), "ours, processes per check": 1 / plan.many}
        | ({"rival, processes per check": median(one.processes for one in rival)} if rival else {}),
    )
    if not rival:
        return
    yield ratio(
        "memory per check",
        [(one.memory, other.memory) for one, other in zip(rounds, rival, strict=True)],
        target=0.01,
        against="rival",
        unit="bytes",
    )
    yield ratio(
        "CPU per check",
        [(1e6 * one.cpu, 1e6 * other.cpu) for one, other in zip(rounds, rival, strict=True)],
        target=None,
        against="rival",
        unit="us a second",
        **{"longest block of the loop, ms": 1000 * median(one.block for one in rounds)},
    )


def _ours(setting: Setting, plan: _Plan) -> _Ours:
    environment = {
        "AIRFLOW__CORE__FERNET_KEY": Fernet.generate_key().decode(),
        "AIRFLOW__DEFERRABLE_OPS__INBOX_URL": setting.databases[0].create(),
    }
    with Child("bench.high_availability.triggerer", environment, output=setting.output) as ours:
        ours.ask("check", plan.few, plan.interval)
        time.sleep(2 * plan.interval)
        before = ours.ask("memory")
        ours.ask("check", plan.many - plan.few, plan.interval)
        time.sleep(2 * plan.interval)
        cpu, block, processes = ours.ask("measure", plan.intervals * plan.interval)
        memory = (ours.ask("memory") - before) / (plan.many - plan.few)
    return _Ours(max(1.0, memory), cpu / plan.many, processes / plan.many, block)


def _rival(setting: Setting, plan: _Plan) -> _Cost:
    environment = {
        "AIRFLOW__CORE__DAGS_FOLDER": str(Path(__file__).parent),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "BENCH_INTERVAL": str(plan.interval),
        "PYTHONPATH": import_path("high_availability"),
    }
    with Child("bench.high_availability.rival", environment, output=setting.output) as rival:
        try:
            rival.ask("check", plan.of_rival)
            time.sleep(2 * plan.interval)
            memory, cpu, processes = rival.ask("measure", plan.intervals * plan.interval)
        finally:
            rival.ask("stop")
    return _Cost(memory, max(1e-9, cpu), processes)
