"""The demo: a real Airflow, a small outside service, and the example DAG that waits for it."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))

from real_airflow import (  # noqa: E402
    Answer,
    Database,
    OutsideService,
    RealAirflow,
    Run,
    Task,
    sqlite_database,
    wait_until,
)

EXAMPLES = ROOT / "examples"
DAG = "example_webhook"
JOB = Answer(
    status=202,
    heartbeats=({"progress": 0.3, "message": "reading"}, {"progress": 0.7, "message": "training"}),
    callback={"state": "done", "metrics": {"accuracy": 0.94, "rows": 120_000}},
    callback_after=6,
)


def main() -> int:
    """Run the example once, then wait for Ctrl-C unless told otherwise."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="stop everything when the example has run")
    once = parser.parse_args().once
    # So that what was started is also stopped when something else than Ctrl-C ends the demo.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    with contextlib.suppress(KeyboardInterrupt), outside_service() as service, airflow(service) as started:
        run_example(started, service)
        if not once:
            say(f"The UI runs at {started.url} (user admin, password admin); Ctrl-C ends it.")
            say(f"Run {DAG} again there: the outside service answers every time.")
            signal.pause()
    return 0


@contextlib.contextmanager
def outside_service() -> Iterator[OutsideService]:
    """A service that takes any job, reports its progress, and calls back after six seconds."""
    service = OutsideService().start()
    service.script("/train", JOB)
    try:
        yield service
    finally:
        service.stop()


@contextlib.contextmanager
def airflow(service: OutsideService) -> Iterator[RealAirflow]:
    """A real Airflow in a folder of its own, as after a plain installation: everything on SQLite."""
    home = Path(tempfile.mkdtemp(prefix="deferrable-ops-demo-"))
    database: Database = sqlite_database(home)
    started = RealAirflow(home, database, [EXAMPLES], {"AIRFLOW_VAR_JOBS_URL": service.url})
    say("Starting Airflow: api-server, scheduler, dag-processor, triggerer (about 15 s)")
    try:
        started.start()
        yield started
    finally:
        say("Stopping everything")
        started.stop()
        shutil.rmtree(home, ignore_errors=True)


def run_example(started: RealAirflow, service: OutsideService) -> None:
    """Run the example DAG and say what happens, as Airflow's REST API tells it."""
    begin = time.monotonic()
    run = started.trigger(DAG)
    say(f"Started a run of {DAG}")
    task = only_task(run)
    task.wait_for("deferred")
    say(f"{task.task_id}: deferred")
    service.wait_for_requests("/train")
    say(f"{task.task_id}: the job is launched, its callback is awaited")
    report_progress(task)
    run.wait_for("success")

    say(f"{task.task_id}: {task.state} after {time.monotonic() - begin:.1f} s")
    say(f"XCom: {json.dumps(task.xcom())}")
    say(f"worker processes started: {run.worker_processes()}")


def only_task(run: Run) -> Task:
    """Return the example's task."""
    [name] = wait_until(run.task_states, "the run to have its task")
    return run.task(name)


def report_progress(task: Task) -> None:
    """Say each progress that the task's XCom shows, until the task ends."""
    last = None
    while task.state == "deferred":
        progress = task.xcom("progress") if "progress" in task.xcom_keys() else None
        if progress != last:
            say(f"{task.task_id}: progress {json.dumps(progress)}")
            last = progress
        time.sleep(0.2)


def say(line: str) -> None:
    """Print a line at once."""
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
