"""The DAG of the rival's workers: airflow-ha's sensor, with a check that costs as little as ours."""

from __future__ import annotations

import os
from typing import Any

from airflow.sdk import DAG
from airflow_ha import Action, CheckResult, HighAvailabilitySensor, Result


def is_well(**context: Any) -> CheckResult:
    return Result.PASS, Action.CONTINUE


with DAG("watched", schedule=None):
    HighAvailabilitySensor(
        task_id="watch",
        python_callable=is_well,
        poke_interval=float(os.environ["BENCH_INTERVAL"]),
        timeout=86_400,
    )
