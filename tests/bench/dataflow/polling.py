"""What 500 waits for running jobs cost, against the google provider's way of one poll per trigger.

In each round ours and the rival wait for the same 500 jobs of the same fake Dataflow, one after the other, each in a
process of its own and with the same interval; the fake has its own process, too. Ours launches the jobs. Either is
measured once all of them wait. Airflow's runner starts all triggers together, as after a restart of the triggerer.

Ours has its inbox on SQLite, which is the dearer one while nothing happens. A full collection of Python's garbage
walks all of Airflow, 0.2 to 0.4 s, and is in the longest block of whoever causes it: the rival every 12 s, ours once in
minutes. The blocks without collections are reported beside.
The size of a page of jobs is Dataflow's to choose: here all jobs fit into one, and the calls with pages of 100 are
reported beside it.
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

FEW, MANY = 50, 500
_ALL_IN_ONE, _PAGE = 1_000, 100
_LAUNCHED_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class _Plan:
    """How much is measured.

    :param interval: seconds between two polls.
    :param looks: how many intervals the calls are counted in.
    :param intervals: how many of them CPU time and blocks are measured in.
    """

    few: int = FEW
    many: int = MANY
    interval: float = 2.0
    looks: int = 3
    intervals: int = 12


@dataclass(frozen=True, slots=True)
class _Waiting:
    """What waiting cost one of the two.

    :param calls: in an interval.
    :param cpu: CPU seconds in each second.
    :param block: seconds, the longest of the event loop; as `block_of_work`, without garbage collection.
    :param collections: full ones.
    :param memory: bytes for each wait.
    """

    calls: float
    cpu: float
    block: float
    block_of_work: float
    collections: float
    memory: float


@dataclass(frozen=True, slots=True)
class _Round:
    """One measurement of both.

    :param calls_of_few: ours for each look at all jobs; as `calls_of_many`, and as `calls_with_pages`, of many waits
        in several pages.
    """

    ours: _Waiting
    rival: _Waiting
    calls_of_few: float
    calls_of_many: float
    calls_with_pages: float


def measure(setting: Setting) -> Iterator[Figure]:
    """Measure it in each round, and make figures of it."""
    plan = _Plan(few=5, many=20, interval=0.5, looks=2, intervals=4) if setting.quick else _Plan()
    rounds = [_round(setting, plan) for _ in setting.rounds()]
    both = [(measured.ours, measured.rival) for measured in rounds]
    yield ratio(
        "calls at 500 waits",
        [(measured.calls_of_many, measured.calls_of_few) for measured in rounds],
        target=1.1,
        against="at 50 waits",
        unit="an interval",
        **{
            "ours with pages of 100 jobs": median(measured.calls_with_pages for measured in rounds),
            "ours, by the clock": median(ours.calls for ours, _ in both),
            "rival, by the clock": median(rival.calls for _, rival in both),
        },
    )
    yield ratio(
        "CPU at 500 waits",
        [(100 * ours.cpu, 100 * rival.cpu) for ours, rival in both],
        target=1 / 5,
        against="rival",
        unit="% of a core",
    )
    yield ratio(
        "longest loop block at 500 waits",
        [(1000 * ours.block, 1000 * rival.block) for ours, rival in both],
        target=1 / 3,
        against="rival",
        unit="ms",
        **{
            "ours without collections, ms": 1000 * median(ours.block_of_work for ours, _ in both),
            "rival without collections, ms": 1000 * median(rival.block_of_work for _, rival in both),
            "ours, full collections": median(ours.collections for ours, _ in both),
            "rival, full collections": median(rival.collections for _, rival in both),
        },
    )
    yield ratio(
        "memory per wait",
        [(ours.memory, rival.memory) for ours, rival in both],
        target=1.25,
        against="rival",
        unit="bytes",
    )


def _round(setting: Setting, plan: _Plan) -> _Round:
    with Child("bench.dataflow.server", {}, output=setting.output) as server:
        environment = {
            "AIRFLOW__CORE__FERNET_KEY": Fernet.generate_key().decode(),
            "AIRFLOW__DEFERRABLE_OPS__INBOX_URL": setting.databases[0].create(),
            "AIRFLOW__DEFERRABLE_OPS__DATAFLOW_EMULATOR_HOST": server.ask("host"),
        }
        with Child("bench.dataflow.triggerer", environment, output=setting.output) as process:
            server.ask("limit_pages", _ALL_IN_ONE)
            _launch(server, process, plan, plan.few)
            calls_of_few = _calls_of_looks(server, plan)
            memory_of_few = process.ask("memory")
            _launch(server, process, plan, plan.many)
            calls_of_many = _calls_of_looks(server, plan)
            ours = _wait(server, process, plan, memory_of_few)
            server.ask("limit_pages", _PAGE)
            calls_with_pages = _calls_of_looks(server, plan)
        with Child("bench.dataflow.triggerer", environment, output=setting.output) as process:
            job_ids = server.ask("job_ids")
            _wait_for(process, plan, job_ids[: plan.few])
            memory_of_few = process.ask("memory")
            _wait_for(process, plan, job_ids[plan.few :])
            rival = _wait(server, process, plan, memory_of_few)
    return _Round(ours, rival, calls_of_few, calls_of_many, calls_with_pages)


def _launch(server: Child, process: Child, plan: _Plan, to: int) -> None:
    process.ask("launch", to - len(server.ask("job_ids")), plan.interval)
    give_up_at = time.monotonic() + _LAUNCHED_SECONDS
    while len(server.ask("job_ids")) < to:
        if time.monotonic() > give_up_at:
            raise RuntimeError(f"{to} jobs were not launched")
        time.sleep(0.2)
    _settle(plan)


def _wait_for(process: Child, plan: _Plan, job_ids: list[str]) -> None:
    process.ask("wait_for", job_ids, plan.interval)
    _settle(plan)


def _settle(plan: _Plan) -> None:
    time.sleep(3 * plan.interval)


def _wait(server: Child, process: Child, plan: _Plan, memory_of_few: int) -> _Waiting:
    calls_before = server.ask("calls")
    cpu, block, block_of_work, collections = process.ask("wait", plan.intervals * plan.interval, plan.many)
    calls = server.ask("calls") - calls_before
    memory = process.ask("memory") - memory_of_few
    return _Waiting(
        calls=calls / plan.intervals,
        cpu=cpu,
        block=block,
        block_of_work=block_of_work,
        collections=collections,
        memory=max(1.0, memory / (plan.many - plan.few)),
    )


def _calls_of_looks(server: Child, plan: _Plan) -> float:
    return float(server.ask("calls_of_looks", plan.looks, plan.interval / 4))
