"""Many log lines while many tasks start: what makes a triggerer of plain Airflow hang for ever, alive.

docs/known-airflow-bugs.md explains why. Nothing here is measured: a triggerer that is slow is waited for. It
runs on another host than the other components.
"""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from real_airflow import (
    PATIENT,
    Hosts,
    OutsideService,
    Postgres,
    RealAirflow,
    ReceivedRequest,
    Run,
    postgres_database,
    wait_until,
)

RUNS, TASKS, STARTS = 60, 50, 5
WAITS = RUNS * TASKS
CALLED_BACK = 5  # after each start
LINES_A_SECOND = 1_500
SUPERVISORS = 10
BUDGET = 200  # lines a second, of [deferrable_ops] forward_logs_lines_per_second
BURST = 30 * BUDGET
LONGEST_BLOCK = 1.0  # seconds
SKIPPED = re.compile(r"\[test\] skipped ([\d,]+) lines? \(")
LINE = re.compile(r"\[test\] line (\d+) ")
# What Airflow writes when the loop of a triggerer is late by 0.2 s.
BLOCKED = re.compile(r"async thread was blocked for ([\d.]+) seconds")
PLAIN_RUNS = 20  # of the 50 tasks of the page's DAG
MOST_PLAIN_RUNS = 20 * PLAIN_RUNS

PATIENCE = 3_600.0
HANGS_AFTER = 90.0  # seconds without a heartbeat; there is one a second
ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.long, pytest.mark.timeout(5 * PATIENCE)]


@pytest.fixture
def outside(new_service: Callable[[], OutsideService]) -> OutsideService:
    return new_service().start()


@pytest.fixture
def new_airflow(
    tmp_path: Path,
    new_postgres: Callable[[dict[str, str]], Postgres],
    hosts: Hosts,
    remote_machine: dict[str, str],
) -> Iterator[Callable[..., RealAirflow]]:
    """Start an Airflow as docs/capacity.md recommends for thousands of waits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert hard > 2 * WAITS, "a triggerer has an open file for each of its triggers"
    started: list[RealAirflow] = []

    def start(dags: Path, **environment: str) -> RealAirflow:
        home = tmp_path / "airflow"
        home.mkdir()
        settings = {
            "AIRFLOW__TRIGGERER__CAPACITY": str(2 * WAITS),
            **PATIENT,
            "STORM_TASKS": str(TASKS),
            "STORM_LINES_A_SECOND": str(LINES_A_SECOND),
            "STORM_SUPERVISORS": str(SUPERVISORS),
            **remote_machine,
            **environment,
        }
        database = postgres_database(new_postgres({"fsync": "off"}))
        started.append(RealAirflow(home, database, [dags], settings, hosts))
        started[-1].start(api_server_first=True)
        return started[-1]

    yield start
    for airflow in started:
        airflow.stop()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def triggerer_job(airflow: RealAirflow) -> dict[str, Any]:
    jobs = airflow.client.get("/jobs", job_type="TriggererJob", job_state="running", order_by="-id", limit=1)[
        "jobs"
    ]
    job: dict[str, Any] = jobs[0]
    return job


def heartbeat(airflow: RealAirflow) -> datetime:
    return datetime.fromisoformat(triggerer_job(airflow)["latest_heartbeat"])


def wait_for_heartbeats(airflow: RealAirflow, count: int = 3) -> None:
    """Wait until the triggerer has sent some more heartbeats. It sends none while its event loop stands still."""
    for _ in range(count):
        last = heartbeat(airflow)
        wait_until(lambda last=last: heartbeat(airflow) > last, "a heartbeat", timeout=PATIENCE, every=0.5)


def logs_with(airflow: RealAirflow, dag_id: str, job_id: int, line: str) -> int:
    """Count the tasks of a DAG that one run of the triggerer has written a line for."""
    files = (airflow.home / "logs").glob(f"dag_id={dag_id}/*/*/*.trigger.{job_id}.log")
    return sum(line in file.read_text() for file in files)


def call_back(airflow: RealAirflow, outside: OutsideService, requests: list[ReceivedRequest]) -> None:
    """Call waits back, and wait until their tasks have ended."""
    for request in requests:
        assert outside.call_back(request, request.body["task_id"]).status_code == 200
    for request in requests:
        run = Run(airflow.client, "storm_waits", request.body["run_id"])
        task = run.task(request.body["task_id"]).wait_for("success", timeout=PATIENCE)
        assert task.xcom() == task.task_id


def test_thousands_of_waits_of_large_dags_start_again_in_each_new_triggerer(
    new_airflow: Callable[..., RealAirflow], outside: OutsideService
) -> None:
    airflow = new_airflow(Path(__file__).parent / "dags")
    began = time.monotonic()
    runs = [airflow.trigger("storm_waits", {"service": outside.url}) for _ in range(RUNS)]
    requests = outside.wait_for_requests("/job", WAITS, timeout=PATIENCE)
    ended = 0
    for start in range(STARTS):
        if start:
            began = time.monotonic()
            airflow.triggerer.stop(timeout=300)
            airflow.start_component(airflow.triggerer)
        job_id, left = triggerer_job(airflow)["id"], WAITS - ended
        wait_until(
            lambda job_id=job_id, left=left: (
                logs_with(airflow, "storm_waits", job_id, "Waiting for the callback of wait ") == left
            ),
            f"{left} waits in start {start} of the triggerer",
            timeout=PATIENCE,
            every=3,
        )
        print(f"start {start}: {left} waits after {time.monotonic() - began:.0f} s")
        wait_for_heartbeats(airflow)
        call_back(airflow, outside, requests[ended : ended + CALLED_BACK])
        ended += CALLED_BACK
    states = [state for run in runs for state in run.task_states().values()]
    assert (states.count("success"), states.count("deferred")) == (ended, WAITS - ended)
    assert len(outside.requests("/job")) == WAITS
    assert not any(run.worker_processes() for run in runs)


def test_supervisors_start_and_end_while_another_forwards_1500_lines_a_second(
    new_airflow: Callable[..., RealAirflow], outside: OutsideService, remote_machine: dict[str, str]
) -> None:
    airflow = new_airflow(Path(__file__).parent / "dags")
    end = Path(remote_machine["SUPERVISOR_FOLDERS"], "lines.end")
    storm_began = time.monotonic()
    lines = airflow.trigger("storm_lines")
    log = wait_until(
        lambda: next((airflow.home / "logs").glob("dag_id=storm_lines/*/*check-programs/*"), None),
        "a log of the lines",
        timeout=PATIENCE,
    )
    wait_until(lambda: log.read_text().count("[test] line") > 1_000, "1,000 lines", timeout=PATIENCE)

    began, size = time.monotonic(), log.stat().st_size
    supervisors = [airflow.trigger(f"storm_supervisor_{number}") for number in range(SUPERVISORS)]
    wait = airflow.trigger("storm_wait", {"service": outside.url})
    [request] = outside.wait_for_requests("/job", timeout=PATIENCE)
    assert outside.call_back(request).status_code == 200
    for run in [wait, *supervisors]:
        run.wait_for("success", timeout=PATIENCE)
        print(f"{run.dag_id} ended after {time.monotonic() - began:.0f} s")
    wait_for_heartbeats(airflow)
    wait_until(lambda: log.stat().st_size > size, "the log to go on", timeout=PATIENCE)
    print(f"{log.read_text().count('[test] line')} lines in the log")

    end.touch()
    lines.wait_for("success", timeout=PATIENCE)
    print(f"the lines ended after {time.monotonic() - began:.0f} s")
    wait_until(lambda: "[test] the last line" in log.read_text(), "all lines", timeout=PATIENCE)
    print(f"the last line was in the log after {time.monotonic() - began:.0f} s")
    text = log.read_text()
    skipped = [int(number.replace(",", "")) for number in SKIPPED.findall(text)]
    written = [int(number) for number in LINE.findall(text)]
    print(f"{len(written)} lines in the log, {sum(skipped)} skipped")
    assert sum(skipped) > 0, "the budget is far below this rate"
    assert written[-1] > len(written), "the newest lines are in the log"
    assert len(written) < BURST + BUDGET * (time.monotonic() - storm_began)
    for run in [lines, *supervisors]:
        assert "The wait succeeded" in run.task(f"{run.dag_id}-check-programs").log(), (
            "the end of a log is missing"
        )
    blocks = [float(seconds) for seconds in BLOCKED.findall(airflow.triggerer.output.read_text())]
    print(f"the event loop was late by {sorted(blocks)} s")
    assert max(blocks, default=0.0) < LONGEST_BLOCK
    assert not any(run.worker_processes() for run in [lines, wait, *supervisors])


@pytest.fixture
def plain_dags(tmp_path: Path) -> Path:
    """The DAG file of the page, and beside it one wait of ours, whose trigger buffers the log."""
    page = (ROOT / "docs" / "known-airflow-bugs.md").read_text()
    shown = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "log_storm.py").write_text(shown.group(1))
    (dags / "waits.py").write_text((Path(__file__).parent / "dags" / "log_storm.py").read_text())
    return dags


def start_log(airflow: RealAirflow) -> None:
    """Run the page's DAG that writes log lines without an end."""
    airflow.trigger("writes_log")
    wait_until(
        lambda: any((airflow.home / "logs").glob("dag_id=writes_log/*/*/*")), "the log", timeout=PATIENCE
    )


def start_plain_runs(airflow: RealAirflow) -> list[Run]:
    """Run the page's DAG whose tasks start and end."""
    return [airflow.trigger("starts") for _ in range(PLAIN_RUNS)]


def test_dags_of_the_page_hang_a_triggerer_of_plain_airflow(
    new_airflow: Callable[..., RealAirflow], plain_dags: Path
) -> None:
    """When this fails, Airflow has mended it, and the page is to be changed."""
    airflow = new_airflow(plain_dags, PYTHONPATH=str(plain_dags))
    began = time.monotonic()
    start_log(airflow)
    runs = start_plain_runs(airflow)

    def hangs() -> bool:
        """Start more tasks as long as it does not hang, because it only hangs if a start meets a full socket."""
        assert airflow.triggerer.running
        assert len(runs) < MOST_PLAIN_RUNS, "the triggerer did not hang"
        if runs[-1].state == "success":
            runs.extend(start_plain_runs(airflow))
        return (datetime.now(UTC) - heartbeat(airflow)).total_seconds() > HANGS_AFTER

    wait_until(hangs, "the triggerer to hang", timeout=PATIENCE, every=1)
    print(f"hung {time.monotonic() - began - HANGS_AFTER:.0f} s after the log began to be written")
    print(f"what its processes wait in: {airflow.triggerer.waits_in()}")
    states = [state for run in runs for state in run.task_states().values()]
    print({state: states.count(state) for state in set(states)})


def test_the_same_dags_end_where_a_trigger_of_ours_buffers_the_log(
    new_airflow: Callable[..., RealAirflow], plain_dags: Path, outside: OutsideService
) -> None:
    airflow = new_airflow(plain_dags, PYTHONPATH=str(plain_dags))
    wait = airflow.trigger("storm_wait", {"service": outside.url})
    [request] = outside.wait_for_requests("/job", timeout=PATIENCE)
    began = time.monotonic()
    start_log(airflow)
    for run in start_plain_runs(airflow):
        run.wait_for("success", timeout=PATIENCE)
    print(f"all runs ended after {time.monotonic() - began:.0f} s")
    wait_for_heartbeats(airflow)
    assert outside.call_back(request).status_code == 200
    wait.wait_for("success", timeout=PATIENCE)
