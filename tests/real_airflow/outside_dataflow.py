"""A fake Dataflow in a process of its own, as one test sees it: the jobs whose names begin with the test's prefix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from real_airflow.waiting import wait_until

if TYPE_CHECKING:
    from deferrable_ops.testing.dataflow import DataflowControl

RUNNING = {"state": "RUNNING"}
DONE = {"state": "DONE"}


@dataclass(frozen=True)
class DataflowJob:
    """A job as it was when it was looked at.

    :param request: what it was launched with, as the API's JSON.
    :param stops_asked: `cancel` and `drain`, as often as they were asked for.
    """

    id: str
    name: str
    state: str
    labels: dict[str, str]
    request: dict[str, Any]
    stops_asked: list[str]


class OutsideDataflow:
    """The fake that the Airflows of a session are told of. All jobs run until they are told otherwise.

    :param control: of the fake's process.
    """

    def __init__(self, control: DataflowControl) -> None:
        self._control = control
        self.prefix = self.new_prefix()

    def new_prefix(self) -> str:
        """Return what nobody else's jobs begin with; those of this one run until they are told otherwise."""
        prefix = f"test-{uuid4().hex[:12]}"
        self.script(prefix, RUNNING)
        return prefix

    def script(self, prefix: str, *steps: dict[str, Any], **how: Any) -> None:
        """Say what becomes of the jobs that are launched from now on: see `FakeDataflow.script`."""
        self._control.tell("script", prefix, *steps, **how)

    def tell(self, what: str, *positional: Any, **named: Any) -> None:
        """Tell the fake something: see `DataflowControl.tell`."""
        self._control.tell(what, *positional, **named)

    def set(self, **settings: Any) -> None:
        """Set something for as long as the test runs: see `DataflowControl.set`."""
        self._control.set(**settings)

    def calls(self, method: str) -> int:
        """Count the calls of a method, of all tests."""
        count: int = self._control.report()["calls"].get(method, 0)
        return count

    def jobs(self, prefix: str = "") -> list[DataflowJob]:
        """Return the jobs, the oldest first.

        :param prefix: of their names; by default the test's.
        """
        fields = DataflowJob.__dataclass_fields__
        return [
            DataflowJob(**{name: job[name] for name in fields})
            for job in self._control.report()["jobs"]
            if job["name"].startswith(prefix or self.prefix)
        ]

    def wait_for_jobs(self, count: int = 1, prefix: str = "", timeout: float = 60) -> list[DataflowJob]:
        """Return the jobs, once there are so many."""
        prefix = prefix or self.prefix
        what = f"{count} jobs called {prefix}..."
        return wait_until(lambda: jobs if len(jobs := self.jobs(prefix)) >= count else [], what, timeout)

    def wait_for_stop(self, job: DataflowJob, timeout: float = 60) -> list[str]:
        """Return how a job was asked to stop, once it was."""
        return wait_until(lambda: self.job(job.id).stops_asked, f"{job.name} to be stopped", timeout)

    def job(self, job_id: str) -> DataflowJob:
        """Return a job as it is now."""
        [found] = [job for job in self.jobs("test-") if job.id == job_id]
        return found

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        """Drop every connection, and refuse new ones within the block."""
        self._control.tell("disconnect")
        try:
            yield
        finally:
            self._control.tell("connect")

    def restore(self) -> None:
        """Let everything be as it was before the test, except the jobs."""
        self._control.tell("mend")
        self._control.set(second_launch="refuse", list_lag=0)
