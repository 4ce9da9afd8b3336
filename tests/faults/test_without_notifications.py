"""Postgres without LISTEN and NOTIFY, as behind a pooler: the sweep alone completes every wait."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from faults.support.processes import restart_with

from real_airflow import OutsideService, Postgres, RealAirflow


@pytest.mark.long
@pytest.mark.parametrize("started_airflow", ["postgres"], indirect=True)
def test_wait_completes_with_notify_switched_off(
    airflow: RealAirflow, outside: OutsideService, new_postgres: Callable[..., Postgres]
) -> None:
    server = new_postgres({"log_statement": "all"})
    settings = {
        "AIRFLOW__DEFERRABLE_OPS__INBOX_URL": server.create_database("inbox", driver="asyncpg"),
        "AIRFLOW__DEFERRABLE_OPS__NOTIFY": "False",
    }
    restart_with(airflow, settings)
    run = airflow.trigger("webhook_expressions", {"service": outside.url})
    [request] = outside.wait_for_requests("/job")
    run.task("job").wait_for("deferred")

    assert outside.call_back(request, {"state": "running"}).status_code == 202
    assert outside.call_back(request, {"state": "done", "metrics": 1}).status_code == 200

    run.wait_for("success")
    assert run.task("job").xcom() == 1
    assert run.worker_processes() == 0
    statements = server.log()
    assert "deferrable_ops_waits" in statements
    assert " LISTEN " not in statements
    assert "pg_notify" not in statements
