"""A triggerer that is killed and stays away longer than the timeout of a step: nothing fails, and nothing leaks."""

from __future__ import annotations

import asyncio
import time

import pytest
from faults.support.supervisors import HeldPipeline, end_all, held_pipelines

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.requests import Request, RequestKind, RequestState
from real_airflow import RealAirflow, wait_until
from real_airflow.runs import FINISHED_TASK

# Nothing of these depends on the inbox's database.
once = pytest.mark.parametrize("started_airflow", ["postgres"], indirect=True)

# Longer than the timeout of each step, about 220 s.
AWAY = 300.0
TEARDOWN = ("teardown", "stop-programs", "stop-supervisor", "unconfigure-supervisor")


@pytest.mark.long
@pytest.mark.timeout(900)
@once
def test_steps_go_on_when_the_triggerer_comes_back_after_five_minutes(airflow: RealAirflow) -> None:
    pipelines = held_pipelines(airflow, "before")

    airflow.triggerer.kill()
    for pipeline in pipelines:
        pipeline.lift()
    time.sleep(AWAY)
    airflow.start_component(airflow.triggerer)

    end_all(pipelines)
    for pipeline in pipelines:
        for run in pipeline.runs():
            states = run.task_states()
            for step in TEARDOWN:
                task_id = f"{pipeline.dag_id}-{step}"
                assert states[task_id] in ("success", "skipped"), pipeline.told()
                assert run.task(task_id).try_number == 1, f"{task_id} failed once\n{pipeline.told()}"


@pytest.mark.long
@once
def test_supervisord_of_a_run_without_a_teardown_is_stopped_by_the_next_triggerer(
    airflow: RealAirflow,
) -> None:
    pipeline = HeldPipeline(airflow, "force-kill", "before")
    pipeline.wait_until_watched()
    [run] = pipeline.runs()
    assert pipeline.processes()

    airflow.triggerer.kill()
    # Nothing that a user ends in this way stops the programs.
    run.task(f"{pipeline.dag_id}-check-programs").mark("success")
    while run.state == "running":
        for task_id, state in run.task_states().items():
            if state not in FINISHED_TASK:
                run.task(task_id).mark("failed")
    wait_until(lambda: requests(airflow), "the API server to make a request", timeout=120)
    assert pipeline.processes(), "the API server has stopped supervisord"
    # No task waits, so the triggerer has nothing to do but the request.
    airflow.start_component(airflow.triggerer)

    wait_until(lambda: not pipeline.processes(), "supervisord to be stopped", timeout=120)
    wait_until(lambda: requests(airflow)[0].done_at, "the answer", timeout=60)
    [request] = requests(airflow)
    assert (request.kind, request.state) == (RequestKind.STOP, RequestState.DONE), request
    assert "stopped supervisord (pid" in request.answer
    pipeline.lift()


def requests(airflow: RealAirflow) -> list[Request]:
    """Return the requests in the inbox."""

    async def read() -> list[Request]:
        inbox = await Inbox.open(airflow.inbox_url, retry_timeout=60)
        try:
            return await inbox.requests.all()
        finally:
            await inbox.close()

    return asyncio.run(read())
