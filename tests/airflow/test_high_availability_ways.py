"""Where checks run: in the triggerer, on workers, and what becomes of those that do what no check should."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from real_airflow import RealAirflow, Run, wait_until

ENDED = {"success", "failed"}


def chain_of(airflow: RealAirflow, dag_id: str) -> list[Run]:
    rows = airflow.client.get(f"/dags/{dag_id}/dagRuns", order_by="id", limit=100)["dag_runs"]
    return [Run(airflow.client, dag_id, row["dag_run_id"]) for row in rows]


def test_dags_of_airflow_ha_run_as_they_did(airflow: RealAirflow) -> None:
    """Both at once, because each waits most of its time."""
    with airflow.unpaused("test-ha-counter"), airflow.unpaused("test-high-availability"):
        wait_until(
            lambda: [run.state for run in chain_of(airflow, "test-ha-counter")] == ["success"] * 3,
            "three runs to succeed",
            timeout=240,
        )
        wait_until(
            lambda: any(run.state in ENDED for run in chain_of(airflow, "test-high-availability")),
            "a run to end",
            timeout=240,
        )
    countdown_made_three_runs(airflow)
    run_ended_as_its_check_returned(airflow)


def countdown_made_three_runs(airflow: RealAirflow) -> None:
    runs = chain_of(airflow, "test-ha-counter")
    assert [run.task("get-count").xcom() for run in runs] == [2, 1, 0]
    assert [run.task("ha").xcom() for run in runs] == [["pass", "retrigger"]] * 2 + [["pass", "stop"]]
    # The function is the DAG file's: a worker for the check, one for the count, and one that starts the next run.
    assert [run.worker_processes() for run in runs] == [3, 3, 2]
    assert runs[1].client.get(runs[1].path)["conf"]["counter"] == 2


def run_ended_as_its_check_returned(airflow: RealAirflow) -> None:
    run = next(run for run in chain_of(airflow, "test-high-availability") if run.state in ENDED)
    result, action = run.task("ha").xcom()
    states = run.task_states()
    assert run.state == {"pass": "success", "fail": "failed"}[result]
    assert states[f"ha-{action}-{result}"] == (
        "failed" if (result, action) == ("fail", "stop") else "success"
    )
    behind = {states[f"{branch}_{end}"] for branch in ("retrigger", "stop") for end in ("pass", "fail")}
    assert behind == {"skipped", "upstream_failed" if (result, action) == ("fail", "stop") else "success"}


@pytest.mark.long
def test_function_of_the_dag_file_takes_a_worker_for_each_check_and_none_between(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    run = airflow.trigger("ha_on_a_worker", {"file": str(tmp_path / "script.json")})
    run.wait_for("success")

    assert run.worker_starts() == [("ha", 1)] * 3
    assert run.task("ha").xcom() == ["pass", "stop"]
    assert run.task_states()["ha-stop-pass"] == "success"
    log = run.task("ha").log()
    assert log.count("Each check runs on a worker because python_callable is in high_availability.py") == 1
    assert "plugins folder" in log


@pytest.mark.long
@pytest.mark.parametrize("started_airflow", ["postgres"], indirect=True)
def test_gates_that_have_nothing_to_do_start_on_no_worker_in_a_mapped_task_group(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    script = tmp_path / "script.json"
    script.write_text('[["pass", "stop"]]')
    passed = airflow.trigger("ha_mapped", {"file": str(script)}).wait_for("success", timeout=240)
    script.write_text('[["fail", "stop"]]')
    failed = airflow.trigger("ha_mapped", {"file": str(script)}).wait_for("failed", timeout=240)

    expected = {"stop-pass": 1}, {"stop-fail": 1, "force-dag-fail": 1}
    for run, gates in zip((passed, failed), expected, strict=True):
        starts = Counter(task_id for task_id, _ in run.worker_starts())
        assert starts == {
            f"watched.ha{gate and '-'}{gate}[{index}]": count
            for index in (0, 1)
            for gate, count in {"": 2, **gates}.items()
        }
        assert run.task("watched.ha", 1).xcom()[1] == "stop"


def test_troubled_checks_fail_their_runs_and_others_go_on(airflow: RealAirflow, tmp_path: Path) -> None:
    triggerer = airflow.triggerer
    # A coroutine that hangs blocks the whole loop, as that of any trigger would.
    outcomes = {
        ("ha_troubled", "thread"): dict.fromkeys(("raises", "exits", "hangs", "nonsense"), "fail"),
        ("ha_troubled_on_the_loop", "loop"): {
            "blocks": "pass",
            **dict.fromkeys(("raises", "exits", "nonsense"), "fail"),
        },
    }
    runs = {
        (dag_id, task_id, trouble): airflow.trigger(dag_id, {"trouble": trouble})
        for (dag_id, task_id), troubles in outcomes.items()
        for trouble in troubles
    }
    for (dag_id, task_id, trouble), run in runs.items():
        wait_until(lambda run=run: run.state in ENDED, f"{run} to end")
        assert run.task(task_id).xcom() == [outcomes[dag_id, task_id][trouble], "stop"]
        assert run.worker_processes() == 0
    assert triggerer.running
    other = tmp_path / "other.json"
    other.write_text('[["pass", "stop"]]')
    airflow.trigger("ha", {"file": str(other)}).wait_for("success")


def test_checks_in_a_thread_and_on_the_loop_can_ask_airflow(airflow: RealAirflow) -> None:
    airflow.client.post("/variables", {"key": "ha_venue", "value": "LSE"})
    airflow.client.post(
        "/connections", {"connection_id": "ha_service", "conn_type": "http", "host": "service.example.com"}
    )
    run = airflow.trigger("ha_asks_airflow").wait_for("success")

    assert run.worker_starts() == [("number", 1)]
    assert run.task("on_the_loop").xcom() == ["pass", "stop"]


@pytest.mark.long
def test_triggerer_that_is_restarted_between_two_checks_goes_on(airflow: RealAirflow, tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    asked = script.with_suffix(".asked")
    script.write_text('[["fail", "continue"]]')
    run = airflow.trigger("ha", {"file": str(script)})
    wait_until(asked.exists, "a check")
    airflow.triggerer.kill()
    before = len(asked.read_text().split())
    airflow.start_component(airflow.triggerer)
    wait_until(lambda: len(asked.read_text().split()) > before, "a check after the restart")
    script.write_text('[["pass", "stop"]]')
    run.wait_for("success")

    assert run.worker_processes() == 0
    assert run.task("ha").try_number == 1


def test_cleared_check_may_retrigger_again_and_a_cleared_retrigger_starts_no_second_run(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    script = tmp_path / "script.json"
    script.write_text('[["pass", "retrigger"], ["pass", "stop"]]')
    first = airflow.trigger("ha", {"file": str(script)}).wait_for("success")

    def runs() -> list[Run]:
        rows = airflow.client.get("/dags/ha/dagRuns", order_by="id", limit=100)["dag_runs"]
        mine = [row for row in rows if (row["conf"] or {}).get("file") == str(script)]
        return [Run(airflow.client, "ha", row["dag_run_id"]) for row in mine]

    first.task("ha-retrigger-pass").clear()
    wait_until(lambda: first.task("ha-retrigger-pass").try_number == 2, "the second attempt")
    first.wait_for("success")
    assert "exists already, because an earlier attempt" in first.task("ha-retrigger-pass").log()
    assert len(runs()) == 2

    first.task("ha").clear(downstream=True)
    wait_until(lambda: len(runs()) == 3, "the run that the second attempt of the check starts")
    wait_until(lambda: all(run.state == "success" for run in runs()), "all runs to end")
    assert len(runs()) == 3


def test_check_that_a_user_marks_success_ends_the_run_without_retriggering(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    script = tmp_path / "script.json"
    script.write_text('[["fail", "continue"]]')
    run = airflow.trigger("ha", {"file": str(script)})
    wait_until(lambda: script.with_suffix(".asked").exists(), "a check")
    run.task("ha").mark("success")

    run.wait_for("success")
    states = run.task_states()
    assert states["ha-stop-pass"] == "success"
    assert {states["ha-retrigger-pass"], states["ha-retrigger-fail"], states["ha-stop-fail"]} == {"skipped"}


def test_check_that_a_user_marks_failed_fails_the_run_without_retriggering(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    script = tmp_path / "script.json"
    script.write_text('[["pass", "continue"]]')
    run = airflow.trigger("ha", {"file": str(script)})
    wait_until(lambda: script.with_suffix(".asked").exists(), "a check")
    run.task("ha").mark("failed")

    wait_until(lambda: run.state == "failed", "the run to fail")
    assert run.task_states()["ha-retrigger-pass"] == "upstream_failed"


@pytest.mark.long
def test_dag_test_runs_the_check_and_its_branch(airflow: RealAirflow, tmp_path: Path) -> None:
    file = Path(__file__).parent / "dags" / "high_availability.py"
    script = tmp_path / "script.json"
    program = (
        "from airflow.dag_processing.dagbag import DagBag\n"
        f"dags = DagBag({str(file)!r}, bundle_name='dags').dags\n"
        "from pathlib import Path\n"
        "for dag_id, said in (('ha', 'pass'), ('ha', 'fail'), ('ha_on_a_worker', '')):\n"
        f'    Path({str(script)!r}).write_text(f\'[["{{said}}", "stop"]]\')\n'
        f"    Path({str(script.with_suffix('.asked'))!r}).unlink(missing_ok=True)\n"
        f"    print(dags[dag_id].test(run_conf={{'file': {str(script)!r}}}).state)\n"
    )
    with airflow.paused("ha"), airflow.paused("ha_on_a_worker"):
        printed = airflow.run_python(program, timeout=180)
    states = [line for line in printed.splitlines() if line in ENDED]
    assert states == ["success", "failed", "success"]


def test_examples_end_after_their_runtime_and_after_three_runs(airflow: RealAirflow) -> None:
    """Both at once, because each waits most of its time."""
    countdown = "example_high_availability_countdown"
    airflow.trigger(countdown)
    run = airflow.trigger("example_high_availability").wait_for("success", timeout=180)

    assert run.task("watch").xcom() == ["pass", "stop"]
    assert "runtime=20 s is over" in run.task("watch").log()
    assert run.worker_processes() == 0
    wait_until(
        lambda: [run.state for run in chain_of(airflow, countdown)] == ["success"] * 3,
        "three runs",
        timeout=180,
    )
    assert [run.worker_processes() for run in chain_of(airflow, countdown)] == [2, 2, 1]
