"""A triggerer killed with SIGKILL around the launch, with a service that runs whatever it is sent, as often as that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from faults.support.launched import Launched

from real_airflow import OutsideService, RealAirflow


@pytest.mark.both_databases
def test_launch_is_sent_again_only_where_the_kill_fell_between_sending_and_recording(
    airflow: RealAirflow, new_service: Callable[[], OutsideService]
) -> None:
    refusing, holding, answering = new_service(), new_service().start(), new_service().start()
    release = holding.hold("/job")
    before, during, after = (Launched.at(airflow, service) for service in (refusing, holding, answering))
    before.wait_until_refused()
    holding.wait_for_requests("/job")
    after.wait_until_recorded()

    airflow.triggerer.kill()
    refusing.start()
    release.set()
    airflow.start_component(airflow.triggerer)

    after.end(requests=1)
    before.end(requests=1)
    during.end(requests=2)


def test_callback_of_a_launch_whose_answer_was_lost_ends_the_task_without_another_launch(
    airflow: RealAirflow, outside: OutsideService
) -> None:
    outside.hold("/job")
    launched = Launched.at(airflow, outside)
    [request] = outside.wait_for_requests("/job")
    airflow.triggerer.kill()

    assert outside.call_back(request, {"was": "launched"}).status_code == 200
    airflow.start_component(airflow.triggerer)

    launched.task.run.wait_for("success")
    assert launched.task.xcom() == {"was": "launched"}
    launched.assert_undisturbed(requests=1)
