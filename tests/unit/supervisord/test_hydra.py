"""The seed's YAML, with the module's name changed, through Hydra and airflow-config.

Of airflow-config's own part, two names have changed since the seed: ``default_args``, of the type ``DefaultArgs``, is
``default_task_args`` (``TaskArgs``), and ``all_dags`` is ``default_dag_args``.
"""

from __future__ import annotations

from datetime import time, timedelta
from pathlib import Path
from typing import Any

import pytest

from deferrable_ops.supervisord import (
    ProgramConfiguration,
    SupervisorAirflowConfiguration,
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

SEED = """
# @package _global_
_target_: airflow_config.Configuration
default_task_args:
  _target_: airflow_config.TaskArgs
  retries: 0
  depends_on_past: false
default_dag_args:
  _target_: airflow_config.DagArgs
  start_date: "2024-01-01"
  catchup: false
extensions:
  supervisor:
    _target_: deferrable_ops.supervisord.SupervisorAirflowConfiguration
    airflow:
      _target_: deferrable_ops.supervisord.AirflowConfiguration
      port: "*:9091"
    working_dir: "/data/airflow/supervisor"
    config_path: "/data/airflow/supervisor/supervisor.conf"
    program:
      test:
        _target_: deferrable_ops.supervisord.ProgramConfiguration
        command: "bash -c 'sleep 14400; exit 1'"
"""


@pytest.mark.parametrize("convert", ["none", "partial", "object", "all"])
def test_hydra_makes_what_python_makes(monkeypatch: pytest.MonkeyPatch, convert: str) -> None:
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


def test_seeds_airflow_config_works_with_the_modules_name_changed(tmp_path: Path) -> None:
    airflow_config: Any = pytest.importorskip("airflow_config")
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "airflow.yaml").write_text(SEED)
    with pytest.warns(UserWarning, match="Unix socket instead"):
        config = airflow_config.load_config("config", "airflow", basepath=str(tmp_path))
    made = config.extensions["supervisor"]
    assert isinstance(made, SupervisorAirflowConfiguration)
    assert made.socket_path == Path("/data/airflow/supervisor/supervisor.sock")
    assert made.config_path == Path("/data/airflow/supervisor/supervisor.conf")
    assert made.program["test"].command == "bash -c 'sleep 14400; exit 1'"
