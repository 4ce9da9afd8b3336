"""The tasks of a Supervisor, their dependencies, and tasks chained to or replacing them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, BaseOperator, TaskGroup, chain, task
from airflow.serialization.serialized_objects import DagSerialization
from unit.high_availability.test_limit_functions import close_of_day

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.high_availability import HighAvailabilityOperator
from deferrable_ops.operators.supervisor import (
    ProgramConfiguration,
    Supervisor,
    SupervisorAirflowConfiguration,
    SupervisorLocal,
    SupervisorRemote,
    SupervisorSSH,
)
from deferrable_ops.triggers.supervisor.configuration import load_configuration, serialize_configuration

PASSWORD = "correct horse battery"
BRANCHES = {"stop-pass", "stop-fail", "retrigger-pass", "retrigger-fail"}
PATH = ("configure-supervisor", "start-supervisor", "start-programs", "check-programs")
STOPS = ("stop-programs", "stop-supervisor", "unconfigure-supervisor")
OWN = {*PATH, *STOPS, "restart-programs", "teardown", "force-kill-dag", "force-kill", "check-config-failed"}


def cfg(**fields: Any) -> SupervisorAirflowConfiguration:
    given: dict[str, Any] = {
        "working_dir": "/data/sup",
        "program": {"test": ProgramConfiguration(command="sleep 10")},
    }
    return SupervisorAirflowConfiguration(**{**given, **fields})


def new_dag(dag_id: str = "d", **arguments: Any) -> DAG:
    return DAG(dag_id, schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), **arguments)


@pytest.fixture
def dag() -> Iterator[DAG]:
    with new_dag() as dag:
        yield dag


def short(task_ids: Any) -> set[str]:
    return {task_id.removeprefix("d-") for task_id in task_ids}


def test_every_step_is_a_task_named_after_the_dag(dag: DAG) -> None:
    Supervisor(dag=dag, cfg=cfg())
    branches = {f"check-programs-{suffix}" for suffix in (*BRANCHES, "force-dag-fail")}
    assert short(dag.task_ids) == OWN | branches
    assert {t.task_id: t.worker_start_reason for t in dag.tasks} == dict.fromkeys(dag.task_ids)
    back = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    assert all(back.get_task(task_id).start_from_trigger for task_id in dag.task_ids)


def test_steps_follow_each_other_and_the_teardown_follows_every_branch(dag: DAG) -> None:
    supervisor = Supervisor(dag=dag, cfg=cfg())
    for before, after in pairwise(PATH):
        assert short(dag.get_task(f"d-{after}").upstream_task_ids) == {before}
    assert short(supervisor.teardown.upstream_task_ids) == {f"check-programs-{name}" for name in BRANCHES}
    assert short(supervisor.stop_programs.upstream_task_ids) == {"teardown"}
    assert short(supervisor.stop_supervisor.upstream_task_ids) == {"stop-programs"}
    assert short(supervisor.unconfigure_supervisor.upstream_task_ids) == {"stop-supervisor"}
    assert short(supervisor.restart_programs.upstream_task_ids) == {"check-programs-retrigger-fail"}
    assert short(supervisor.force_kill.upstream_task_ids) == {"force-kill-dag"}
    alarm = dag.get_task("d-check-config-failed")
    assert short(alarm.upstream_task_ids) == {*PATH[:3], "restart-programs", *STOPS}
    assert not alarm.downstream_task_ids


def test_teardown_steps_are_airflow_teardowns(dag: DAG) -> None:
    supervisor = Supervisor(dag=dag, cfg=cfg())
    stops = [supervisor.stop_programs, supervisor.stop_supervisor, supervisor.unconfigure_supervisor]
    assert {t.task_id for t in dag.tasks if t.is_teardown} == {
        supervisor.teardown.task_id,
        *(t.task_id for t in stops),
        "d-check-config-failed",
    }
    assert {t.trigger_rule for t in stops} == {"all_done_setup_success"}  # without a setup: all_done
    # Airflow sets a run's state by its leaves, and by teardowns only with on_failure_fail_dagrun.
    assert [t.task_id for t in dag.tasks if t.on_failure_fail_dagrun] == ["d-check-config-failed"]
    assert dag.get_task("d-check-config-failed").leaf_task_id == "d-check-programs-force-dag-fail"


def test_check_needs_successful_start_steps(dag: DAG) -> None:
    supervisor = Supervisor(dag=dag, cfg=cfg())
    assert supervisor.check_programs.trigger_rule == "all_success"  # a skipped upstream task skips it, too


def test_each_property_is_the_step_of_its_name(dag: DAG) -> None:
    supervisor = Supervisor(dag=dag, cfg=cfg())
    for name in (*PATH, *STOPS, "restart-programs", "force-kill"):
        found: BaseOperator = getattr(supervisor, name.replace("-", "_"))
        assert found.task_id == f"d-{name}"
        assert supervisor.tasks[name] is found
    assert isinstance(supervisor.check_programs, HighAvailabilityOperator)
    assert supervisor.check_programs.retrigger_fail.task_id == "d-check-programs-retrigger-fail"
    assert SupervisorLocal is Supervisor
    assert SupervisorRemote is SupervisorSSH


def test_check_has_the_limits_of_the_configuration(dag: DAG) -> None:
    config = cfg(
        check_interval=7,
        check_timeout=timedelta(hours=1),
        runtime=600,
        endtime="23:30",
        maxretrigger=4,
        reference_date="start_date",
        retrigger_delay=3,
        retrigger_reset_after=timedelta(hours=2),
    )
    check = Supervisor(dag=dag, cfg=config).check_programs
    assert (check.poke_interval, check.timeout, check.reference_date) == (7, 3600, "start_date")
    assert (check.limits.runtime, check.limits.endtime, check.limits.maxretrigger) == (600, "23:30:00", 4)
    for gate in (check.retrigger_pass, check.retrigger_fail):
        assert gate.trigger_kwargs()["backoff"] == {"delay": 3, "reset_after": 7200}
    for step in (*PATH[:3], "restart-programs"):
        assert dag.get_task(f"d-{step}").rules == check.rules
    assert dag.get_task("d-stop-programs").rules is None


def test_dag_has_one_run_at_a_time_and_no_catch_up() -> None:
    dag = new_dag(catchup=True, max_active_runs=16, max_active_tasks=9)
    Supervisor(dag, cfg())
    assert (dag.catchup, dag.max_active_runs) == (False, 1)
    assert dag.max_active_tasks == 9  # other tasks may run at the same time


@pytest.mark.parametrize("how", ["operators", "lists", "methods", "chain"])
def test_tasks_are_chained_before_and_after_it(dag: DAG, how: str) -> None:
    before, after = EmptyOperator(task_id="before"), EmptyOperator(task_id="after")
    supervisor = Supervisor(cfg=cfg())
    match how:
        case "operators":
            before >> supervisor >> after
        case "lists":
            [before] >> supervisor
            supervisor >> [after]
        case "methods":
            supervisor.set_upstream(before)
            supervisor.set_downstream([after])
        case "chain":
            chain(before, supervisor, after)
    assert supervisor.configure_supervisor.upstream_task_ids == {"before"}
    assert short(after.upstream_task_ids) == {"check-programs-stop-pass", "unconfigure-supervisor"}


def test_tasks_are_chained_with_left_shift(dag: DAG) -> None:
    before, after = EmptyOperator(task_id="before"), EmptyOperator(task_id="after")
    after << Supervisor(cfg=cfg()) << before
    assert before.downstream_task_ids == {"d-configure-supervisor"}
    assert short(after.upstream_task_ids) == {"check-programs-stop-pass", "unconfigure-supervisor"}


def test_two_supervisors_follow_each_other_by_their_names(dag: DAG) -> None:
    first, second = Supervisor(cfg=cfg(), name="web"), Supervisor(cfg=cfg(working_dir="/data/b"), name="db")
    first >> second
    assert second.configure_supervisor.upstream_task_ids == {
        "web-check-programs-stop-pass",
        "web-unconfigure-supervisor",
    }


@pytest.mark.parametrize(
    "fields, last",
    [
        ({}, {"unconfigure-supervisor"}),
        ({"cleanup": False}, {"stop-supervisor"}),
        ({"stop_on_exit": False}, set()),
    ],
)
def test_downstream_waits_for_no_step_that_is_always_skipped(
    dag: DAG, fields: dict[str, Any], last: set[str]
) -> None:
    after = EmptyOperator(task_id="after")
    Supervisor(cfg=cfg(**fields)) >> after
    assert short(after.upstream_task_ids) == {"check-programs-stop-pass"} | last


def test_steps_without_cleanup_are_skipped(dag: DAG) -> None:
    kept = Supervisor(cfg=cfg(cleanup=False))
    assert "cleanup=False" in kept.unconfigure_supervisor.trigger_kwargs()["skip_because"]
    assert "skip_because" not in kept.stop_supervisor.trigger_kwargs()
    goes_on = Supervisor(cfg=cfg(stop_on_exit=False), name="other")
    assert goes_on.teardown.trigger_kwargs()["stop_on_exit"] is False


def test_ids_in_a_task_group_have_its_name_once_and_refer_to_each_other_by_it(dag: DAG) -> None:
    with TaskGroup("outer"):
        supervisor = Supervisor(cfg=cfg())
    assert all(task_id.startswith("outer.d-") for task_id in dag.task_ids)
    assert supervisor.teardown.trigger_kwargs()["first_task_id"] == "outer.d-configure-supervisor"
    assert supervisor.start_programs.trigger_kwargs()["check_task_id"] == "outer.d-check-programs"
    assert supervisor.stop_programs.trigger_kwargs()["gate_task_id"] == "outer.d-teardown"
    assert dag.get_task("outer.d-force-kill-dag").clears == "outer.d-force-kill"


def test_user_task_replaces_a_step(dag: DAG) -> None:
    @task
    def page_somebody() -> None: ...

    mine = page_somebody()
    supervisor = Supervisor(cfg=cfg(), steps={"restart-programs": mine})
    assert supervisor.restart_programs is mine.operator
    assert mine.operator.upstream_task_ids == {"d-check-programs-retrigger-fail"}
    assert "d-restart-programs" not in dag.task_ids


def test_subclass_creates_a_step(dag: DAG) -> None:
    class Mine(Supervisor):
        def get_step_operator(self, step: str) -> Any:
            if step == "stop-programs":
                return EmptyOperator(task_id="drain", dag=self.dag)
            return super().get_step_operator(step)

    supervisor = Mine(cfg=cfg())
    assert supervisor.stop_programs.task_id == "drain"
    assert supervisor.stop_supervisor.upstream_task_ids == {"drain"}


@pytest.mark.parametrize(
    "step, message",
    [
        (
            {"begin": EmptyOperator},
            "steps= has the key 'begin', which is not a step; use one of configure-supervisor",
        ),
        ({"stop-programs": print}, r"steps\['stop-programs'\] is a builtin_function_or_method"),
        ({"check-programs": EmptyOperator}, r"steps\['check-programs'\] must be a HighAvailabilityOperator"),
    ],
)
def test_invalid_replacement_of_a_step_is_refused(dag: DAG, step: dict[str, Any], message: str) -> None:
    steps = {name: made(task_id="mine") if made is EmptyOperator else made for name, made in step.items()}
    with pytest.raises(InputError, match=message):
        Supervisor(cfg=cfg(), steps=steps)


def secret() -> SupervisorAirflowConfiguration:
    return cfg(port="127.0.0.1:9001", username="airflow", password=PASSWORD)


def serialized(dag: DAG) -> str:
    return json.dumps(DagSerialization.to_dict(dag), sort_keys=True)


def test_dag_is_the_same_at_each_parse_without_secrets() -> None:
    parses = []
    for _ in range(2):
        with new_dag() as dag:
            Supervisor(cfg=secret())
        parses.append(serialized(dag))
    assert parses[0] == parses[1]
    assert PASSWORD not in parses[0]
    # Airflow's TriggerDagRunOperator has template fields; they contain nothing of the configuration.
    assert short(t.task_id for t in dag.tasks if t.template_fields) == {
        "check-programs-retrigger-pass",
        "check-programs-retrigger-fail",
    }


def test_no_attribute_contains_a_secret(dag: DAG) -> None:
    Supervisor(cfg=secret())
    for one in dag.tasks:
        assert PASSWORD not in f"{one!r} {vars(one)} {getattr(one, 'start_trigger_args', None)}", one.task_id


def test_example_of_airflow_supervisor_makes_its_dag() -> None:
    from deferrable_ops.operators.supervisor import AirflowConfiguration

    with pytest.warns(UserWarning, match="only the Unix socket is used"):
        config = SupervisorAirflowConfiguration(
            airflow=AirflowConfiguration(port="*:9091"),
            working_dir="/data/airflow/supervisor",
            config_path="/data/airflow/supervisor/supervisor.conf",
            program={"test": ProgramConfiguration(command="bash -c 'sleep 14400; exit 1'")},
        )
    with DAG(
        dag_id="test-supervisor",
        schedule=timedelta(days=1),
        start_date=datetime(2024, 1, 1, tzinfo=UTC),
        catchup=False,
    ) as dag:
        supervisor = Supervisor(dag=dag, cfg=config)
    assert supervisor.cfg.socket_path == Path("/data/airflow/supervisor/supervisor.sock")
    assert "test-supervisor-configure-supervisor" in dag.task_ids


def test_teardown_steps_are_retried(dag: DAG) -> None:
    supervisor = Supervisor(cfg=cfg())
    stops = [supervisor.task_of(step) for step in STOPS]
    assert {task.retries for task in stops} == {3}
    assert {task.retry_delay for task in stops} == {timedelta(seconds=30)}
    others = OWN - {*STOPS}
    assert {supervisor.task_of(step).retries for step in others} == {0}


def test_retries_of_the_supervisor_apply_to_teardown_steps(dag: DAG) -> None:
    supervisor = Supervisor(cfg=cfg(), retries=1, retry_delay=timedelta(seconds=7))
    assert (supervisor.stop_programs.retries, supervisor.start_programs.retries) == (1, 1)
    assert supervisor.stop_programs.retry_delay == timedelta(seconds=7)


@pytest.mark.parametrize(("given", "retries"), [(0, 3), (5, 5)])
def test_default_args_do_not_lower_the_retries_of_teardown_steps(given: int, retries: int) -> None:
    defaults = {"retries": given, "retry_delay": timedelta(seconds=7)}
    with new_dag(default_args=defaults):
        supervisor = Supervisor(cfg=cfg())
    assert supervisor.stop_supervisor.retries == retries
    assert supervisor.stop_supervisor.retry_delay == timedelta(seconds=7)
    assert supervisor.start_supervisor.retries == given


@pytest.mark.parametrize(("given", "seconds"), [(None, 7 * 86_400.0), (timedelta(minutes=2), 120.0)])
def test_airflow_does_not_end_a_step_before_its_own_timeout(
    dag: DAG, given: timedelta | None, seconds: float
) -> None:
    step = Supervisor(cfg=cfg(), execution_timeout=given).stop_supervisor
    assert step.start_trigger_args is not None
    assert step.start_trigger_args.timeout == timedelta(seconds=seconds)
    kwargs = step.start_trigger_args.trigger_kwargs
    assert kwargs["timeout"] == min(160.0, seconds)
    assert kwargs.get("airflow_timeout") == (None if given is None else seconds)


def test_supervisord_with_a_replaced_teardown_step_is_left_to_the_user(dag: DAG) -> None:
    supervisor = Supervisor(cfg=cfg(), steps={"stop-supervisor": EmptyOperator(task_id="keep")})
    assert supervisor.start_supervisor.start_trigger_args.trigger_kwargs["tears_down"] is False
    with new_dag("other"):
        usual = Supervisor(cfg=cfg())
    assert "tears_down" not in usual.start_supervisor.start_trigger_args.trigger_kwargs


def test_conf_is_merged_at_each_retrigger(dag: DAG) -> None:
    supervisor = Supervisor(dag=dag, cfg=cfg(), conf={"venue": "{{ params.next }}"})
    check = supervisor.check_programs
    for gate in (check.retrigger_pass, check.retrigger_fail):
        assert gate.conf == {"venue": "{{ params.next }}"}
        assert not gate.replaces_conf


def test_conf_is_refused_if_a_step_replaces_the_check(dag: DAG) -> None:
    check = HighAvailabilityOperator(task_id="mine", python_callable="a.b")
    with pytest.raises(InputError, match="conf= has no effect"):
        Supervisor(dag=dag, cfg=cfg(), conf={}, steps={"check-programs": check})


def test_limits_of_the_configuration_may_be_functions(dag: DAG) -> None:
    config = cfg(runtime="my_calendar.window.length", endtime="my_calendar:close_of_day")
    check = Supervisor(dag=dag, cfg=config).check_programs
    assert check.limits.runtime_function == "my_calendar.window.length"
    assert check.limits.endtime_function == "my_calendar:close_of_day"
    stored = load_configuration(serialize_configuration(config))
    assert (stored.runtime, stored.endtime) == (config.runtime, config.endtime)
    assert cfg(endtime=close_of_day).endtime == f"{close_of_day.__module__}:close_of_day"
    assert (cfg(runtime="PT5M").runtime, cfg(endtime="23:30").endtime) == (timedelta(minutes=5), time(23, 30))
    with pytest.raises(ValueError, match="endtime"):
        cfg(endtime="late")
