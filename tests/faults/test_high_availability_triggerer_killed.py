"""A triggerer killed with SIGKILL while DAG runs are due to be retriggered: each is followed by exactly one."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest

from real_airflow import RealAirflow, Run, Task, wait_until

CHAINS = 12


def test_each_run_is_followed_by_exactly_one_although_the_triggerer_is_killed_while_it_is_due(
    airflow: RealAirflow, tmp_path: Path, full_load: bool
) -> None:
    kills = 4 if full_load else 2
    scripts = [tmp_path / f"{number}.json" for number in range(CHAINS)]
    for script in scripts:
        script.write_text('[["pass", "continue"]]')
    for script in scripts:
        airflow.trigger("ha", {"file": str(script)})
    asked = [script.with_suffix(".asked") for script in scripts]
    wait_until(lambda: all(file.exists() for file in asked), "every check to have run once", timeout=120)

    # A part is killed before the check has said so, and the others when their checks, and then their gates, have.
    for group in range(kills):
        for script in scripts[group::kills]:
            script.write_text('[["fail", "retrigger"], ["pass", "stop"]]')
        if group == 0:
            wait_until(
                lambda: any(_started(airflow, script) for script in scripts), "a run to be retriggered"
            )
        airflow.triggerer.kill()
        airflow.start_component(airflow.triggerer)

    def states() -> list[list[str]]:
        return [[run.state for run in _chain(airflow, script)] for script in scripts]

    wait_until(
        lambda: states() == [["failed", "success"]] * CHAINS, "all chains to end", timeout=240, every=1
    )
    for script in scripts:
        first, second = _chain(airflow, script)
        assert first.worker_starts() == [("ha-retrigger-fail", 1)]
        assert second.worker_processes() == 0
        assert second.client.get(second.path)["conf"]["ha-retrigger"] == 1


@pytest.mark.long
def test_run_is_followed_by_one_when_a_paused_triggerer_comes_back(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    script = tmp_path / "script.json"
    script.write_text('[["pass", "continue"]]')
    airflow.trigger("ha", {"file": str(script)})
    wait_until(script.with_suffix(".asked").exists, "a check")
    airflow.pause(airflow.triggerer)
    script.write_text('[["pass", "retrigger"], ["pass", "stop"]]')
    airflow.add_triggerer()
    wait_until(lambda: len(_chain(airflow, script)) == 2, "the next run", timeout=180)
    airflow.triggerer.resume()

    wait_until(
        lambda: [run.state for run in _chain(airflow, script)] == ["success", "success"],
        "both runs to end",
        timeout=120,
    )
    [first, _second] = _chain(airflow, script)
    assert first.worker_starts() == [("ha-retrigger-pass", 1)]


@pytest.mark.long
@pytest.mark.parametrize("started_airflow", ["postgres"], indirect=True)
@pytest.mark.timeout(600)
def test_pause_before_a_retrigger_goes_on_where_it_was_and_one_run_follows(airflow: RealAirflow) -> None:
    airflow.trigger("ha_pauses")
    wait_until(lambda: len(airflow.runs_of("ha_pauses")) == 2, "the second run", timeout=120)
    [second] = [run for run in airflow.runs_of("ha_pauses") if run.run_id.startswith("retrigger_1__")]
    gate = second.task("ha-retrigger-fail")
    wait_until(lambda: _pauses(gate), "the pause", timeout=120)
    airflow.triggerer.kill()
    airflow.start_component(airflow.triggerer)

    wait_until(
        lambda: [run.state for run in airflow.runs_of("ha_pauses")] == ["failed"] * 3,
        "all runs to end",
        timeout=240,
    )
    # The restarted triggerer takes the task over after about 10 s.
    first, rest = _pauses(gate)
    assert 80 < first <= 90
    assert 0 < rest < first - 5
    ended, started = (
        datetime.fromisoformat(task.attributes["end_date"]) for task in (second.task("ha"), gate)
    )
    # The pause begins when the inbox has the result. Airflow writes the end of the check up to two seconds later.
    assert (started - ended).total_seconds() >= 88
    [third] = [run for run in airflow.runs_of("ha_pauses") if run.run_id.startswith("retrigger_2__")]
    assert third.client.get(third.path)["conf"]["ha-retrigger"] == 2


def _pauses(gate: Task) -> list[int]:
    """Return the pauses in seconds that the log of a gate shows."""
    return [int(found) for found in re.findall(r"The next DAG run starts in (\d+) s", gate.log())]


def _chain(airflow: RealAirflow, script: Path) -> list[Run]:
    rows = airflow.client.get("/dags/ha/dagRuns", order_by="id", limit=1000)["dag_runs"]
    return [
        Run(airflow.client, "ha", row["dag_run_id"])
        for row in rows
        if (row["conf"] or {}).get("file") == str(script)
    ]


def _started(airflow: RealAirflow, script: Path) -> bool:
    return len(_chain(airflow, script)) > 1
