"""Invalid arguments are refused when the DAG is parsed."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import DAG
from unit.operators.high_availability.test_operator import CHECK, operator

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.high_availability import HighAvailabilityOperator, TcpCheck


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"python_callable": "not a path"}, "python_callable="),
        ({"python_callable": "nodots"}, "python_callable="),
        ({"python_callable": 5}, "python_callable="),
        ({"python_callable": TcpCheck("h", 1), "op_args": [1]}, "op_args="),
        ({"op_kwargs": {"fn": print}}, "op_kwargs"),
        ({"runtime": -1}, "runtime="),
        ({"endtime": "late"}, "endtime="),
        ({"maxretrigger": -1}, "maxretrigger="),
        ({"reference_date": "today"}, "reference_date="),
        ({"poke_interval": 0}, "poke_interval="),
        ({"timeout": 0}, "timeout="),
        ({"check_timeout": "1"}, "check_timeout="),
        ({"max_wait": -1}, "max_wait="),
        ({"jitter": 2}, "jitter="),
        ({"failure_threshold": 0}, "failure_threshold="),
        ({"pass_trigger_kwargs": {"conf": "[1]"}}, "conf"),
        ({"fail_trigger_kwargs": {"conf": 5}}, "conf"),
        ({"conf": [1]}, "conf is a list"),
        ({"retrigger_delay": -1}, "retrigger_delay="),
        ({"retrigger_reset_after": "1"}, "retrigger_reset_after="),
        ({"silent_fail": True}, "silent_fail=True is not supported; .*failure_threshold="),
        ({"never_fail": True}, "never_fail=True is not supported; .*AirflowSkipException"),
    ],
)
def test_invalid_argument_is_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        operator(**arguments)


def test_operator_requires_a_dag() -> None:
    with pytest.raises(InputError, match="has no DAG"):
        HighAvailabilityOperator(task_id="ha", python_callable=CHECK)


@pytest.mark.parametrize("argument", ["pass_trigger_kwargs", "fail_trigger_kwargs"])
def test_run_that_would_wait_forever_for_the_next_run_is_refused(argument: str) -> None:
    waits = {argument: {"wait_for_completion": True}}
    one_run = DAG("dag", schedule=None, max_active_runs=1)
    with pytest.raises(InputError, match=r"would wait forever: .*max_active_runs=1"):
        operator(dag=one_run, **waits)
    operator(dag=DAG("dag", schedule=None, max_active_runs=2), **waits)
    other = {argument: {"wait_for_completion": True, "trigger_dag_id": "other"}}
    operator(dag=DAG("dag", schedule=None, max_active_runs=1), **other)


def test_run_that_would_wait_forever_is_refused_also_after_rendering() -> None:
    dag = DAG("dag", schedule=None, max_active_runs=1)
    gate = operator(dag=dag, pass_trigger_kwargs={"wait_for_completion": "{{ params.waits }}"}).retrigger_pass
    gate.wait_for_completion = True
    with pytest.raises(InputError, match="would wait forever"):
        gate._start_run({"dag": dag}, {"attempt": "a"})
