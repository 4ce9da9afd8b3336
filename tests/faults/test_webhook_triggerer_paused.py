"""Two triggerers: the one that runs the waits is paused, the other takes over, and then the first comes back.

Airflow tells the one that comes back to kill its triggers (airflow#73454), as if a user had asked for it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from faults.support.launched import Launched
from faults.support.triggerers import REASSIGNED, left_alone, resume_all_but_the_supervisor

from real_airflow import OutsideService, RealAirflow, wait_until


def test_triggerer_that_comes_back_sends_nothing_and_cancels_nothing(
    airflow: RealAirflow, new_service: Callable[[], OutsideService]
) -> None:
    refusing, silent = new_service(), new_service()
    holding, answering = new_service().start(), new_service().start()
    release = holding.hold("/job")
    before, during, after = (Launched.at(airflow, service) for service in (refusing, holding, answering))
    before.wait_until_refused()
    holding.wait_for_requests("/job")
    after.wait_until_recorded()
    with nobody_accepts(silent.port):
        connecting = Launched.at(airflow, silent)
        connecting.wait_until_connecting()
        airflow.pause(airflow.triggerer)
    left_before = left_alone(airflow)
    refusing.start()
    silent.start()
    second = airflow.add_triggerer()
    release.set()

    for launched, requests in ((before, 1), (connecting, 1), (during, 2)):
        launched.service.wait_for_requests("/job", requests, timeout=90)
    airflow.pause(second)
    asyncio.run(resume_all_but_the_supervisor(airflow))
    second.resume()
    airflow.triggerer.resume()
    for launched in (before, connecting, during, after):
        wait_until(
            lambda task=launched.task: REASSIGNED in task.log(), f"{launched.task} to be reassigned", 120
        )
        assert launched.task.log().count("Waiting for the callback") >= 2, (
            "the first was stopped too early to tell"
        )
    wait_until(
        lambda: left_alone(airflow) >= left_before + 4,
        "the first triggerer to understand that nobody ended the tasks",
        timeout=120,
    )

    before.end(requests=1)
    connecting.end(requests=1)
    during.end(requests=2)
    after.end(requests=1)


@pytest.mark.long
def test_task_that_ended_meanwhile_is_left_alone_by_the_triggerer_that_comes_back(
    airflow: RealAirflow, outside: OutsideService
) -> None:
    launched = Launched.at(airflow, outside)
    launched.wait_until_recorded()
    airflow.pause(airflow.triggerer)
    airflow.add_triggerer()
    launched.end(requests=1)

    airflow.triggerer.resume()
    wait_until(lambda: launched.task.log().count("trigger completed") == 2, "the first triggerer to leave it")

    launched.assert_undisturbed(requests=1)
    assert launched.task.state == launched.task.run.state == "success"


@contextmanager
def nobody_accepts(port: int) -> Iterator[None]:
    """Let connections to a port neither succeed nor fail: its queue is full."""
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        yield
