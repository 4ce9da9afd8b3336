"""DAG runs and their tasks, as a test speaks of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from real_airflow.client import AirflowClient
from real_airflow.waiting import wait_until

FINISHED_RUN = {"success", "failed"}
IN_EVERY_LOG_LINE = {
    "timestamp",
    "event",
    "level",
    "logger",
    "filename",
    "lineno",
    "dag_id",
    "run_id",
    "task_id",
} | {
    "map_index",
    "try_number",
    "ti_id",
}
FINISHED_TASK = {"success", "failed", "skipped", "upstream_failed", "removed"}


@dataclass(frozen=True)
class Try:
    """One attempt of a task, from Airflow's history."""

    number: int
    state: str | None
    hostname: str
    pid: int | None


@dataclass(frozen=True)
class Run:
    """One run of a DAG."""

    client: AirflowClient
    dag_id: str
    run_id: str

    @property
    def path(self) -> str:
        """Where the REST API has it."""
        return f"/dags/{self.dag_id}/dagRuns/{self.run_id}"

    @property
    def state(self) -> str:
        """Its state now."""
        state: str = self.client.get(self.path)["state"]
        return state

    def task(self, task_id: str, map_index: int = -1) -> Task:
        """Return one of its tasks."""
        return Task(self, task_id, map_index)

    def task_states(self) -> dict[str, str | None]:
        """Return the state of every task; a mapped one is called `task[0]`."""
        tasks = self.client.get(f"{self.path}/taskInstances", limit=10_000)["task_instances"]
        return {_name(task["task_id"], task["map_index"]): task["state"] for task in tasks}

    def wait_for(self, state: str, timeout: float = 120) -> Run:
        """Wait until the run has this state, and fail at once when it ended in another."""
        wait_until(lambda: self._has_come_to(state), f"{self} to be {state!r}", timeout, every=0.3)
        return self

    def worker_processes(self) -> int:
        """Count the worker processes that ran for all tasks of this run."""
        return len(self.worker_starts())

    def worker_starts(self) -> list[tuple[str, int]]:
        """Return (task, try) of every worker process that ran for this run, in order.

        Airflow writes one audit row `running` in the transaction that lets a worker process begin, and only
        there: none when the scheduler defers a task, one more when a deferred task resumes on a worker.
        """
        rows = self.client.get(
            "/eventLogs", dag_id=self.dag_id, run_id=self.run_id, event="running", limit=10_000
        )
        assert len(rows["event_logs"]) == rows["total_entries"], "the API server cuts its pages shorter"
        starts = sorted(rows["event_logs"], key=lambda row: row["event_log_id"])
        # A filter that an API server does not know is ignored silently: trust none with a test's result.
        return [
            (_name(row["task_id"], row["map_index"]), row["try_number"])
            for row in starts
            if (row["dag_id"], row["run_id"], row["event"]) == (self.dag_id, self.run_id, "running")
        ]

    def _has_come_to(self, wanted: str) -> bool:
        state = self.state
        if state in FINISHED_RUN and state != wanted:
            raise AssertionError(f"{self} ended as {state!r}, not {wanted!r}\n{self._failed_logs()}")
        return state == wanted

    def _failed_logs(self) -> str:
        states = self.task_states()
        failed = [
            self._task_named(name) for name, state in states.items() if state in {"failed", "up_for_retry"}
        ]
        return "\n".join([f"tasks: {states}", *(f"log of {task}:\n{task.log()}" for task in failed)])

    def _task_named(self, name: str) -> Task:
        task_id, _, index = name.removesuffix("]").partition("[")
        return self.task(task_id, int(index or -1))

    def __str__(self) -> str:
        return f"run {self.run_id} of {self.dag_id}"


@dataclass(frozen=True)
class Task:
    """One task instance of a run."""

    run: Run
    task_id: str
    map_index: int

    @property
    def path(self) -> str:
        """Where the REST API has it."""
        mapped = f"/{self.map_index}" if self.map_index >= 0 else ""
        return f"{self._unmapped_path}{mapped}"

    @property
    def attributes(self) -> dict[str, Any]:
        """Everything that the REST API says about it now; empty while it does not exist yet."""
        return self.run.client.find(self.path) or {}

    @property
    def state(self) -> str | None:
        """Its state now."""
        return self.attributes.get("state")

    @property
    def try_number(self) -> int:
        """The number of its newest attempt."""
        number: int = self.attributes["try_number"]
        return number

    def tries(self) -> list[Try]:
        """Return all attempts, the newest last."""
        rows = self.run.client.get(f"{self.path}/tries")["task_instances"]
        attempts = [Try(row["try_number"], row["state"], row["hostname"], row["pid"]) for row in rows]
        return sorted(attempts, key=lambda attempt: attempt.number)

    def wait_for(self, state: str, timeout: float = 60, try_number: int | None = None) -> Task:
        """Wait until the task has this state, and fail at once when it ended in another.

        :param try_number: the attempt that must have it; else whichever comes to it first.
        """
        what = f"{self} to be {state!r}" + (f" in try {try_number}" if try_number else "")
        wait_until(lambda: self._has_come_to(state, try_number), what, timeout, every=0.3)
        return self

    def xcom(self, key: str = "return_value") -> Any:
        """Return an XCom as the type that a downstream task would pull; one encoded twice is a string.

        :raises AssertionError: when there is none.
        """
        entry = self.run.client.find(self._xcom_path(key), map_index=self.map_index, deserialize=False)
        assert entry is not None, f"{self} has no XCom {key!r}; it has {self.xcom_keys()}"
        return entry["value"]

    def xcom_keys(self) -> set[str]:
        """Return the keys of its XComs."""
        entries = self.run.client.get(self._xcom_path(""), map_index=self.map_index)["xcom_entries"]
        return {entry["key"] for entry in entries if entry["map_index"] == self.map_index}

    def links(self) -> dict[str, str | None]:
        """Return the links that the UI shows beside it, by name."""
        links: dict[str, str | None] = self.run.client.get(f"{self.path}/links")["extra_links"]
        return links

    def log(self, try_number: int | None = None) -> str:
        """Return the log of one attempt, the newest by default, one event a line."""
        number = self.try_number if try_number is None else try_number
        path = f"{self._unmapped_path}/logs/{number}"
        answer = self.run.client.find(path, map_index=self.map_index, full_content=True)
        return "\n".join(_log_line(event) for event in (answer or {"content": []})["content"])

    def clear(self, *, downstream: bool = False) -> None:
        """Clear it, as the button does: it runs again.

        :param downstream: as do all that follow it.
        """
        task = self.task_id if self.map_index < 0 else [self.task_id, self.map_index]
        body = {"dag_run_id": self.run.run_id, "task_ids": [task], "dry_run": False, "only_failed": False}
        body["include_downstream"] = downstream
        self.run.client.post(f"/dags/{self.run.dag_id}/clearTaskInstances", body)

    def mark(self, state: str) -> None:
        """Mark it `success`, `failed` or `skipped`, as the button does."""
        self.run.client.patch(self.path, {"new_state": state})

    def worker_processes(self, try_number: int | None = None) -> int:
        """Count the worker processes that ran for it.

        :param try_number: for this attempt only; else for all.
        """
        starts = [
            number for name, number in self.run.worker_starts() if name == _name(self.task_id, self.map_index)
        ]
        return len(starts) if try_number is None else starts.count(try_number)

    @property
    def _unmapped_path(self) -> str:
        return f"{self.run.path}/taskInstances/{self.task_id}"

    def _xcom_path(self, key: str) -> str:
        return f"{self._unmapped_path}/xcomEntries" + (f"/{key}" if key else "")

    def _has_come_to(self, wanted: str, try_number: int | None) -> bool:
        attributes = self.attributes
        state = attributes.get("state")
        if try_number is not None and attributes.get("try_number", 0) < try_number:
            return False
        if state in FINISHED_TASK and state != wanted:
            raise AssertionError(f"{self} ended as {state!r}, not {wanted!r}; its log:\n{self.log()}")
        return state == wanted

    def __str__(self) -> str:
        return f"task {_name(self.task_id, self.map_index)} of {self.run}"


def _name(task_id: str, map_index: int | None) -> str:
    return task_id if map_index is None or map_index < 0 else f"{task_id}[{map_index}]"


def _log_line(event: Any) -> str:
    if isinstance(event, str):
        return event
    details = [f"{key}={value}" for key, value in event.items() if key not in IN_EVERY_LOG_LINE and value]
    return " ".join([str(event["event"]), *details])
