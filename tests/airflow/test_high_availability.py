"""What a check's outcome does to a DAG run, and how many workers it takes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from real_airflow import RealAirflow, Run, wait_until

# Nothing of these depends on the inbox's database.
once = pytest.mark.parametrize("started_airflow", ["postgres"], indirect=True)

# The state of a run that ends with a result.
STATES = {"pass": "success", "fail": "failed"}
ENDED_BY_TRIGGER = re.compile("The wait (succeeded|failed)|The task is skipped")
GATES = ("stop-pass", "stop-fail", "retrigger-pass", "retrigger-fail")


class Script:
    """What a chain of runs is told, and what it did."""

    def __init__(self, airflow: RealAirflow, file: Path) -> None:
        self.airflow = airflow
        self.file = file

    def says(self, *of_runs: Sequence[str]) -> None:
        """Let the checks of the first run say the first of these, those of later runs the next."""
        self.file.write_text(json.dumps(of_runs))

    def start(self, dag_id: str, **conf: Any) -> Run:
        return self.airflow.trigger(dag_id, {"file": str(self.file), **conf})

    def chain(self, dag_id: str) -> list[Run]:
        """Return the runs that this script was given to, the first one first."""
        rows = self.airflow.client.get(f"/dags/{dag_id}/dagRuns", order_by="id", limit=100)["dag_runs"]
        return [
            Run(self.airflow.client, dag_id, row["dag_run_id"])
            for row in rows
            if (row["conf"] or {}).get("file") == str(self.file)
        ]

    def asked(self) -> list[str]:
        """Return the id of the run of each check, in order."""
        file = self.file.with_suffix(".asked")
        return file.read_text().split() if file.exists() else []

    def ended(self, dag_id: str, *states: str, timeout: float = 180) -> list[Run]:
        """Return the runs of the chain, once there are so many and they ended in these states."""
        wait_until(
            lambda: [run.state for run in self.chain(dag_id)] == list(states),
            f"the runs of {dag_id} to end as {states}",
            timeout,
        )
        return self.chain(dag_id)


@pytest.fixture
def script(airflow: RealAirflow, tmp_path: Path) -> Script:
    """A script of its own for each test."""
    return Script(airflow, tmp_path / "script.json")


@pytest.fixture
def scripts(airflow: RealAirflow, tmp_path: Path) -> dict[str, Script]:
    """One script for each result, for runs that go on side by side."""
    return {result: Script(airflow, tmp_path / f"{result}.json") for result in STATES}


def gates(run: Run, task_id: str = "ha") -> dict[str, str | None]:
    """Return the states of the four branches and the leaf."""
    states = run.task_states()
    return {name: states[f"{task_id}-{name}"] for name in (*GATES, "force-dag-fail")}


NOT_CHOSEN = dict.fromkeys((*GATES, "force-dag-fail"), "skipped")


@pytest.mark.parametrize("dag_id", [pytest.param("ha", marks=pytest.mark.both_databases), "ha_on_the_loop"])
def test_stop_ends_the_run_in_the_state_of_its_result_and_without_a_worker(
    scripts: dict[str, Script], dag_id: str
) -> None:
    for result, script in scripts.items():
        script.says((result, "stop"))
        script.start(dag_id)

    for result, script in scripts.items():
        [run] = script.ended(dag_id, STATES[result])
        assert run.task("ha").xcom() == [result, "stop"]
        failed = {"stop-fail": "failed", "force-dag-fail": "failed"}
        assert gates(run) == NOT_CHOSEN | ({"stop-pass": "success"} if result == "pass" else failed)
        assert run.worker_processes() == 0
        started = [name for name in gates(run) if ENDED_BY_TRIGGER.search(run.task(f"ha-{name}").log())]
        # The scheduler skips the other gates without starting them.
        assert started == (["stop-pass"] if result == "pass" else ["stop-fail", "force-dag-fail"])


@pytest.mark.both_databases
def test_retrigger_starts_the_dag_again_with_one_worker_and_ends_the_run_in_the_state_of_its_result(
    scripts: dict[str, Script],
) -> None:
    for result, script in scripts.items():
        script.says((result, "retrigger"), ("pass", "stop"))
        script.start("ha")

    for result, script in scripts.items():
        first, second = script.ended("ha", STATES[result], "success")
        leaf = {"force-dag-fail": "failed"} if result == "fail" else {}
        assert gates(first) == NOT_CHOSEN | {f"retrigger-{result}": "success"} | leaf
        assert first.worker_starts() == [(f"ha-retrigger-{result}", 1)]
        assert second.worker_processes() == 0
        conf = second.client.get(second.path)["conf"]
        assert conf["ha-retrigger"] == 1
        assert datetime.fromisoformat(conf["ha-referencedate"])


def test_continue_goes_on_checking_until_the_check_says_otherwise(scripts: dict[str, Script]) -> None:
    for result, script in scripts.items():
        script.says((result, "continue"))
        script.start("ha")
    for script in scripts.values():
        wait_until(lambda script=script: len(script.asked()) > 3, "some checks")
        [run] = script.chain("ha")
        assert run.task("ha").state == "deferred"
        script.says(("pass", "stop"))

    for script in scripts.values():
        [run] = script.ended("ha", "success")
        assert run.worker_processes() == 0


@pytest.mark.long
def test_timeout_retriggers_with_the_last_result(scripts: dict[str, Script]) -> None:
    for result, script in scripts.items():
        script.says((result, "continue"), ("pass", "stop"))
        script.start("ha_timeout")

    for result, script in scripts.items():
        first, _second = script.ended("ha_timeout", STATES[result], "success")
        assert first.task("ha").xcom() == [result, "retrigger"]
        assert first.worker_starts() == [(f"ha-retrigger-{result}", 1)]


@once
def test_retriggers_end_with_maxretrigger(script: Script) -> None:
    script.says(("fail", "retrigger"))
    script.start("ha_limited")

    _first, second = script.ended("ha_limited", "failed", "failed")
    assert second.task("ha").xcom() == ["fail", "stop"]
    assert second.worker_processes() == 0


@once
def test_check_that_raises_is_retriggered_after_longer_and_longer_pauses_with_its_conf(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    script = Script(airflow, tmp_path / "crashes.json")
    script.start("ha_crashes", venue="LSE", desk="swaps")

    runs = script.ended("ha_crashes", "failed", "failed", "failed")
    ends = [
        [
            datetime.fromisoformat(run.task(task_id).attributes["end_date"])
            for task_id in ("ha", "ha-retrigger-fail")
        ]
        for run in runs
    ]
    checked, retriggered = ends[1]
    # The pause begins when the inbox has the result. Airflow writes the end of the check up to two seconds later.
    assert (retriggered - checked).total_seconds() >= 10
    assert ["The next DAG run starts in" in run.task("ha-retrigger-fail").log() for run in runs[:2]] == [
        False,
        True,
    ]
    # The required param has no default, so each task starts on a worker; the pause is in the triggerer.
    assert sum(task_id == "ha-retrigger-fail" for task_id, _ in runs[1].worker_starts()) == 2
    confs = [run.client.get(run.path)["conf"] for run in runs]
    assert [(conf["venue"], conf["desk"], conf.get("again")) for conf in confs] == [
        ("LSE", "swaps", None),
        ("LSE", "swaps", True),
        ("LSE", "swaps", True),
    ]


@once
def test_maxretrigger_of_zero_means_none(script: Script) -> None:
    script.says(("pass", "retrigger"))
    script.start("ha_never_again")

    [run] = script.ended("ha_never_again", "success")
    assert run.task("ha").xcom() == ["pass", "stop"]


@once
def test_runtime_and_endtime_end_the_run_without_another_check(airflow: RealAirflow, tmp_path: Path) -> None:
    by_runtime, by_endtime = (Script(airflow, tmp_path / f"{name}.json") for name in ("runtime", "endtime"))
    by_runtime.says(("fail", "continue"))
    by_endtime.says(("pass", "continue"))
    end = datetime.now(UTC) + timedelta(seconds=15)
    run = by_runtime.start("ha_limited", **{"ha-force-runtime": 12.5})
    until = by_endtime.start("ha_limited", **{"ha-force-endtime": f"{end:%H:%M:%S}"})

    run.wait_for("success")
    assert run.task("ha").xcom() == ["pass", "stop"]
    began = datetime.fromisoformat(run.client.get(run.path)["start_date"])
    ended = datetime.fromisoformat(run.task("ha").attributes["end_date"])
    assert ended - began >= timedelta(seconds=12.5)
    assert run.worker_processes() == 0

    until.wait_for("success")
    assert until.task("ha").xcom() == ["pass", "stop"]
    assert datetime.fromisoformat(until.task("ha").attributes["end_date"]) >= end.replace(microsecond=0)


@once
def test_forced_run_ignores_its_limits_and_so_do_those_that_it_starts(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    # The second is airflow-ha's own name.
    scripts = {name: Script(airflow, tmp_path / name) for name in ("ha-force-run", "airflow_ha_force_run")}
    for name, script in scripts.items():
        script.says(("pass", "retrigger"), ("pass", "retrigger"), ("pass", "stop"))
        script.start("ha_limited", **{name: True})

    for script in scripts.values():
        runs = script.ended("ha_limited", "success", "success", "success")
        assert [run.task("ha").xcom()[1] for run in runs] == ["retrigger", "retrigger", "stop"]


@once
def test_forced_maxretrigger_and_count_hold_for_the_run(script: Script) -> None:
    script.says(("pass", "retrigger"))
    script.start("ha_limited", **{"ha-force-maxretrigger": 5, "ha-force-retrigger": 4})

    _first, second = script.ended("ha_limited", "success", "success")
    assert second.client.get(second.path)["conf"]["ha-retrigger"] == 5
    assert second.task("ha").xcom() == ["pass", "stop"]


@pytest.mark.long
@once
def test_tasks_in_a_group_have_the_groups_ids(script: Script) -> None:
    script.says(("pass", "retrigger"), ("pass", "stop"))
    script.start("ha_group")

    first, second = script.ended("ha_group", "success", "success")
    assert set(first.task_states()) == {"watch.ha", *(f"watch.ha-{name}" for name in NOT_CHOSEN)}
    assert second.client.get(second.path)["conf"]["watch.ha-retrigger"] == 1
    assert first.worker_starts() == [("watch.ha-retrigger-pass", 1)]


@once
@pytest.mark.long
def test_two_operators_of_one_dag_count_for_themselves(script: Script) -> None:
    script.says(("pass", "retrigger"), ("pass", "stop"))
    script.start("ha_two")

    # The first starts one for each operator; in either, the other operator has not retriggered yet.
    wait_until(
        lambda: len(runs := script.chain("ha_two")) == 5 and all(run.state == "success" for run in runs),
        "five runs to end",
        timeout=180,
    )
    first, *others = script.chain("ha_two")
    assert sorted(first.worker_starts()) == [("orders-retrigger-pass", 1), ("payments-retrigger-pass", 1)]
    counts = [run.client.get(run.path)["conf"] for run in others]
    told = sorted((conf.get("orders-retrigger", 0), conf.get("payments-retrigger", 0)) for conf in counts)
    assert told == [(0, 1), (1, 0), (1, 1), (1, 1)]


@once
def test_failed_result_fails_the_run_whatever_is_chained_behind_the_branches(script: Script) -> None:
    script.says(("fail", "stop"))
    script.start("ha_chained")

    [run] = script.ended("ha_chained", "failed")
    states = run.task_states()
    assert {name: state for name, state in states.items() if name.startswith("after_")} == {
        f"after_{name.replace('-', '_')}": "success" for name in GATES
    }


@once
def test_failed_upstream_does_not_retrigger(script: Script) -> None:
    script.says(("pass", "stop"))
    script.start("ha_upstream_failed")

    [run] = script.ended("ha_upstream_failed", "failed")
    assert gates(run) == dict.fromkeys(GATES, "upstream_failed") | {"force-dag-fail": "failed"}
    assert script.asked() == []


@once
def test_retrigger_may_wait_for_the_run_that_it_starts(script: Script) -> None:
    script.says(("pass", "retrigger"), ("fail", "stop"))
    script.start("ha_waits_for_the_next")

    first, _second = script.ended("ha_waits_for_the_next", "failed", "failed")
    # It started the run, and after the triggerer had seen that run end, it read how.
    assert first.worker_starts() == [("ha-retrigger-pass", 1)] * 2
