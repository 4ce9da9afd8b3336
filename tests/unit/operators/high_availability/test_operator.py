"""The HighAvailabilityOperator and its tasks. Each known bug of airflow-ha has a test."""

from __future__ import annotations

import copy
import random
from datetime import UTC, datetime, time, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, Param, TaskGroup, task_group
from airflow.sdk.exceptions import DownstreamTasksSkipped, TaskDeferred
from airflow.serialization.serialized_objects import DagSerialization
from unit.high_availability.test_limit_functions import close_of_day, until_the_window

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.high_availability import (
    Action,
    FileCheck,
    HighAvailabilityOperator,
    HighAvailabilitySensor,
    HttpCheck,
    Result,
)
from deferrable_ops.outcome import Success, outcome_to_json
from deferrable_ops.testing import memory_inbox

CHECK = "my_checks.is_healthy"
START = datetime(2026, 3, 1, 22, tzinfo=UTC)
SUFFIXES = {"stop-pass", "stop-fail", "retrigger-pass", "retrigger-fail", "force-dag-fail"}


def operator(check: Any = CHECK, dag: DAG | None = None, **arguments: Any) -> HighAvailabilityOperator:
    with dag or DAG("dag", schedule=None, start_date=START):
        return HighAvailabilityOperator(**{"task_id": "ha", "python_callable": check, **arguments})


def context(
    conf: dict[str, Any] | None = None, params: dict[str, Any] | None = None, **moments: Any
) -> dict[str, Any]:
    run = {
        "dag_id": "dag",
        "run_id": "run",
        "run_type": "manual",
        "conf": conf,
        "start_date": START,
        **moments,
    }
    return {"dag_run": SimpleNamespace(**run), "params": params or {}}


def test_check_and_gates_start_in_the_triggerer() -> None:
    ha = operator()
    dag = ha.get_dag()
    assert dag is not None
    assert {task.task_id for task in dag.tasks} == {"ha", *(f"ha-{suffix}" for suffix in SUFFIXES)}
    assert {task.task_id: task.worker_start_reason for task in dag.tasks} == dict.fromkeys(dag.task_ids)
    back = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    assert all(back.get_task(task_id).start_from_trigger for task_id in dag.task_ids)
    assert back.get_task("ha").inherits_from_skipmixin, "the scheduler reads which gates it must skip"


def test_sensor_is_the_operator_and_decides_itself() -> None:
    ha = operator()
    assert HighAvailabilitySensor is HighAvailabilityOperator
    assert ha.decide_task is ha
    assert ha.trigger_rule == "none_failed"


def test_gates_follow_the_check_and_the_leaf_follows_gates_that_can_fail() -> None:
    ha = operator()
    dag = ha.get_dag()
    assert dag is not None
    assert ha.downstream_task_ids == {f"ha-{suffix}" for suffix in SUFFIXES}
    leaf = dag.get_task("ha-force-dag-fail")
    assert leaf.upstream_task_ids == {"ha", "ha-stop-fail", "ha-retrigger-fail"}
    assert not leaf.downstream_task_ids
    assert leaf.trigger_rule == "all_done"
    branches = (ha.stop_pass, ha.stop_fail, ha.retrigger_pass, ha.retrigger_fail)
    assert [branch.task_id for branch in branches] == [
        "ha-stop-pass",
        "ha-stop-fail",
        "ha-retrigger-pass",
        "ha-retrigger-fail",
    ]
    assert isinstance(ha.retrigger_pass, TriggerDagRunOperator)
    assert ha.retrigger_pass.trigger_dag_id == "dag"


def test_gates_ignore_default_retries_and_depends_on_past() -> None:
    defaults = {"retries": 3, "depends_on_past": True, "wait_for_downstream": True, "trigger_rule": "always"}
    ha = operator(dag=DAG("dag", schedule=None, start_date=START, default_args=defaults))
    for gate in ha.downstream_list:
        assert (gate.retries, gate.depends_on_past, gate.wait_for_downstream) == (0, False, False)
        assert gate.trigger_rule in ("all_success", "all_done")
    assert ha.retries == 3


def test_gates_start_in_the_triggerer_despite_pool_and_templates() -> None:
    ha = operator(
        pool="narrow",
        queue="gpu",
        pass_trigger_kwargs={"conf": '{"n": {{ ti.xcom_pull(task_ids="count") }}}'},
    )
    assert ha.worker_start_reason == "it is in the pool 'narrow'"
    assert {gate.worker_start_reason for gate in ha.downstream_list} == {None}
    assert {(gate.pool, gate.queue) for gate in ha.downstream_list} == {("narrow", "gpu")}


def test_failure_callback_is_called_once() -> None:
    ha = operator(on_failure_callback=print, on_retry_callback=repr)
    callbacks = {gate.task_id: bool(gate.on_failure_callback) for gate in ha.downstream_list}
    assert callbacks == {
        "ha-stop-pass": True,
        "ha-stop-fail": False,
        "ha-retrigger-pass": True,
        "ha-retrigger-fail": True,
        "ha-force-dag-fail": True,
    }


@pytest.mark.parametrize("place", ["check", "gate"])
def test_all_gates_start_if_one_has_a_callback_for_skipped_tasks(place: str) -> None:
    callback = {"on_skipped_callback": print}
    ha = operator(**callback) if place == "check" else operator(fail_trigger_kwargs=callback)
    assert not ha.inherits_from_skipmixin
    assert operator().inherits_from_skipmixin


def test_only_a_chosen_retrigger_ends_on_a_worker() -> None:
    ha = operator()
    assert ha.stop_pass.trigger_kwargs()["ends_on_worker"] == {}
    assert ha.stop_fail.trigger_kwargs()["ends_on_worker"] == {}
    assert ha.retrigger_pass.trigger_kwargs()["ends_on_worker"] == {
        "success": "only a worker can start a DAG run"
    }


def test_task_ids_have_the_group_prefix_once() -> None:
    with DAG("dag", schedule=None, start_date=START) as dag, TaskGroup("outer"), TaskGroup("inner"):
        ha = HighAvailabilityOperator(task_id="ha", python_callable=CHECK, task_display_name="Watch")
    assert set(dag.task_ids) == {"outer.inner.ha", *(f"outer.inner.ha-{suffix}" for suffix in SUFFIXES)}
    assert "outer.inner.ha-force-run" in dag.params
    assert ha.stop_pass.check_task_id == "outer.inner.ha"


def test_task_group_without_a_prefix_adds_none() -> None:
    with DAG("dag", schedule=None, start_date=START) as dag, TaskGroup("outer", prefix_group_id=False):
        HighAvailabilityOperator(task_id="ha", python_callable=CHECK)
    assert set(dag.task_ids) == {"ha", *(f"ha-{suffix}" for suffix in SUFFIXES)}


def test_arguments_are_not_changed() -> None:
    given = {
        "pass_trigger_kwargs": {"conf": {"counter": 1}, "note": "again"},
        "fail_trigger_kwargs": {"conf": '{"counter": 2}'},
        "op_kwargs": {"url": "https://x"},
        "op_args": [1],
    }
    before = copy.deepcopy(given)
    operator(**given)
    assert given == before


def test_same_arguments_make_two_operators() -> None:
    shared = {"conf": {"counter": 1}}
    with DAG("dag", schedule=None, start_date=START):
        one, other = (
            HighAvailabilityOperator(task_id=name, python_callable=CHECK, pass_trigger_kwargs=shared)
            for name in ("one", "other")
        )
    assert one.retrigger_pass.conf == other.retrigger_pass.conf == {"counter": 1}


def test_dag_has_params_for_forced_values() -> None:
    dag = operator().get_dag()
    assert dag is not None
    names = ("run", "runtime", "endtime", "maxretrigger", "retrigger")
    assert {f"ha-force-{name}": dag.params[f"ha-force-{name}"] for name in names} == {
        "ha-force-run": False,
        "ha-force-runtime": None,
        "ha-force-endtime": None,
        "ha-force-maxretrigger": None,
        "ha-force-retrigger": None,
    }
    assert dag.params.get_param("ha-force-runtime").resolve(1.5) == 1.5


def test_existing_params_of_the_dag_are_kept() -> None:
    dag = DAG("dag", schedule=None, start_date=START, params={"ha-force-runtime": Param(60, type="integer")})
    operator(dag=dag)
    assert dag.params["ha-force-runtime"] == 60


def test_params_do_not_make_other_tasks_start_on_a_worker() -> None:
    with DAG("dag", schedule=None, start_date=START):
        HighAvailabilityOperator(task_id="one", python_callable=CHECK)
        other = HighAvailabilityOperator(task_id="other", python_callable=CHECK)
    assert other.worker_start_reason is None


def test_trigger_kwargs() -> None:
    with DAG("dag", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)):
        ha = HighAvailabilityOperator(
            task_id="ha",
            python_callable=HttpCheck("https://x/health", on_fail=Action.STOP),
            poke_interval=timedelta(seconds=5),
            runtime=1.5,
            endtime=time(6),
            maxretrigger=0,
            failure_threshold=3,
            exponential_backoff=True,
            jitter=0.1,
            mode="reschedule",
        )
    kwargs = ha.trigger_kwargs()
    assert kwargs["check"] == "deferrable_ops.checks.http.HttpCheck"
    assert kwargs["op_kwargs"]["url"] == "https://x/health"
    assert kwargs["op_kwargs"]["on_fail"] == "stop"
    assert kwargs["rules"] == {
        "limits": {"runtime": 1.5, "endtime": "06:00:00", "maxretrigger": 0},
        "reference_date": "data_interval_end",
        "timezone": "UTC",
        "thresholds": {"success": 1, "failure": 3},
        "pace": {"interval": 5.0, "backoff": True, "max_wait": 600.0, "jitter": 0.1},
    }
    assert "backoff" not in ha.retrigger_fail.trigger_kwargs()


@pytest.mark.parametrize(
    "check",
    [lambda: None, random.Random().random, HttpCheck],
    ids=["a lambda", "a method", "a class of ours"],
)
def test_check_runs_on_a_worker_only_if_a_triggerer_cannot_import_it(check: Any) -> None:
    because = operator(check).worker_start_reason
    assert (because is None) == (check is HttpCheck)
    if check is not HttpCheck:
        assert "python_callable is" in str(because)


def test_object_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(InputError, match="is not a check"):
        operator(SimpleNamespace())


async def test_deferring_worker_passes_the_run_to_the_trigger() -> None:
    ha = operator(pool="narrow")
    ti = SimpleNamespace(
        id="01a1fd9a-991e-7f0c-8071-3e438f570c00",
        try_number=1,
        dag_id="dag",
        run_id="run",
        task_id="ha",
        map_index=-1,
    )
    async with memory_inbox():
        with pytest.raises(TaskDeferred) as deferred:
            ha.execute({**context(conf={"counter": 3}), "ti": ti})  # type: ignore[typeddict-item]
    _, kwargs = deferred.value.trigger.serialize()
    assert kwargs["run_facts"]["conf"] == {"counter": 3}
    assert kwargs["run_facts"]["moments"]["start_date"] == START.isoformat()
    assert kwargs["attempt"]["task_id"] == "ha"


def test_end_conditions_are_those_of_airflow_ha() -> None:
    ha = operator(runtime=3600, endtime="06:00", maxretrigger=2, reference_date="start_date")
    now = datetime.now(UTC)
    assert ha.check_end_conditions(**context(start_date=now)) is None
    assert ha.check_end_conditions(**context()) == (Result.PASS, Action.STOP)
    assert ha.check_end_conditions(**context(conf={"airflow_ha_force_run": True})) is None
    assert ha.check_end_conditions(**context(params={"ha-force-run": True})) is None
    used_up = context(conf={"ha-retrigger": "2"}, start_date=now)
    assert ha.check_end_conditions(**used_up) == (None, Action.STOP)
    forced = context(conf={"ha-retrigger": "2"}, params={"ha-force-maxretrigger": 3}, start_date=now)
    assert ha.check_end_conditions(**forced) is None


def test_retrigger_count_and_initial_run() -> None:
    ha = operator()
    assert ha.get_retrigger_count(**context()) == 0
    assert ha.is_initial_run(**context())
    assert ha.get_retrigger_count(**context(conf={"ha-retrigger": "2"})) == 2
    assert not ha.is_initial_run(**context(conf={"ha-retrigger": 2}))


def test_operator_cannot_be_mapped() -> None:
    with pytest.raises(InputError, match="cannot be mapped"):
        HighAvailabilityOperator.partial(task_id="ha")


@pytest.mark.parametrize(
    "decided, left",
    [
        (["pass", "stop"], {"stop-pass"}),
        (["pass", "retrigger"], {"retrigger-pass"}),
        (["fail", "stop"], {"stop-fail", "force-dag-fail"}),
        (["fail", "retrigger"], {"retrigger-fail", "force-dag-fail"}),
    ],
)
def test_worker_skips_the_gates_of_a_mapped_task_group(decided: list[str], left: set[str]) -> None:
    with DAG("dag", schedule=None, start_date=START) as dag:

        @task_group
        def watched(_number: int) -> None:
            HighAvailabilityOperator(task_id="ha", python_callable=CHECK)

        watched.expand(_number=[1, 2])
    ha: Any = dag.get_task("watched.ha")
    assert set(ha.trigger_kwargs()["ends_on_worker"]) == {"success"}
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(map_index=1, xcom_push=lambda key, value: pushed.update({key: value}))
    event = {"outcome": outcome_to_json(Success(decided))}
    with pytest.raises(DownstreamTasksSkipped) as skipped:
        ha.execute_complete({"ti": ti}, event)
    assert pushed == {"return_value": decided}
    gates = {task_id.removeprefix("watched.ha-") for task_id in ha.downstream_task_ids}
    assert set(skipped.value.tasks) == {(f"watched.ha-{name}", 1) for name in gates - left}


def test_gates_with_a_callback_start_in_a_mapped_task_group_too() -> None:
    with DAG("dag", schedule=None, start_date=START) as dag:

        @task_group
        def watched(_number: int) -> None:
            HighAvailabilityOperator(task_id="ha", python_callable=CHECK, on_skipped_callback=print)

        watched.expand(_number=[1, 2])
    ha: Any = dag.get_task("watched.ha")
    assert "success" not in ha.trigger_kwargs()["ends_on_worker"]
    assert ha.execute_complete({}, {"outcome": outcome_to_json(Success(["pass", "stop"]))}) == [
        "pass",
        "stop",
    ]


def test_argument_that_is_not_serializable_is_allowed_on_a_worker() -> None:
    ha = operator(lambda fn: fn(), op_kwargs={"fn": print})
    assert ha.worker_start_reason == "python_callable is a lambda"


def test_file_check_takes_a_path() -> None:
    from pathlib import Path

    ha = operator(FileCheck(Path("/tmp/alive"), max_age=60))
    assert ha.trigger_kwargs()["op_kwargs"]["file"] == "/tmp/alive"


@pytest.mark.parametrize("close", [close_of_day, f"{close_of_day.__module__}:close_of_day"])
def test_limit_may_be_a_function_of_the_run(close: Any) -> None:
    # The module of the function is no DAG file.
    dag = DAG("dag", schedule=None, start_date=START)
    dag.fileloc = "/nowhere/dag.py"
    ha = operator(dag=dag, endtime=close, runtime="no.such.package.runtime")
    path = f"{close_of_day.__module__}:close_of_day"
    assert ha.rules["limits"] == {
        "runtime_function": "no.such.package.runtime",
        "endtime_function": path,
    }
    assert ha.worker_start_reason is None


def test_function_that_a_triggerer_cannot_import_is_refused_as_a_limit() -> None:
    with pytest.raises(InputError, match=r"endtime is a lambda, so a triggerer cannot call it; move"):
        operator(endtime=lambda: None)
    with pytest.raises(
        InputError, match=r"runtime is in test_limit_functions\.py, which only workers can import"
    ):
        operator(runtime=close_of_day)


def test_end_conditions_use_the_computed_limit() -> None:
    dag = DAG("dag", schedule=None, start_date=START)
    dag.fileloc = "/nowhere/dag.py"
    ha = operator(dag=dag, runtime=until_the_window, reference_date="start_date")
    # The run started at 22:00 in March, and its window began at 23:00.
    assert ha.check_end_conditions(**context()) == (Result.PASS, Action.STOP)
    later = datetime.now(UTC) + timedelta(days=1)
    assert ha.check_end_conditions(**context(start_date=later)) is None
