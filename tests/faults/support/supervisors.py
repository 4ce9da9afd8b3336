"""Pipelines with a supervisord each, all at once, each of which is held in another of the ten steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil

from real_airflow import RealAirflow, Run, wait_until

BEGINNING = ("configure-supervisor", "start-supervisor", "start-programs")
ENDING = ("check-programs", "teardown", "stop-programs", "stop-supervisor", "unconfigure-supervisor")
STEPS = (*BEGINNING, *ENDING, "restart-programs", "force-kill")

# A program that fails, and one that is killed, are the two ways to these steps.
FAILING = {
    "stop-programs": ["failed"],
    "restart-programs": ["failed", "success"],
    "force-kill": ["failed"],
}


class HeldPipeline:
    """One pipeline.

    :param step: the one in which it is held.
    :param moment: `before` the step's work, or `after` it.
    """

    def __init__(self, airflow: RealAirflow, step: str, moment: str) -> None:
        self._airflow = airflow
        self.step = step
        self.dag_id = f"supf_{step}"
        self._folders = Path(airflow.environment["SUPERVISOR_FOLDERS"])
        for left in self._folders.glob(f"{self.dag_id}*"):
            if left.is_file():
                left.unlink()
        self._hold.write_text(moment)
        if step in ENDING:
            self.end_program()
        self._run = airflow.trigger(self.dag_id)

    def wait_until_held(self) -> None:
        """Wait until it has come to its step; nobody does before a user has asked for a force-kill."""
        if self.step == "force-kill":
            wait_until(lambda: self._noted("starts"), f"the program of {self._run}", timeout=120)
            task = self._run.task(f"{self.dag_id}-force-kill").wait_for("skipped", timeout=120)
            self._run.task(f"{self.dag_id}-check-programs").wait_for("deferred", timeout=120)
            task.clear()
        wait_until(lambda: self.held_by, f"{self._run} to be held in {self.step}", timeout=120)

    @property
    def held_by(self) -> list[str]:
        """The pids of the triggerers that have held it."""
        return self._noted("held", self.step)

    @property
    def given_up_by(self) -> list[str]:
        """The pids of those that have gone on from there."""
        return self._noted("over", self.step)

    def lift(self) -> None:
        self._hold.unlink()

    def end_program(self) -> None:
        self._end.touch()

    def wait_until_watched(self) -> None:
        """Wait until its programs run and are watched, by the last of its runs."""
        wait_until(lambda: len(self.runs()) == len(self._ends), f"all runs of {self.dag_id}", timeout=120)
        self.runs()[-1].task(f"{self.dag_id}-check-programs").wait_for("deferred", timeout=180)

    @property
    def goes_on(self) -> bool:
        """Whether its programs run on behind its step, until :meth:`end_program`."""
        return self.step in (*BEGINNING, "restart-programs") and not self._end.exists()

    def wait_until_over(self) -> None:
        """Wait until all of its runs have ended, and fail at once when one ends otherwise than it should."""
        wait_until(self._is_over, f"{self.dag_id} to end", timeout=180, every=0.3)

    def _is_over(self) -> bool:
        states = [run.state for run in self.runs()]
        assert len(states) <= len(self._ends), f"{self.dag_id} ran {len(states)} times: {states}"
        for state, right in zip(states, self._ends, strict=False):
            assert state in ("queued", "running", right), f"{self.dag_id}: {states}\n{self.told()}"
        return states == self._ends

    def assert_unharmed(self) -> None:
        """Check that there was one supervisord, that its program was started once, and that nothing is left."""
        starts = 2 if self.step == "restart-programs" else 1
        assert (len(self._noted("supervisords")), len(self._noted("starts"))) == (1, starts), self.told()
        assert not (left := self.processes()), f"{left}\n{self.told()}"
        assert not (self._folders / self.dag_id).exists(), self.told()
        workers = [start for run in self.runs() for start in run.worker_starts()]
        retrigger = [(f"{self.dag_id}-check-programs-retrigger-fail", 1)]
        assert workers == (retrigger if self.step == "restart-programs" else []), self.told()

    def processes(self) -> list[psutil.Process]:
        """Return the supervisord, and what runs in its folder, or for it."""
        folder, found = self._folders / self.dag_id, []
        for process in psutil.process_iter():
            try:
                words, place = " ".join(process.cmdline()), Path(process.cwd())
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            if f"{folder}/" in words or f"{folder}." in words or place.is_relative_to(folder):
                found.append(process)
        return found

    def told(self) -> str:
        """Return what the step's task has logged."""
        task = self._run.task(f"{self.dag_id}-{self.step}")
        return f"{self._run.task_states()}\nlog of {task}:\n{task.log()}"

    @property
    def _ends(self) -> list[str]:
        return FAILING.get(self.step, ["success"])

    @property
    def _end(self) -> Path:
        return self._folders / f"{self.dag_id}.end"

    @property
    def _hold(self) -> Path:
        return self._folders / f"{self.dag_id}-{self.step}.hold"

    def _noted(self, what: str, step: str | None = None) -> list[str]:
        name = self.dag_id if step is None else f"{self.dag_id}-{step}"
        file = self._folders / f"{name}.{what}"
        return file.read_text().split() if file.exists() else []

    def runs(self) -> list[Run]:
        """Return its run, and those that followed from it."""
        path = f"/dags/{self.dag_id}/dagRuns"
        ids = [row["dag_run_id"] for row in self._airflow.client.get(path, order_by="id")["dag_runs"]]
        return [
            Run(self._airflow.client, self.dag_id, run_id) for run_id in ids[ids.index(self._run.run_id) :]
        ]


def held_pipelines(airflow: RealAirflow, moment: str, steps: Sequence[str] = STEPS) -> list[HeldPipeline]:
    """Start one for each step, and return them when each is held there."""
    pipelines = [HeldPipeline(airflow, step, moment) for step in steps]
    for pipeline in pipelines:
        pipeline.wait_until_held()
    return pipelines


def end_all(pipelines: list[HeldPipeline]) -> None:
    """Let the programs end, and check that every pipeline then ends as it should, and leaves nothing."""
    for pipeline in pipelines:
        if pipeline.goes_on:
            pipeline.wait_until_watched()
            pipeline.end_program()
    for pipeline in pipelines:
        pipeline.wait_until_over()
    for pipeline in pipelines:
        pipeline.assert_unharmed()
