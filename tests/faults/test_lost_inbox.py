"""The inbox is restored from a backup that is older than the waits of running tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from sqlalchemy import delete

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.database.schema import callbacks, waits
from real_airflow import OutsideService, RealAirflow, wait_until

pytestmark = pytest.mark.long


async def lose_all_waits(inbox_url: str) -> None:
    inbox = await Inbox.open(inbox_url, retry_timeout=60)
    async with inbox.database.begin() as connection:
        await connection.execute(delete(callbacks))
        await connection.execute(delete(waits))
    await inbox.close()


def test_lost_launch_is_repeated_only_if_the_task_allows_it(
    airflow: RealAirflow, new_service: Callable[[], OutsideService]
) -> None:
    services = {dag_id: new_service().start() for dag_id in ("webhook_cancel", "webhook_relaunch")}
    tasks = {
        dag_id: airflow.trigger(dag_id, {"service": service.url}).task("job")
        for dag_id, service in services.items()
    }
    first = {dag_id: service.wait_for_requests("/job")[0] for dag_id, service in services.items()}
    for task in tasks.values():
        wait_until(lambda task=task: "Launched the work: " in task.log(), f"the launch of {task}")

    airflow.triggerer.kill()
    asyncio.run(lose_all_waits(airflow.inbox_url))
    airflow.start_component(airflow.triggerer)

    again = services["webhook_relaunch"].wait_for_requests("/job", 2)[-1]
    assert again.idempotency_key == first["webhook_relaunch"].idempotency_key
    kept = tasks["webhook_cancel"]
    wait_until(lambda: "the work is not launched again" in kept.log(), f"{kept} to report the lost wait")
    assert len(services["webhook_cancel"].requests("/job")) == 1
    # The services still have the callback URLs of before the restore.
    for dag_id, service in services.items():
        assert service.call_back(first[dag_id], {"of": dag_id}).status_code == 200
        tasks[dag_id].run.wait_for("success")
        assert tasks[dag_id].xcom() == {"of": dag_id}
        assert {request.path for request in service.requests()} == {"/job"}
