"""The public tests of airflow-ha 1.6.7 and airflow-supervisor 1.11.3, with only their imports changed.

The table below has each test that fails, with the reason. The sections "Moving from airflow-ha" and "Moving from
airflow-supervisor" of docs/high_availability.md and docs/supervisor.md show the differences to users.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from integration.parity.public_tests import PACKAGES, PackagesMissing, PublicTest, run_public_tests

# The first run downloads the packages.
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

# How many of the 128 tests must pass.
TESTS: Final = 128
MUST_PASS: Final = 38

PRIVATE: Final = "uses a function or an attribute whose name begins with an underscore"
CALL_ORDER: Final = "its mock answers calls in the order in which airflow-ha makes them"
RENDERED: Final = "compares generated source text, which contains names of the package's modules"
NO_DECISION_TASK: Final = "documented: there is no separate task that decides"
NEXT_DAY: Final = "documented: an endtime before the reference date is on the next day"
NO_TIMEOUT_ZERO: Final = "documented: timeout=0 is refused"
RETRIGGER_CONF: Final = "the conf of the next run is made in the triggerer, and not by a template"
NO_CLIENT_ARGUMENT: Final = "documented: xmlrpc_client= is not an argument"
NO_COMMANDS: Final = (
    "documented: a step runs in the triggerer, and not as a shell command or a Python function"
)
NO_HOOK: Final = "documented: only the connection and the host of an SSH hook are kept"
SOCKET_INSTEAD_OF_PORT: Final = (
    "documented: supervisord listens on a Unix socket, and not on *:9001 without a password"
)
NO_USERNAME: Final = (
    "documented: a password without a username, with which supervisord does not start, is refused"
)
HOST_AT_PARSE: Final = "documented: host= and port= change the configuration when the tasks are created"
ANY_HOST: Final = "documented: host= and port= keep the type that the user gives"
NO_LOGS_IN_HEALTH_CHECK: Final = "documented: only check-programs copies output, the health check does not"
NO_RESULT: Final = "update_relative() of Airflow returns nothing"
TASKS_OF_DAG: Final = (
    "documented: other tasks, and max_active_tasks is not changed; Airflow 3 has no DAG.concurrency"
)
EMPTY_PROGRAM: Final = "documented: a configuration cannot be changed, and needs a program"

_OPERATOR: Final = "test_operator.py::TestHighAvailabilityOperator::"
_SSH: Final = "test_ssh_extended.py::TestSupervisorSSHExtended::test_supervisor_ssh_"
_SSH_ARGUMENTS: Final = "config/test_task_ssh.py::TestSupervisorSSHTaskArgs::"
_LOCAL: Final = "test_local.py::TestSupervisorLocal::test_supervisor_"
_HYDRA: Final = "hydra/test_hydra"
_LOGS: Final = "test_observability.py::test_"

FAILING: Final[dict[str, dict[str, str]]] = {
    "airflow_ha": {
        "test_config.py::TestConfig::test_cleanup_task": NO_DECISION_TASK,
        "test_config.py::TestConfig::test_cleanup_render": RENDERED,
        f"{_OPERATOR}test_instantiation": NO_DECISION_TASK,
        f"{_OPERATOR}test_explicit_callbacks_apply_to_generated_tasks": PRIVATE,
        f"{_OPERATOR}test_generated_tasks_inherit_default_callbacks": PRIVATE,
        f"{_OPERATOR}test_retrigger_callbacks_override_parent_callbacks": PRIVATE,
        f"{_OPERATOR}test_retrigger_conf_uses_airflow_3_template_context": RETRIGGER_CONF,
        f"{_OPERATOR}test_check_end_conditions_default": CALL_ORDER,
        f"{_OPERATOR}test_check_end_conditions_force": CALL_ORDER,
        f"{_OPERATOR}test_check_end_conditions_runtime": CALL_ORDER,
        f"{_OPERATOR}test_check_end_conditions_endtime": CALL_ORDER,
        f"{_OPERATOR}test_check_end_conditions_maxretrigger": CALL_ORDER,
        f"{_OPERATOR}test_endtime_json_override_uses_dag_timezone": NEXT_DAY,
        f"{_OPERATOR}test_choose_branch": PRIVATE,
        f"{_OPERATOR}test_choose_branch_retrigger_exhausted_preserves_result": PRIVATE,
        f"{_OPERATOR}test_choose_branch_missing_or_malformed_result_fails": PRIVATE,
        f"{_OPERATOR}test_choose_branch_timeout_preserves_last_health_result": NO_TIMEOUT_ZERO,
        f"{_OPERATOR}test_callable_wrapper": PRIVATE,
        f"{_OPERATOR}test_callable_exception_overwrites_previous_health_result": PRIVATE,
    },
    "airflow_supervisor": {
        f"{_SSH_ARGUMENTS}test_connection_overrides_are_serialized_without_mutating_shared_config": HOST_AT_PARSE,
        f"{_SSH_ARGUMENTS}test_connection_assignment_updates_configuration": HOST_AT_PARSE,
        f"{_SSH_ARGUMENTS}test_supervisor_ssh_task_args_with_host_dict": ANY_HOST,
        f"{_SSH_ARGUMENTS}test_supervisor_ssh_task_args_with_port_dict": ANY_HOST,
        f"{_HYDRA}.py::test_hydra_config": NO_USERNAME,
        f"{_HYDRA}.py::test_hydra_config_render": RENDERED,
        f"{_HYDRA}.py::test_hydra_config_render_hosts": RENDERED,
        f"{_HYDRA}.py::test_hydra_config_render_hosts_query": RENDERED,
        f"{_HYDRA}_overrides.py::test_hydra_overrides": SOCKET_INSTEAD_OF_PORT,
        f"{_HYDRA}_overrides.py::test_hydra_overrides_ssh": SOCKET_INSTEAD_OF_PORT,
        "test_dag.py::TestDag::test_instantiation": TASKS_OF_DAG,
        f"{_LOCAL}with_dict_config": PRIVATE,
        f"{_LOCAL}restart_options": PRIVATE,
        f"{_LOCAL}update_relative": NO_RESULT,
        f"{_LOGS}chunked_output_and_partial_lines_are_not_duplicated": PRIVATE,
        f"{_LOGS}truncation_does_not_combine_previous_partial_line": PRIVATE,
        f"{_LOGS}retry_or_next_health_run_resumes_from_last_complete_line": PRIVATE,
        f"{_LOGS}unavailable_logs_warn_without_failing_healthy_workload": NO_LOGS_IN_HEALTH_CHECK,
        f"{_LOGS}false_lifecycle_command_raises_with_program_diagnostics": NO_CLIENT_ARGUMENT,
        f"{_LOGS}end_condition_does_not_turn_deliberate_start_skip_into_failure": NO_CLIENT_ARGUMENT,
        f"{_LOGS}direct_callbacks_reach_failure_finalizers_and_skipped_steps": NO_CLIENT_ARGUMENT,
        f"{_LOGS}monitor_retains_unhealthy_snapshot_after_recovery": NO_CLIENT_ARGUMENT,
        f"{_LOGS}monitor_publishes_empty_workload_failure": EMPTY_PROGRAM,
        f"{_LOGS}stop_forwards_output_before_and_during_shutdown_once": NO_CLIENT_ARGUMENT,
        f"{_LOGS}start_baseline_avoids_replaying_output_from_previous_lifecycle": NO_CLIENT_ARGUMENT,
        "test_ssh.py::TestSSH::test_ssh_setup": NO_HOOK,
        "test_ssh.py::TestSSH::test_ssh_overrides": PRIVATE,
        f"{_SSH}command_prefix": PRIVATE,
        f"{_SSH}with_port": PRIVATE,
        f"{_SSH}with_port_dict": PRIVATE,
        f"{_SSH}get_step_kwargs": NO_COMMANDS,
        f"{_SSH}configure_json_survives_shell": NO_COMMANDS,
        f"{_SSH}with_host_pool": PRIVATE,
        f"{_SSH}kwargs_override": PRIVATE,
    },
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[PublicTest]]]:
    """The results of all tests, by package."""
    try:
        yield {package: run_public_tests(package, _folder(tmp_path_factory, package)) for package in PACKAGES}
    except PackagesMissing as missing:
        pytest.skip(str(missing))


def test_tests_pass_or_fail_for_a_known_reason(results: dict[str, list[PublicTest]]) -> None:
    for package, found in results.items():
        passed = [result for result in found if not result.problem]
        print(f"{package}: {len(passed)} of {len(found)} tests pass")
    unknown = {
        f"{package}/tests/{result.name}": result.problem
        for package, found in results.items()
        for result in found
        if result.problem and _function(result) not in FAILING[package]
    }
    assert not unknown
    everything = [result for found in results.values() for result in found]
    assert len(everything) == TESTS
    assert sum(not result.problem for result in everything) >= MUST_PASS


def test_table_has_only_tests_that_fail(results: dict[str, list[PublicTest]]) -> None:
    failed = {
        package: {_function(result) for result in found if result.problem}
        for package, found in results.items()
    }
    assert {package: set(table) - failed[package] for package, table in FAILING.items()} == {
        package: set() for package in PACKAGES
    }


def _function(result: PublicTest) -> str:
    """Return the id of a test without its parameters."""
    return result.name.partition("[")[0]


def _folder(factory: pytest.TempPathFactory, package: str) -> Path:
    return factory.mktemp(package.replace("_", "-"))
