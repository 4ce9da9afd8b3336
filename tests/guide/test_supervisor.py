"""Programs under a supervisord that belongs to a DAG, in ten examples: the tasks, and the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

from deferrable_ops import Success
from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.supervisor import (
    ProgramConfiguration,
    ProgramPolicy,
    Supervisor,
    SupervisorAirflowConfiguration,
    SupervisorSSH,
    SupervisorSSHAirflowConfiguration,
)
from deferrable_ops.testing import running

PROGRAM = {"prices": ProgramConfiguration(command="sleep 60")}


@pytest.fixture
def dag() -> Iterator[DAG]:
    """Make a DAG for the tasks of a test."""
    with DAG("feeds", schedule=None) as dag:
        yield dag


def configuration(**fields: Any) -> SupervisorAirflowConfiguration:
    """Return a configuration with one program."""
    return SupervisorAirflowConfiguration(**{"program": PROGRAM, **fields})


def test_each_step_is_a_task(dag: DAG) -> None:
    """The ids begin with the DAG's id, and each step is an attribute."""
    supervisor = Supervisor(cfg=configuration())
    assert supervisor.start_programs.task_id == "feeds-start-programs"
    assert {
        "feeds-configure-supervisor",
        "feeds-start-supervisor",
        "feeds-start-programs",
        "feeds-check-programs",
        "feeds-stop-programs",
        "feeds-stop-supervisor",
        "feeds-unconfigure-supervisor",
    } <= set(dag.task_ids)


def test_no_step_needs_a_worker(dag: DAG) -> None:
    """Each is deferred by the scheduler and runs in the Triggerer."""
    Supervisor(cfg=configuration())
    assert all(task.start_from_trigger for task in dag.tasks)


def test_supervisor_is_chained_like_a_task(dag: DAG) -> None:
    """What follows runs when the programs have ended well and supervisord has stopped."""
    before, after = EmptyOperator(task_id="before"), EmptyOperator(task_id="after")
    before >> Supervisor(cfg=configuration()) >> after
    assert before.downstream_task_ids == {"feeds-configure-supervisor"}
    assert after.upstream_task_ids


def test_branch_reacts_to_programs_that_died(dag: DAG) -> None:
    """The check is a high-availability check, with the same branches."""
    alarm = EmptyOperator(task_id="alarm")
    Supervisor(cfg=configuration()).check_programs.retrigger_fail >> alarm
    assert "feeds-check-programs-retrigger-fail" in alarm.upstream_task_ids


def test_step_can_be_replaced(dag: DAG) -> None:
    """A task of the same DAG takes the place of the step with this name."""
    mine = EmptyOperator(task_id="mine")
    supervisor = Supervisor(cfg=configuration(), steps={"restart-programs": mine})
    assert supervisor.restart_programs is mine
    assert "feeds-restart-programs" not in dag.task_ids


def test_limits_of_the_run_belong_to_the_configuration(dag: DAG) -> None:
    """`runtime`, `endtime` and `maxretrigger` end the run, as for every high-availability check."""
    cfg = configuration(check_interval=5, check_timeout=timedelta(hours=8), endtime="23:30", maxretrigger=5)
    check = Supervisor(cfg=cfg).check_programs
    assert (check.poke_interval, check.timeout) == (5, 8 * 3600)
    assert (check.limits.endtime, check.limits.maxretrigger) == ("23:30:00", 5)


def test_policy_decides_what_an_exit_code_means() -> None:
    """Codes that the policy does not name follow `otherwise`."""
    policy = ProgramPolicy(exit_codes={0: "success", 3: "skip"}, otherwise="fail")
    cfg = configuration(policies={"prices": policy})
    assert cfg.policies["prices"] == policy
    with pytest.raises(ValueError, match="exit_codes"):
        ProgramPolicy(exit_codes={0: "perhaps"})


async def test_first_step_writes_a_private_file(dag: DAG, tmp_path: Path) -> None:
    """The directory has mode 0700 and the file 0600: it holds the password of supervisord's interface."""
    folder = tmp_path / "feeds"
    supervisor = Supervisor(cfg=configuration(working_dir=str(folder)))
    async with running(supervisor.configure_supervisor) as task:
        assert isinstance(await task.outcome(), Success)
    [file] = folder.glob("*.conf")
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    assert "command=sleep 60" in file.read_text().replace(" = ", "=")


def test_other_machine_is_reached_by_ssh(dag: DAG) -> None:
    """The connection has the user and the key; `host` overrides its machine."""
    cfg = SupervisorSSHAirflowConfiguration(
        working_dir="/srv/feeds", program=PROGRAM, ssh_operator_args={"ssh_conn_id": "feeds_host"}
    )
    supervisor = SupervisorSSH(cfg=cfg, host="feeds-2.example.com")
    assert all(task.start_from_trigger for task in dag.tasks)
    assert supervisor.check_programs.task_id == "feeds-check-programs"


def test_wrong_configuration_is_an_error_when_the_dag_is_parsed(dag: DAG) -> None:
    """The message names the field."""
    with pytest.raises(InputError, match="check_interval"):
        Supervisor(cfg={"program": {"prices": {"command": "sleep 60"}}, "check_interval": -1})
    with pytest.raises(InputError, match="restart-program"):
        Supervisor(cfg=configuration(), steps={"restart-program": EmptyOperator(task_id="mine")})
