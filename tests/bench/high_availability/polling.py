"""What 500 checks every 5 s cost in a triggerer, against a process for each.

Ours run in Airflow's own runner of triggers, with its inbox on SQLite. The rival runs as many as fit, one after the
other with ours; its figures are those of one check.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from cryptography.fernet import Fernet

from bench.common.command import Setting
from bench.common.figures import Figure, ratio
from bench.common.processes import Child

_HOUR = 3600


@dataclass(frozen=True, slots=True)
class _Plan:
    few: int = 50
    many: int = 500
    of_rival: int = 40
    interval: float = 5.0
    intervals: int = 6


@dataclass(frozen=True, slots=True)
class _Round:
    """One measurement: bytes and CPU seconds a second, of one check each."""

    memory: float
    memory_of_rival: float
    cpu: float
    cpu_of_rival: float
    block: float
    processes: int


def measure(setting: Setting) -> Iterator[Figure]:
    """Measure it in each round, and make figures of it."""
    plan = _Plan(5, 20, 3, 0.5, 4) if setting.quick else _Plan()
    rounds = [_round(setting, plan) for _ in range(setting.rounds)]
    workers = median(one.processes for one in rounds)
    yield Figure(
        name="worker-seconds per check and hour",
        value=workers * _HOUR / plan.many,
        target=0.0,
        unit="s",
        absolutes={
            "rival, s": float(_HOUR),
            "ours, processes per check": 1 / plan.many,
            "rival, processes per check": 1.0,
        },
    )
    yield ratio(
        "memory per check",
        [(one.memory, one.memory_of_rival) for one in rounds],
        target=0.01,
        against="rival",
        unit="bytes",
    )
    yield ratio(
        "CPU per check",
        [(1e6 * one.cpu, 1e6 * one.cpu_of_rival) for one in rounds],
        target=None,
        against="rival",
        unit="us a second",
        **{"longest block of the loop, ms": 1000 * median(one.block for one in rounds)},
    )


def _round(setting: Setting, plan: _Plan) -> _Round:
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
    with Child("bench.high_availability.rival", {}, output=setting.output) as rival:
        rival.ask("check", plan.of_rival, plan.interval)
        time.sleep(2 * plan.interval)
        memory_of_rival, cpu_of_rival = rival.ask("measure", plan.intervals * plan.interval)
        rival.ask("stop")
    return _Round(
        max(1.0, memory), memory_of_rival, cpu / plan.many, max(1e-9, cpu_of_rival), block, processes
    )
