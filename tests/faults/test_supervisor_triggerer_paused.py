"""Two triggerers on one host: the one about to take steps is paused, the other takes them, and the first resumes."""

from __future__ import annotations

import asyncio

import pytest
from faults.support.supervisors import BEGINNING, end_all, held_pipelines
from faults.support.triggerers import resume_all_but_the_supervisor

from real_airflow import RealAirflow, wait_until

# Nothing of these depends on the inbox's database.
once = pytest.mark.parametrize("started_airflow", ["postgres"], indirect=True)

CHANGING = (*BEGINNING, "stop-supervisor", "unconfigure-supervisor", "restart-programs", "force-kill")


@pytest.mark.long
@once
def test_triggerer_that_comes_back_starts_and_stops_nothing(airflow: RealAirflow) -> None:
    pipelines = held_pipelines(airflow, "before", CHANGING)

    airflow.pause(airflow.triggerer)
    for pipeline in pipelines:
        pipeline.lift()
    second = airflow.add_triggerer()
    pipelines[0].end_program()
    # Who comes back finds some with programs that run, and others of which nothing is left, as of the first.
    for pipeline in pipelines:
        pipeline.wait_until_watched() if pipeline.goes_on else pipeline.wait_until_over()
    airflow.pause(second)
    asyncio.run(resume_all_but_the_supervisor(airflow))
    second.resume()
    airflow.triggerer.resume()
    for pipeline in pipelines:
        wait_until(
            lambda one=pipeline: one.given_up_by == one.held_by,
            f"the first to leave {pipeline.dag_id}",
            timeout=60,
        )

    end_all(pipelines)
