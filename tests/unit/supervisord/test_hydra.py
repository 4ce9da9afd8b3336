"""A configuration's YAML through Hydra's ``_target_``."""

from __future__ import annotations

from datetime import time, timedelta

import pytest

from deferrable_ops.supervisord import (
    ProgramConfiguration,
    SupervisorSSHAirflowConfiguration,
)

hydra = pytest.importorskip("hydra")

PLAIN = """
_target_: deferrable_ops.supervisord.SupervisorSSHAirflowConfiguration
check_interval: 10
check_timeout: 60
endtime: 23:00:00
runtime: 360
host: jobs.example.com
port: "*:9001"
username: airflow
password: ${oc.env:SUPERVISOR_RPC_PASSWORD}
ssh_operator_args:
  ssh_conn_id: supervisor-host
working_dir: /data
exitcodes: [0, 2]
program:
  echo:
    _target_: deferrable_ops.supervisord.ProgramConfiguration
    command: echo "hello"
    environment: {GREETING: hello}
  sleep:
    command: sleep 1000
group:
  all:
    programs: [echo, sleep]
"""


@pytest.mark.parametrize("convert", ["none", "partial", "object", "all"])
def test_hydra_builds_the_same_configuration_as_python(monkeypatch: pytest.MonkeyPatch, convert: str) -> None:
    from omegaconf import OmegaConf

    monkeypatch.setenv("SUPERVISOR_RPC_PASSWORD", "correct horse")
    made = hydra.utils.instantiate(OmegaConf.create(PLAIN + f"\n_convert_: {convert}"))
    assert made == SupervisorSSHAirflowConfiguration(
        check_interval=timedelta(seconds=10),
        check_timeout=timedelta(minutes=1),
        endtime=time(23),
        runtime=timedelta(minutes=6),
        host="jobs.example.com",
        port="*:9001",
        username="airflow",
        password="correct horse",
        ssh_conn_id="supervisor-host",
        working_dir="/data",
        exitcodes=[0, 2],
        program={
            "echo": ProgramConfiguration(command='echo "hello"', environment={"GREETING": "hello"}),
            "sleep": ProgramConfiguration(command="sleep 1000"),
        },
        group={"all": {"programs": ["echo", "sleep"]}},
    )
    assert "environment=GREETING=" in made.to_cfg()
