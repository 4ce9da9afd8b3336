"""What tests/airflow/test_high_availability*.py run. What the checks say comes with the run's conf."""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Param, TaskGroup, task, task_group

from deferrable_ops.operators.high_availability import (
    Action,
    HighAvailabilityOperator,
    HighAvailabilitySensor,
    Result,
)

# Each run keeps the conf, and so the file with the script.
CHECK: dict[str, Any] = {"python_callable": "ha_checks.scripted", "poke_interval": 0.5}

with DAG("ha", schedule=None, default_args={"retries": 2}):
    HighAvailabilityOperator(task_id="ha", **CHECK)

with DAG("ha_on_the_loop", schedule=None):
    HighAvailabilitySensor(task_id="ha", **{**CHECK, "python_callable": "ha_checks.scripted_on_the_loop"})

with DAG("ha_timeout", schedule=None):
    HighAvailabilityOperator(task_id="ha", timeout=15, **CHECK)

with DAG("ha_limited", schedule=None):
    HighAvailabilityOperator(task_id="ha", reference_date="start_date", maxretrigger=1, **CHECK)

with DAG("ha_crashes", schedule=None, params={"venue": Param(type="string"), "desk": Param("cash")}):
    HighAvailabilityOperator(
        task_id="ha",
        python_callable="ha_checks.raises",
        maxretrigger=2,
        retrigger_delay=12,
        conf={"again": True},
    )

with DAG("ha_pauses", schedule=None):
    HighAvailabilityOperator(
        task_id="ha", python_callable="ha_checks.raises", maxretrigger=2, retrigger_delay=90
    )

with DAG("ha_never_again", schedule=None):
    HighAvailabilityOperator(task_id="ha", maxretrigger=0, **CHECK)

with DAG("ha_group", schedule=None), TaskGroup("watch"):
    HighAvailabilityOperator(task_id="ha", **CHECK)

with DAG("ha_mapped", schedule=None):

    @task_group
    def watched(_number: int) -> None:
        HighAvailabilityOperator(task_id="ha", **CHECK)

    watched.expand(_number=[1, 2])

with DAG("ha_two", schedule=None):
    for name in ("orders", "payments"):
        HighAvailabilityOperator(task_id=name, maxretrigger=1, **CHECK)

with DAG("ha_chained", schedule=None):
    ha = HighAvailabilityOperator(task_id="ha", **CHECK)
    for branch in ("stop_pass", "stop_fail", "retrigger_pass", "retrigger_fail"):
        getattr(ha, branch) >> EmptyOperator(task_id=f"after_{branch}", trigger_rule="all_done")

with DAG("ha_upstream_failed", schedule=None):

    @task
    def broken() -> None:
        raise RuntimeError("broken on purpose")

    broken() >> HighAvailabilityOperator(task_id="ha", **CHECK)


def asked_on_a_worker(dag_run: Any, **_: Any) -> tuple[Result, Action]:
    """Say CONTINUE twice, and then STOP."""
    from pathlib import Path

    file = Path(dag_run.conf["file"]).with_suffix(".asked")
    with file.open("a") as asked:
        asked.write("x")
    return (Result.PASS, Action.STOP) if len(file.read_text()) >= 3 else (Result.PASS, Action.CONTINUE)


with DAG("ha_on_a_worker", schedule=None):
    HighAvailabilityOperator(task_id="ha", python_callable=asked_on_a_worker, poke_interval=1)

with DAG("ha_troubled", schedule=None):
    HighAvailabilityOperator(
        task_id="thread", python_callable="ha_checks.troubled", check_timeout=2, maxretrigger=0
    )

with DAG("ha_troubled_on_the_loop", schedule=None):
    HighAvailabilityOperator(
        task_id="loop", python_callable="ha_checks.troubled_on_the_loop", check_timeout=2, maxretrigger=0
    )

with DAG("ha_asks_airflow", schedule=None):

    @task
    def number() -> int:
        return 7

    number() >> HighAvailabilityOperator(task_id="ha", python_callable="ha_checks.counted")
    HighAvailabilityOperator(task_id="on_the_loop", python_callable="ha_checks.reads_a_variable")

with DAG("ha_waits_for_the_next", schedule=None):
    HighAvailabilityOperator(
        task_id="ha",
        **{
            **CHECK,
            "pass_trigger_kwargs": {
                "conf": {"file": "{{ dag_run.conf['file'] }}"},
                "wait_for_completion": True,
                "deferrable": True,
                "poke_interval": 1,
            },
        },
    )
