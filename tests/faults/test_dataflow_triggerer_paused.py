"""Two triggerers: the one that launches Dataflow jobs is paused, the other takes over, and the first comes back."""

from __future__ import annotations

import asyncio

import pytest
from faults.support.dataflow_tasks import DataflowTask
from faults.support.triggerers import REASSIGNED, left_alone, resume_all_but_the_supervisor

from real_airflow import DONE, RUNNING, OutsideDataflow, RealAirflow, wait_until

NEVER = 600  # seconds: longer than the test


@pytest.mark.long
def test_triggerer_that_comes_back_launches_nothing_and_cancels_nothing(
    airflow: RealAirflow, dataflow: OutsideDataflow
) -> None:
    dataflow.set(second_launch={"sqlite": "return", "postgres": "refuse"}[airflow.database.backend])
    flex_launches = dataflow.calls("LaunchFlexTemplate")
    after = DataflowTask.launched(airflow, dataflow, "dataflow_flex")
    after.wait_for_log("Launched the job")
    dataflow.tell("fail", "LaunchTemplate", "UNAVAILABLE", times=None)
    dataflow.tell("delay", "LaunchFlexTemplate", after=NEVER)
    before = DataflowTask.launched(airflow, dataflow, "dataflow_classic")
    before_ending = DataflowTask.launched(airflow, dataflow, "dataflow_classic", RUNNING, DONE)
    during = DataflowTask.launched(airflow, dataflow, "dataflow_flex")
    during_ending = DataflowTask.launched(airflow, dataflow, "dataflow_flex", RUNNING, DONE)
    for sent in (during, during_ending):
        sent.wait_for_job()
    for refused in (before, before_ending):
        refused.wait_until_refused()

    airflow.pause(airflow.triggerer)
    left_before = left_alone(airflow)
    dataflow.tell("mend")
    second = airflow.add_triggerer()
    for ending in (before_ending, during_ending):
        ending.end()
    before.wait_for_log("Launched the job", timeout=90)
    during.wait_for_log("Continuing with the job", timeout=90)

    dataflow.set(list_lag=NEVER)  # so that nothing but its claim tells the first that another has launched
    airflow.pause(second)
    asyncio.run(resume_all_but_the_supervisor(airflow, seconds=6))
    second.resume()
    airflow.triggerer.resume()
    for told_by_its_claim in (before, during):
        told_by_its_claim.wait_for_log("Another process is launching the work")
    for waiting in (before, during, after):
        waiting.wait_for_log(REASSIGNED, timeout=120)
    wait_until(
        lambda: left_alone(airflow) >= left_before + 3,
        "the first triggerer to understand that nobody ended the tasks",
        timeout=120,
    )

    for waiting in (before, during, after):
        waiting.end()
    for ended in (before_ending, during_ending):
        ended.assert_undisturbed()
    assert dataflow.calls("LaunchFlexTemplate") - flex_launches == 3
