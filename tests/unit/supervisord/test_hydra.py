"""A configuration's YAML through Hydra's ``_target_``."""

from __future__ import annotations

import sys
from datetime import time, timedelta
from pathlib import Path
from typing import Any

import pytest

from deferrable_ops.exceptions import ConfigurationError, InputError
from deferrable_ops.supervisord import (
    ProgramConfiguration,
    SupervisorAirflowConfiguration,
    SupervisorConfiguration,
    SupervisorSSHAirflowConfiguration,
    load_config,
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with config groups, as airflow-supervisor's users have it, and an empty file deep below its parent."""
    files = {
        "config/program/sleep.yaml": "sleep: {command: sleep 1000}",
        "config/program/echo.yaml": "echo: {_target_: deferrable_ops.supervisord.ProgramConfiguration, command: echo}",
        "config/all.yaml": "defaults: [{program: [sleep, echo]}, _self_]\nworking_dir: /data",
        "config/ssh.yaml": "defaults: [all, _self_]\n_target_: deferrable_ops.supervisord."
        "SupervisorSSHAirflowConfiguration\nssh_conn_id: jobs",
        "config/wrong.yaml": "program: {a: {command: x, typo: 1}}",
        "dags/deep/dag.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_files_of_a_folder_are_composed(folder: Path) -> None:
    chosen = load_config(overrides=["+program=[sleep,echo]"], basepath=folder / "dags" / "deep" / "dag.py")
    assert type(chosen) is SupervisorConfiguration
    assert list(chosen.program) == ["sleep", "echo"]
    whole = SupervisorAirflowConfiguration.load("config", "all", ["+exitcodes=[0,3]"], basepath=folder)
    assert type(whole) is SupervisorAirflowConfiguration
    assert whole.working_dir == Path("/data")
    assert whole.program["echo"].exitcodes == [0, 3]
    remote = SupervisorAirflowConfiguration.load("config", "ssh", basepath=str(folder))
    assert isinstance(remote, SupervisorSSHAirflowConfiguration)
    assert remote.ssh_conn_id == "jobs"
    assert list(SupervisorSSHAirflowConfiguration.load("config", "all", basepath=folder).program) == [
        "sleep",
        "echo",
    ]


def test_search_begins_at_the_calling_file(folder: Path) -> None:
    code = "from deferrable_ops.supervisord import load_config\nfound = load_config('config', 'all')"
    namespace: dict[str, Any] = {}
    exec(compile(code, str(folder / "dags" / "deep" / "dag.py"), "exec"), namespace)
    assert list(namespace["found"].program) == ["sleep", "echo"]


def test_composing_names_what_is_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no folder 'nowhere' in .* check config_dir="):
        load_config("nowhere", basepath=folder)
    with pytest.raises(InputError, match=r"no folder 'config' with the file missing.yaml"):
        load_config("config", "missing", basepath=folder)
    with pytest.raises(InputError, match="cannot be composed by Hydra"):
        load_config("config", "all", ["program=nothing"], basepath=folder)
    with pytest.raises(InputError, match=r"config/wrong is not a valid SupervisorConfiguration[^$]*typo"):
        load_config("config", "wrong", basepath=folder)
    monkeypatch.setitem(sys.modules, "hydra", None)
    with pytest.raises(ConfigurationError, match="pip install hydra-core"):
        load_config("config", "all", basepath=folder)
