"""What 200 watchers of 10 supervisords with 20 programs each cost, against one client in a thread for each of them.

Each watcher is a task of its own that watches all programs of one supervisord. In each round ours and the rival watch
the same supervisords, one after the other, each in a process of its own; the calls are counted by the supervisords.
Ours run in Airflow's own runner of triggers, with its inbox on SQLite, over the Unix sockets; the rival uses the ports,
as airflow-supervisor does. How late a loop is that has nothing to do is measured in a process that watches nothing.
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
from bench.supervisor.daemons import Daemons, running
from deferrable_ops.triggers.supervisor.configuration import serialize_configuration


@dataclass(frozen=True, slots=True)
class _Plan:
    daemons: int = 10
    programs: int = 20
    watchers: int = 200
    interval: float = 5.0
    intervals: int = 4


@dataclass(frozen=True, slots=True)
class _Cost:
    """Calls in an interval, CPU seconds in each second, and bytes for each watcher."""

    calls: float
    cpu: float
    memory: float


@dataclass(frozen=True, slots=True)
class _Ours(_Cost):
    """How late the loop is, 99th percentile, and its longest block, in seconds; and full garbage collections."""

    late: float
    late_idle: float
    block: float
    collections: float


def measure(setting: Setting) -> Iterator[Figure]:
    """Measure it in each round, and make figures of it."""
    plan = _Plan(2, 3, 10, 0.5, 4) if setting.quick else _Plan()
    with running(plan.daemons, plan.programs, plan.interval, setting.output) as daemons:
        both = [(_ours(setting, plan, daemons), _rival(setting, plan, daemons)) for _ in setting.rounds()]
    yield Figure(
        name=f"calls an interval of {plan.watchers} watchers",
        value=median(ours.calls for ours, _ in both),
        target=float(plan.daemons),
        unit="",
        absolutes={"rival": median(rival.calls for _, rival in both), "supervisords": plan.daemons},
    )
    yield ratio(
        "CPU of the watchers",
        [(100 * ours.cpu, 100 * rival.cpu) for ours, rival in both],
        target=0.1,
        against="rival",
        unit="% of a core",
        **{
            "longest block of the loop, ms": 1000 * median(ours.block for ours, _ in both),
            "full collections": median(ours.collections for ours, _ in both),
        },
    )
    yield ratio(
        "loop lag, p99",
        [(1000 * ours.late, 1000 * ours.late_idle) for ours, _ in both],
        target=3.0,
        against="idle",
        unit="ms",
    )
    yield ratio(
        "memory per watcher",
        [(ours.memory, rival.memory) for ours, rival in both],
        target=None,
        against="rival",
        unit="bytes",
    )


def _ours(setting: Setting, plan: _Plan, daemons: Daemons) -> _Ours:
    environment = {
        "AIRFLOW__CORE__FERNET_KEY": Fernet.generate_key().decode(),
        "AIRFLOW__DEFERRABLE_OPS__INBOX_URL": setting.databases[0].create(),
    }
    sealed = [serialize_configuration(config) for config in daemons.configs]
    seconds = plan.intervals * plan.interval
    with Child("bench.supervisor.triggerer", environment, output=setting.output) as ours:
        ours.ask("watch", sealed)  # one of each, so that everything is imported
        time.sleep(plan.interval)
        before = ours.ask("memory")
        ours.ask("watch", [sealed[number % plan.daemons] for number in range(plan.watchers - plan.daemons)])
        time.sleep(plan.interval)
        calls = daemons.calls()
        cpu, late, block, collections = ours.ask("measure", seconds)
        calls = daemons.calls() - calls
        memory = (ours.ask("memory") - before) / (plan.watchers - plan.daemons)
    with Child("bench.supervisor.triggerer", environment, output=setting.output) as idle:
        _, late_idle, _, _ = idle.ask("measure", seconds / 2)
    return _Ours(calls / (2 * plan.intervals), cpu, max(1.0, memory), late, late_idle, block, collections)


def _rival(setting: Setting, plan: _Plan, daemons: Daemons) -> _Cost:
    with Child("bench.supervisor.rival", {}, output=setting.output) as rival:
        rival.ask("watch", daemons.urls, plan.interval)
        time.sleep(plan.interval)
        before = rival.ask("memory")
        more = [daemons.urls[number % plan.daemons] for number in range(plan.watchers - plan.daemons)]
        rival.ask("watch", more, plan.interval)
        time.sleep(plan.interval)
        calls = daemons.calls()
        cpu, looks = rival.ask("measure", plan.intervals * plan.interval)
        calls = daemons.calls() - calls
        assert looks
        memory = (rival.ask("memory") - before) / (plan.watchers - plan.daemons)
    return _Cost(calls / plan.intervals, max(1e-9, cpu), max(1.0, memory))
