"""What happens to a triggerer's triggers when another one takes them over, and the first comes back."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import psutil

from deferrable_ops.deployment import Deployment
from deferrable_ops.inbox import Attempt, Inbox, NewWait, WaitState
from real_airflow import RealAirflow

REASSIGNED = "Trigger cancelled by user action, invoking on_kill"  # Airflow says so of a reassignment too


def left_alone(airflow: RealAirflow) -> int:
    """Count how often the first triggerer understood that nobody had ended a task whose trigger it lost."""
    return airflow.triggerer.output.read_text().count("moved the trigger of wait")


async def resume_all_but_the_supervisor(airflow: RealAirflow, seconds: int = 3) -> None:
    """Let the first triggerer's triggers run before Airflow can tell them to stop, and return when they have.

    :param seconds: for how long they run at least. What they log is written once the supervisor runs.
    """
    inbox = await Inbox.open(airflow.inbox_url, retry_timeout=60)
    owner = await inbox.owner.current()
    assert owner is not None, "the API server has not adopted the inbox"
    inbox.owner.deployment = Deployment(owner.deployment)
    for process in psutil.Process(airflow.triggerer.pid).children(recursive=True):
        process.resume()
    for _ in range(seconds):  # only a triggerer ends a wait that is over, and no other runs
        nobody = Attempt(str(uuid4()), 1, "nobody", uuid4().hex, "nobody")
        wait = await inbox.waits.register(NewWait(nobody, "webhook", timeout=1))
        while wait.state is WaitState.WAITING:
            await asyncio.sleep(0.1)
            wait = await inbox.waits.get(wait.id)
    await inbox.close()
