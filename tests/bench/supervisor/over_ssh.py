"""How many SSH connections 200 watchers of 10 supervisords on one machine hold, against one for each watcher."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
from cryptography.fernet import Fernet

from bench.common.command import Setting
from bench.common.figures import Figure
from bench.common.processes import Child
from bench.supervisor.daemons import Daemons, running
from deferrable_ops.supervisord import SupervisorSSHAirflowConfiguration
from deferrable_ops.triggers.supervisor.configuration import serialize_configuration
from real_sshd import RealSshd, SshdMissing


@dataclass(frozen=True, slots=True)
class _Plan:
    daemons: int = 10
    programs: int = 20
    watchers: int = 200
    interval: float = 5.0
    intervals: int = 4


def measure(setting: Setting) -> Iterator[Figure]:
    """Measure it once. Only a quick run goes without an sshd.

    :raises SshdMissing: there is none.
    """
    plan = _Plan(2, 3, 10, 0.5, 4) if setting.quick else _Plan()
    try:
        sshd = RealSshd()
    except SshdMissing:
        if setting.quick:
            return
        raise
    sshd.start()
    try:
        with running(plan.daemons, plan.programs, plan.interval, setting.output) as daemons:
            yield _figure(setting, plan, sshd, daemons)
    finally:
        sshd.remove()


def _figure(setting: Setting, plan: _Plan, sshd: RealSshd, daemons: Daemons) -> Figure:
    environment = {
        "AIRFLOW__CORE__FERNET_KEY": Fernet.generate_key().decode(),
        "AIRFLOW__DEFERRABLE_OPS__INBOX_URL": setting.databases[0].create(),
        "AIRFLOW_CONN_BENCH": sshd.connection(),
    }
    sealed = [
        serialize_configuration(
            SupervisorSSHAirflowConfiguration(
                **config.with_secrets() | {"ssh_operator_args": {"ssh_conn_id": "bench"}}
            )
        )
        for config in daemons.configs
    ]
    with Child("bench.supervisor.triggerer", environment, output=setting.output) as ours:
        ours.ask("watch", [sealed[number % plan.daemons] for number in range(plan.watchers)])
        time.sleep(plan.interval)
        calls = daemons.calls()
        cpu, late, _, _ = ours.ask("measure", plan.intervals * plan.interval)
        calls = daemons.calls() - calls
        connections = _connections_to(sshd.port)
    return Figure(
        name=f"SSH connections of {plan.watchers} watchers",
        value=connections,
        target=1.0,
        unit="",
        absolutes={
            "one client per watcher": plan.watchers,
            "calls an interval": calls / (2 * plan.intervals),
            "CPU, % of a core": 100 * cpu,
            "loop lag p99, ms": 1000 * late,
        },
    )


def _connections_to(port: int) -> int:
    found = psutil.net_connections("tcp")
    return sum(
        one.status == psutil.CONN_ESTABLISHED and bool(one.raddr) and one.raddr.port == port for one in found
    )
