"""Arguments of a Supervisor: for all tasks, for the machine, and refused ones."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.bases.operator import TriggerFailureReason
from airflow.sdk.exceptions import TaskDeferralError, TaskDeferred

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.supervisor import (
    Supervisor,
    SupervisorAirflowConfiguration,
    SupervisorSSH,
    SupervisorSSHAirflowConfiguration,
)
from deferrable_ops.outcome import Success
from deferrable_ops.supervisord.airflow import AirflowConfiguration
from deferrable_ops.testing import memory_inbox
from deferrable_ops.triggers.supervisor.configuration import load_configuration, machine_address

NOW = datetime(2026, 3, 1, 22, tzinfo=UTC)
PROGRAM = {"test": {"command": "sleep 10"}}
LOCAL = {"working_dir": "/data/sup", "program": PROGRAM}


@pytest.fixture(autouse=True)
def dag() -> Iterator[DAG]:
    with DAG("d", schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC)) as dag:
        yield dag


def remote(**fields: Any) -> SupervisorSSHAirflowConfiguration:
    return SupervisorSSHAirflowConfiguration(**{**LOCAL, "ssh_conn_id": "jobs", **fields})


def some_host() -> Any:
    return SimpleNamespace(name="picked.example.com")


def test_operator_arguments_apply_to_all_tasks(dag: DAG) -> None:
    Supervisor(cfg=LOCAL, owner="ops", retries=4, queue="web-3")
    assert {one.owner for one in dag.tasks} == {"ops"}
    assert {one.queue for one in dag.tasks} == {"web-3"}
    # Gates have nothing to retry, and a kill is done once.
    assert {one.task_id.removeprefix("d-") for one in dag.tasks if one.retries == 4} == {
        *("configure-supervisor", "start-supervisor", "start-programs", "check-programs"),
        *("restart-programs", "stop-programs", "stop-supervisor", "unconfigure-supervisor"),
    }


def test_dependency_arguments_apply_to_the_first_task(dag: DAG) -> None:
    supervisor = Supervisor(cfg=LOCAL, trigger_rule="all_done", depends_on_past=True)
    assert supervisor.configure_supervisor.trigger_rule == "all_done"
    assert [one.task_id for one in dag.tasks if one.depends_on_past] == ["d-configure-supervisor"]
    assert supervisor.start_supervisor.trigger_rule == "all_success"


@pytest.mark.parametrize("given", [{"pool": "narrow"}, {"pool": SimpleNamespace(pool="narrow")}, {}])
def test_pool_argument_overrides_the_configuration(dag: DAG, given: dict[str, Any]) -> None:
    Supervisor(cfg={**LOCAL, "pool": "wide" if given else "narrow"}, **given)
    assert {one.pool for one in dag.tasks} == {"narrow"}
    on_worker = {one.task_id.removeprefix("d-") for one in dag.tasks if one.worker_start_reason}
    assert {"start-programs", "check-programs", "stop-programs"} <= on_worker  # there they take a slot
    assert not on_worker & {"teardown", "check-config-failed", "force-kill-dag"}  # they do not wait


@pytest.mark.parametrize(
    "given, message",
    [
        ({"outlets": []}, "outlets= is an argument for a single task"),
        ({"check_intervall": 5}, "check_intervall= is unknown"),
        ({"ssh_conn_id": "jobs"}, "ssh_conn_id= is unknown"),
    ],
)
def test_unknown_argument_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Supervisor(cfg=LOCAL, **given)


@pytest.mark.parametrize(
    "kind, given, message",
    [
        (Supervisor, None, "cfg= is missing"),
        (Supervisor, "supervisor.yaml", "cfg= is a str"),
        (Supervisor, {"program": {}}, "there is nothing to run"),
        (Supervisor, {**LOCAL, "progam": {}}, "progam: Extra inputs"),
        (Supervisor, remote(), "use SupervisorSSH"),
    ],
)
def test_invalid_configuration_is_refused(kind: type[Supervisor], given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(cfg=given)


def test_configuration_error_contains_no_values() -> None:
    with pytest.raises(InputError) as refused:
        Supervisor(cfg={**LOCAL, "username": "u", "password": ["hunter22"]})
    assert "hunter22" not in str(refused.value)


def test_supervisor_outside_a_dag_is_refused() -> None:
    from airflow.sdk.definitions._internal.contextmanager import DagContext

    DagContext.pop()
    try:
        with pytest.raises(InputError, match="Supervisor is in no DAG"):
            Supervisor(cfg=LOCAL)
    finally:
        DagContext.push(DAG("d", schedule=None))


def test_local_steps_start_on_a_worker_only_with_triggerer_queues(
    dag: DAG, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Supervisor(cfg=LOCAL, queue="default")
    there = SupervisorSSH(cfg=remote(), name="there")
    steps = ("configure_supervisor", "start_programs", "check_programs", "stop_supervisor", "force_kill")
    assert {getattr(here, step).worker_start_reason for step in steps} == {None}
    monkeypatch.setenv("AIRFLOW__TRIGGERER__QUEUES_ENABLED", "True")
    pinned = Supervisor(cfg=LOCAL, name="pinned")
    for step in steps:
        assert "only a worker can pass a task to the triggerers of its queue" in str(
            getattr(pinned, step).worker_start_reason
        )
        assert getattr(there, step).worker_start_reason is None
    assert pinned.teardown.worker_start_reason is None


def test_remote_arguments_override_the_configuration() -> None:
    supervisor = SupervisorSSH(
        cfg=remote(remote_host="a.example.com", cmd_timeout=63),
        ssh_conn_id="other",
        remote_host="b.example.com",
        command_prefix="source /opt/venv/bin/activate",
        environment={"TOKEN": "hunter22"},
        conn_timeout=5,
    )
    where = machine_address(load_configuration(supervisor.start_supervisor.configuration))
    assert (where.ssh_conn_id, where.remote_host) == ("other", "b.example.com")
    assert (where.connect_timeout, where.command_timeout) == (5, 63)
    assert where.command_prefix == "source /opt/venv/bin/activate"
    assert where.environment == (("TOKEN", "hunter22"),)
    assert "hunter22" not in supervisor.start_supervisor.configuration


@pytest.mark.parametrize(
    "host",
    [
        "picked.example.com",
        {"name": "picked.example.com"},
        SimpleNamespace(name="picked.example.com"),
        some_host,
        lambda: "picked.example.com",
    ],
)
def test_host_is_a_name_an_object_or_a_function(host: Any) -> None:
    assert SupervisorSSH(cfg=remote(), host=host).cfg.ssh_operator_args.remote_host == "picked.example.com"


@pytest.mark.parametrize("port", [9010, "9010", {"port": 9010}, SimpleNamespace(port=9010), lambda: 9010])
def test_port_is_a_number_an_object_or_a_function(port: Any) -> None:
    config = remote(username="airflow", password="correct horse", port="*:9001", startsecs=3)
    made = SupervisorSSH(cfg=config, port=port).cfg
    assert made.airflow.port == "*:9010"
    assert made.inet_http_server is not None
    assert made.inet_http_server.port == "*:9010"
    assert made.airflow == AirflowConfiguration(
        **{**config.airflow.model_dump(exclude_unset=True), "port": "*:9010"}
    )


def fails() -> Any:
    raise RuntimeError("no balancer")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"host": 17}, "host=17 is not a host"),
        ({"host": fails}, "the function in host= failed; correct the function. RuntimeError: no balancer"),
        ({"host": SimpleNamespace(ip="10.0.0.1")}, "is not a host"),
        ({"port": True}, "port=True is not a port"),
        ({"port": SimpleNamespace(name="web")}, "is not a port"),
        ({"host": "a", "remote_host": "b"}, "host='a' and remote_host='b' differ"),
        ({"get_pty": True}, "get_pty= is unknown"),
        ({"ssh_hook": object()}, "ssh_hook cannot be sent to the triggerer"),
    ],
)
def test_invalid_host_or_port_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SupervisorSSH(cfg=remote(), **given)


def test_hook_replaces_the_connection_of_the_configuration() -> None:
    hook = SimpleNamespace(ssh_conn_id="jobs", remote_host="web-3")
    ssh = SupervisorSSH(cfg=remote(), ssh_hook=hook).cfg.ssh_operator_args  # type: ignore[attr-defined]
    assert (ssh.ssh_conn_id, ssh.remote_host) == ("jobs", "web-3")


def test_query_gives_the_same_result_at_each_parse() -> None:
    class Query:
        kind = "select"

        def model_copy(self, update: dict[str, Any]) -> Query:
            copy = Query()
            copy.kind = update["kind"]
            return copy

        def execute(self) -> Any:
            assert self.kind == "filter"  # "select" chooses at random
            return ["c.example.com", "a.example.com", "b.example.com"]

    assert SupervisorSSH(cfg=remote(), host=Query()).cfg.ssh_operator_args.remote_host == "a.example.com"


def test_configuration_of_this_host_can_be_used_for_another() -> None:
    made = SupervisorSSH(cfg=SupervisorAirflowConfiguration(**LOCAL), ssh_conn_id="jobs")
    assert isinstance(made.cfg, SupervisorSSHAirflowConfiguration)
    assert made.cfg.ssh_operator_args.ssh_conn_id == "jobs"


@pytest.mark.parametrize("name", ["configure_supervisor", "check_programs", "teardown", "force_kill"])
async def test_worker_passes_the_run_facts_to_the_trigger(name: str) -> None:
    pinned = Supervisor(cfg=LOCAL, pool="narrow")
    one: Any = getattr(pinned, name)
    dag_run = SimpleNamespace(
        dag_id="d", run_id="run", run_type="manual", conf={"d-check-programs-retrigger": 3}, start_date=NOW
    )
    ti = SimpleNamespace(
        id="01a1fd9a-991e-7f0c-8071-3e438f570c00",
        try_number=1,
        dag_id="d",
        run_id="run",
        task_id=one.task_id,
        map_index=-1,
    )
    async with memory_inbox():
        with pytest.raises(TaskDeferred) as deferred:
            one.execute({"dag_run": dag_run, "params": {}, "ti": ti})
    trigger = deferred.value.trigger
    assert isinstance(trigger, one.trigger_class)
    kwargs = trigger.serialize()[1]
    assert kwargs["run_facts"]["conf"] == {"d-check-programs-retrigger": 3}
    assert kwargs["attempt"]["task_id"] == one.task_id
    assert deferred.value.timeout is not None
    assert deferred.value.timeout.total_seconds() == one.airflow_timeout


async def test_step_whose_airflow_timeout_has_passed_is_deferred_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step: Any = Supervisor(cfg=LOCAL).stop_supervisor
    dag_run = SimpleNamespace(dag_id="d", run_id="run", run_type="manual", conf={}, start_date=NOW)
    names = {"dag_id": "d", "run_id": "run", "task_id": step.task_id, "map_index": -1}
    ti = SimpleNamespace(id="01a1fd9a-991e-7f0c-8071-3e438f570c00", try_number=1, **names)
    context = {"dag_run": dag_run, "params": {}, "ti": ti}
    timed_out = {"error": TriggerFailureReason.TRIGGER_TIMEOUT}
    async with memory_inbox():
        with pytest.raises(TaskDeferred) as deferred:
            step.resume_execution("__fail__", timed_out, context)
        assert deferred.value.trigger.serialize()[1]["step"] == "stop-supervisor"
        with pytest.raises(TaskDeferralError):
            step.resume_execution("__fail__", {"error": "Trigger failure"}, context)
    # If the step has ended in the meantime, its result counts.
    monkeypatch.setattr("deferrable_ops.operators.base.read_outcome", lambda _: Success({"stopped": [7]}))
    assert step.resume_execution("__fail__", timed_out, context) == {"stopped": [7]}


def test_step_timeout_includes_the_programs_times() -> None:
    slow = {"test": {"command": "sleep 10", "stopwaitsecs": 600}}
    supervisor = Supervisor(cfg={"working_dir": "/data/sup", "program": slow, "command_timeout": 90})
    assert supervisor.stop_programs.timeout >= 690
    assert 90 <= supervisor.configure_supervisor.timeout < 690
