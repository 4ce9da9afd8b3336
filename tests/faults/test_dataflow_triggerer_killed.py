"""A triggerer killed with SIGKILL while it launches Dataflow jobs, and replies that are lost: one job an attempt."""

from __future__ import annotations

from faults.support.dataflow_tasks import waits_of

from deferrable_ops.outcome import Success
from real_airflow import DONE, RUNNING, OutsideDataflow, RealAirflow, wait_until

METHODS = ("LaunchFlexTemplate", "LaunchTemplate")
NEVER = 600  # seconds: longer than the test
AT_ONCE = 10  # launches under way in one place
LOST = 10
OF_A_RUN = 25  # launches in each of the two places
RUNS = 4  # with `--long`; otherwise one


def test_each_launch_is_one_job_although_the_triggerer_is_killed_before_replies_and_others_are_lost(
    airflow: RealAirflow, dataflow: OutsideDataflow, full_load: bool
) -> None:
    number = RUNS if full_load else 1
    each = number * OF_A_RUN
    running, ending = f"{dataflow.prefix}-flex", f"{dataflow.prefix}-classic"
    # The list shows none of those that run, so that they are launched a second time, and at once those that have ended.
    # What a second launch gets is another matter than the database is: each of two is tested with one of two.
    second_launch = {"sqlite": "refuse", "postgres": "return"}[airflow.database.backend]
    dataflow.set(second_launch=second_launch, list_lag=NEVER)
    dataflow.script(running, RUNNING)
    dataflow.script(ending, RUNNING, DONE, list_lag=0)
    calls_before = {method: dataflow.calls(method) for method in METHODS}
    for method in METHODS:
        dataflow.tell("delay", method, after=NEVER)
    runs = [airflow.trigger("dataflow_many", {"job": dataflow.prefix}) for _ in range(number)]
    for prefix in (running, ending):
        dataflow.wait_for_jobs(AT_ONCE, prefix)

    airflow.triggerer.kill()
    assert len(dataflow.jobs()) == 2 * AT_ONCE
    assert all(wait.launched_at is None for wait in waits_of(airflow, runs))
    dataflow.tell("mend")
    for method in METHODS:
        dataflow.tell("lose_replies", method, LOST, "UNAVAILABLE")
    airflow.start_component(airflow.triggerer)

    def calls(method: str) -> int:
        return dataflow.calls(method) - calls_before[method]

    wait_until(
        lambda: calls("LaunchFlexTemplate") >= each + AT_ONCE + LOST,
        "all jobs that no list shows to be launched a second time",
        timeout=120,
    )
    dataflow.set(list_lag=0)
    wait_until(
        lambda: all(wait.launched_at is not None for wait in waits_of(airflow, runs)),
        "all launches to be recorded",
        timeout=120,
        every=0.5,
    )
    jobs = dataflow.jobs()
    for job in jobs:
        if job.state == "RUNNING":
            dataflow.tell("move", job.id, "DONE")

    for run in runs:
        run.wait_for("success")
        assert run.worker_processes() == 0
    assert len(dataflow.jobs()) == len({job.name for job in jobs}) == 2 * each
    assert all(job.stops_asked == [] for job in dataflow.jobs())
    assert calls("LaunchTemplate") == each  # those that have ended were found by their names
    waits = waits_of(airflow, runs)
    assert {wait.launch_answer["job_id"] for wait in waits} == {job.id for job in jobs}
    for wait in waits:
        assert isinstance(wait.outcome, Success)
        value = wait.outcome.value  # the job of a flex template, the id of a classic one
        assert (value if isinstance(value, str) else value["id"]) == wait.launch_answer["job_id"]
