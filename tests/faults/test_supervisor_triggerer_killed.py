"""A triggerer killed with SIGKILL in each of the ten steps of a supervisord, when its work is done and nobody told."""

from __future__ import annotations

from faults.support.supervisors import end_all, held_pipelines

from real_airflow import RealAirflow


def test_each_step_is_finished_by_the_next_triggerer_and_starts_nothing_twice(airflow: RealAirflow) -> None:
    pipelines = held_pipelines(airflow, "after")

    airflow.triggerer.kill()
    for pipeline in pipelines:
        pipeline.lift()
    airflow.start_component(airflow.triggerer)

    end_all(pipelines)
