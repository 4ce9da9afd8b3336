"""Dataflow that cannot be reached for a while: what waits goes on waiting, what is to be launched is launched then."""

from __future__ import annotations

import pytest
from faults.support.dataflow_tasks import DataflowTask

from real_airflow import OutsideDataflow, RealAirflow, wait_until


@pytest.mark.long
@pytest.mark.parametrize("started_airflow", ["postgres"], indirect=True)
def test_waits_outlive_a_lost_connection_and_hear_of_what_happened_meanwhile(
    airflow: RealAirflow, dataflow: OutsideDataflow
) -> None:
    ends_meanwhile, goes_on = (DataflowTask.launched(airflow, dataflow, "dataflow_flex") for _ in range(2))
    for waiting in (ends_meanwhile, goes_on):
        waiting.wait_for_log("is in the state JOB_STATE_RUNNING")
    launches = dataflow.calls("LaunchFlexTemplate")

    def told(what: str) -> int:
        return airflow.triggerer.output.read_text().count(what)

    polls, finds = "jobs are watched", "retrying in"
    polls_before = told(polls)
    with dataflow.unreachable():
        launched_meanwhile = DataflowTask.launched(airflow, dataflow, "dataflow_flex")
        dataflow.tell("say", ends_meanwhile.wait_for_job().id, "said while nobody heard", "WARNING")
        dataflow.tell("move", ends_meanwhile.wait_for_job().id, "DONE")
        wait_until(lambda: told(polls) >= polls_before + 3, "the poller to have failed three times")
        launched_meanwhile.wait_for_log(finds)
        for waiting in (ends_meanwhile, goes_on, launched_meanwhile):
            assert waiting.task.state == "deferred"

    launched_meanwhile.wait_for_job()
    for waiting in (ends_meanwhile, goes_on, launched_meanwhile):
        waiting.end()
    assert ends_meanwhile.task.log().count("said while nobody heard") == 1
    assert dataflow.calls("LaunchFlexTemplate") - launches == 1
