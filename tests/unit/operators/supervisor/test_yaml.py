"""The YAML of airflow-supervisor with the module's name changed, through Hydra, airflow-config and airflow-pydantic.

Of airflow-config's own part, two names have changed since airflow-supervisor's README was written: ``default_args``, of
the type ``DefaultArgs``, is ``default_task_args`` (``TaskArgs``), and ``all_dags`` is ``default_dag_args``.
"""

from __future__ import annotations

import importlib
import importlib.util
import runpy
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from airflow.sdk import DAG

from deferrable_ops.exceptions import ConfigurationError, InputError
from deferrable_ops.operators import supervisor as operators
from deferrable_ops.operators.supervisor import (
    Supervisor,
    SupervisorAirflowConfiguration,
    SupervisorSSH,
    SupervisorSSHAirflowConfiguration,
)

airflow_config: Any = pytest.importorskip("airflow_config")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated.*"),
]

README = """
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
    _target_: airflow_supervisor.SupervisorAirflowConfiguration
    airflow:
      _target_: airflow_supervisor.AirflowConfiguration
      port: "*:9091"
    working_dir: "/data/airflow/supervisor"
    config_path: "/data/airflow/supervisor/supervisor.conf"
    program:
      test:
        _target_: airflow_supervisor.ProgramConfiguration
        command: "bash -c 'sleep 14400; exit 1'"
"""

TASKS = """
# @package _global_
_target_: airflow_config.Configuration
dags:
  example_dag:
    schedule: "0 3 * * *"
    start_date: 2023-01-01
    tasks:
      before:
        _target_: airflow_pydantic.BashTask
        bash_command: echo
      run:
        _target_: airflow_supervisor.SupervisorSSHTask
        dependencies: [before]
        conf: {venue: LSE}
        retries: 2
        cfg:
          _target_: airflow_supervisor.SupervisorSSHAirflowConfiguration
          check_interval: 10
          check_timeout: 60
          endtime: 23:00:00
          maxretrigger: 5
          runtime: 360
          ssh_operator_args:
            cmd_timeout: 63
          cleanup: false
          restart_on_retrigger: false
          restart_on_initial: true
          stop_on_exit: false
          working_dir: /data
          policies:
            echo: {exit_codes: {0: success, 3: skip}}
          program:
            echo:
              _target_: airflow_supervisor.ProgramConfiguration
              command: echo "hello"
            sleep:
              _target_: airflow_supervisor.ProgramConfiguration
              command: sleep 1000
        host:
          _target_: airflow_pydantic.Host
          name: my-remote-host
          os: rhel
        port:
          _target_: airflow_pydantic.Port
          name: my-remote-port
          host: ${..host}
          port: 8080
      after:
        _target_: airflow_pydantic.BashTask
        bash_command: echo
        dependencies: [run, run.restart_programs]
"""

BASES = "deferrable_ops.operators.airflow_config_models"
CFG = {"working_dir": "/data", "program": {"echo": {"command": "echo"}}}


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """Load a YAML file of airflow-supervisor, with the module's name changed."""
    (tmp_path / "config").mkdir()

    def load(text: str) -> Any:
        changed = text.replace("airflow_supervisor.", "deferrable_ops.operators.supervisor.")
        (tmp_path / "config" / "airflow.yaml").write_text(changed)
        return airflow_config.load_config("config", "airflow", basepath=str(tmp_path))

    return load


@pytest.fixture
def dag() -> Iterator[DAG]:
    with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)) as dag:
        yield dag


def test_readmes_file_makes_its_configuration_and_its_dag(load: Any) -> None:
    with pytest.warns(UserWarning, match="only the Unix socket is used"):
        config = load(README)
    made = config.extensions["supervisor"]
    assert isinstance(made, SupervisorAirflowConfiguration)
    assert made.socket_path == Path("/data/airflow/supervisor/supervisor.sock")
    assert made.config_path == Path("/data/airflow/supervisor/supervisor.conf")
    assert made.program["test"].command == "bash -c 'sleep 14400; exit 1'"
    with airflow_config.DAG(dag_id="test-supervisor", config=config) as dag:
        Supervisor(dag=dag, cfg=made)
    assert "test-supervisor-check-programs" in dag.task_ids


def test_tasks_of_a_file_are_made_and_chained(load: Any) -> None:
    dag = airflow_config.DAG(dag_id="example_dag", config=load(TASKS))
    assert dag.get_task("example_dag-configure-supervisor").upstream_task_ids == {"before"}
    assert dag.get_task("after").upstream_task_ids == {
        "example_dag-check-programs-stop-pass",
        "example_dag-restart-programs",
    }
    assert dag.get_task("example_dag-start-programs").retries == 2
    assert dag.get_task("example_dag-check-programs").limits.maxretrigger == 5
    assert dag.get_task("example_dag-check-programs-retrigger-pass").conf == {"venue": "LSE"}


def test_file_is_rendered_as_a_dag_that_makes_the_same_tasks(load: Any) -> None:
    config = load(TASKS)
    made: dict[str, Any] = {}
    exec(config.dags["example_dag"].render(), made)
    rendered, instantiated = made["dag"], airflow_config.DAG(dag_id="example_dag", config=config)
    assert {one.task_id: one.upstream_task_ids for one in rendered.tasks} == {
        one.task_id: one.upstream_task_ids for one in instantiated.tasks
    }
    started = "example_dag-start-supervisor"
    assert rendered.get_task(started).configuration == instantiated.get_task(started).configuration
    supervisor = made["run"]
    assert supervisor.cfg.ssh_operator_args.remote_host == "my-remote-host"
    assert supervisor.cfg.ssh_operator_args.cmd_timeout == 63
    assert supervisor.cfg.policies["echo"].exit_codes[3] == "skip"


@pytest.mark.filterwarnings("ignore:.*only the Unix socket is used")
def test_configuration_is_found_beside_the_calling_file(load: Any, tmp_path: Path) -> None:
    load(README)
    file = tmp_path / "my_dag.py"
    file.write_text(
        "from deferrable_ops.operators.supervisor import load_airflow_config\n"
        "cfg = load_airflow_config('config', 'airflow', ['+extensions.supervisor.check_interval=17'])\n"
    )
    assert runpy.run_path(str(file))["cfg"].check_interval.total_seconds() == 17
    with pytest.raises(InputError, match=r"extensions\.daemon of config/airflow is not a configuration"):
        operators.load_airflow_config("config", "airflow", basepath=tmp_path, extension="daemon")


def test_missing_airflow_config_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "airflow_config", None)
    with pytest.raises(ConfigurationError, match=r'pip install "airflow-config\[airflow3\]"'):
        operators.load_airflow_config("config", "airflow")


@pytest.fixture(params=["with", "without"])
def models(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The models, with airflow-pydantic and without it."""
    if request.param == "without":
        found = importlib.util.find_spec
        missing = "airflow_pydantic"
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name == missing else found(name, *rest)
        )
    name = "deferrable_ops.operators.supervisor.airflow_config_tasks"
    for imported in (name, BASES):
        monkeypatch.delitem(sys.modules, imported, raising=False)
    module = importlib.import_module(name)
    is_airflow_pydantic = module.SupervisorTask.__mro__[1].__module__.startswith("airflow_pydantic")
    assert is_airflow_pydantic == (request.param == "with")
    for imported in (name, BASES):
        monkeypatch.delitem(sys.modules, imported)
    return module


def some_host() -> str:
    return "picked.example.com"


def test_model_makes_its_supervisor(models: ModuleType, dag: DAG) -> None:
    task = models.SupervisorTask(task_id="run", cfg=CFG, retries=3, name="web")
    made = task.instantiate(dag=dag)
    assert isinstance(made, Supervisor)
    assert made.start_supervisor.task_id == "web-start-supervisor"
    assert made.start_supervisor.retries == 3


@pytest.mark.parametrize(
    "host", [some_host, f"{__name__}.some_host", "picked.example.com", {"name": "picked.example.com"}]
)
def test_model_accepts_a_host_name_a_function_or_its_path(
    models: ModuleType, dag: DAG, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[some_host.__module__])
    task = models.SupervisorSSHTask(
        task_id="run", cfg={**CFG, "username": "u", "password": "hunter22"}, host=host, port=lambda: 9010
    )
    made = task.instantiate(dag=dag)
    assert isinstance(made, SupervisorSSH)
    assert made.cfg.ssh_operator_args.remote_host == "picked.example.com"
    assert made.cfg.airflow.port == "*:9010"
    assert "hunter22" not in f"{task!r} {task.model_dump_json(exclude={'port'})}"


def test_model_accepts_a_subclass_as_operator(models: ModuleType, dag: DAG) -> None:
    class Mine(Supervisor):
        pass

    assert type(models.SupervisorTask(task_id="run", cfg=CFG, operator=Mine).instantiate(dag=dag)) is Mine
    with pytest.raises(ValueError, match="is not Supervisor or a subclass; give one of these classes"):
        models.SupervisorTask(task_id="run", cfg=CFG, operator="datetime.datetime")


def test_all_names_of_airflow_supervisor_exist() -> None:
    for name in (
        "SupervisorOperator",
        "SupervisorOperatorArgs",
        "SupervisorTaskArgs",
        "SupervisorSSHOperator",
    ):
        assert getattr(operators, name) is not None
    assert operators.SupervisorTask is operators.SupervisorOperator
    assert all(hasattr(operators, name) for name in operators.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'SupervisorThing'"):
        _ = operators.SupervisorThing
    assert isinstance(operators.SupervisorSSHTaskArgs(cfg=CFG).cfg, SupervisorSSHAirflowConfiguration)
