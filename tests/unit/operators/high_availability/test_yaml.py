"""A YAML file of airflow-ha with the module's name changed, through Hydra, airflow-config and airflow-pydantic."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from airflow.sdk import DAG

from deferrable_ops.operators import high_availability as operators
from deferrable_ops.operators.high_availability import (
    Action,
    HighAvailabilityOperator,
    HttpCheck,
    Result,
    TcpCheck,
)

airflow_config: Any = pytest.importorskip("airflow_config")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated.*"),
]

CONFIG = """
# @package _global_
_target_: airflow_config.Configuration
dags:
  service:
    schedule: "0 3 * * *"
    start_date: 2023-01-01
    tasks:
      before:
        _target_: airflow_pydantic.BashTask
        bash_command: echo
      watch:
        _target_: airflow_ha.HighAvailabilityTask
        dependencies: [before]
        python_callable: {name}.check
        runtime: 120
        endtime: "18:00:00"
        maxretrigger: 2
        conf: {{venue: LSE}}
      ping:
        _target_: airflow_ha.HighAvailabilityTask
        python_callable:
          _target_: airflow_ha.HttpCheck
          url: https://orders.example.com/health
"""
BASES = "deferrable_ops.operators.airflow_config_models"
MODELS = "deferrable_ops.operators.high_availability.airflow_config_tasks"


def check() -> tuple[Result, Action]:
    return Result.PASS, Action.STOP


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[check.__module__])
    (tmp_path / "config").mkdir()
    changed = CONFIG.format(name=__name__).replace(
        "airflow_ha.", "deferrable_ops.operators.high_availability."
    )
    (tmp_path / "config" / "airflow.yaml").write_text(changed)
    return airflow_config.load_config("config", "airflow", basepath=str(tmp_path))


@pytest.fixture
def dag() -> Iterator[DAG]:
    with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)) as dag:
        yield dag


@pytest.fixture(params=["with", "without"])
def models(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The models, with airflow-pydantic and without it."""
    if request.param == "without":
        found = importlib.util.find_spec
        missing = "airflow_pydantic"
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name == missing else found(name, *rest)
        )
    for imported in (MODELS, BASES):
        monkeypatch.delitem(sys.modules, imported, raising=False)
    module = importlib.import_module(MODELS)
    is_airflow_pydantic = module.HighAvailabilityTask.__mro__[1].__module__.startswith("airflow_pydantic")
    assert is_airflow_pydantic == (request.param == "with")
    for imported in (MODELS, BASES):
        monkeypatch.delitem(sys.modules, imported)
    return module


def test_tasks_of_a_file_are_made_and_chained(config: Any) -> None:
    dag = airflow_config.DAG(dag_id="service", config=config)
    watch = dag.get_task("watch")
    assert watch.upstream_task_ids == {"before"}
    assert (watch.limits.runtime, watch.limits.endtime, watch.limits.maxretrigger) == (120, "18:00:00", 2)
    assert watch.python_callable is check
    assert watch.retrigger_fail.conf == {"venue": "LSE"}
    assert dag.get_task("ping").check == "deferrable_ops.checks.http.HttpCheck"
    assert "ping-force-dag-fail" in dag.task_ids


def test_file_is_rendered_as_a_dag_that_makes_the_same_tasks(config: Any) -> None:
    del config.dags["service"].tasks["ping"]
    made: dict[str, Any] = {}
    exec(config.dags["service"].render(), made)
    assert made["watch"].python_callable is check
    assert made["watch"].limits.maxretrigger == 2


@pytest.mark.parametrize(
    "given", [check, f"{check.__module__}.check", TcpCheck("h", 1), HttpCheck("https://x")]
)
def test_model_makes_its_operator(models: ModuleType, dag: DAG, given: Any) -> None:
    task = models.HighAvailabilityTask(task_id="watch", python_callable=given, retries=3)
    made = task.instantiate(dag=dag)
    assert isinstance(made, HighAvailabilityOperator)
    assert made.retries == 3
    assert made.python_callable is check or made.check in (
        "deferrable_ops.checks.tcp.TcpCheck",
        "deferrable_ops.checks.http.HttpCheck",
    )


def test_model_accepts_a_subclass_as_operator(models: ModuleType, dag: DAG) -> None:
    class Mine(HighAvailabilityOperator):
        pass

    task = models.HighAvailabilityTask(task_id="watch", python_callable=check, operator=Mine)
    assert type(task.instantiate(dag=dag)) is Mine
    with pytest.raises(ValueError, match="is not HighAvailabilityOperator or a subclass"):
        models.HighAvailabilityTask(task_id="watch", python_callable=check, operator="datetime.datetime")


def test_all_names_of_airflow_ha_exist() -> None:
    for name in (
        "HighAvailabilitySensorTask",
        "HighAvailabilitySensorTaskArgs",
        "HighAvailabilityTask",
        "HighAvailabilityTaskArgs",
    ):
        assert getattr(operators, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = operators.Nothing
