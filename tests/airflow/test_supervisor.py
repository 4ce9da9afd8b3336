"""Whole pipelines with a real supervisord: how they end, what is left of them, and how many workers that takes."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from real_airflow import RealAirflow, Run, Task, wait_until

PATH = ("configure-supervisor", "start-supervisor", "start-programs", "check-programs")
STOPS = ("teardown", "stop-programs", "stop-supervisor", "unconfigure-supervisor")


ENDED = {"fails": "failed", "loops": "failed", "never_ends": "success"}
BY_SSH = ("sup_ssh_ends", "sup_ssh_killed", "example_supervisor_ssh")
KINDS = ("sup", "sup_ssh")


class Place:
    """A supervisord's folder on this host, and what runs there."""

    def __init__(self, airflow: RealAirflow, name: str) -> None:
        self.folder = Path(airflow.environment["SUPERVISOR_FOLDERS"]) / name

    @classmethod
    def of(cls, airflow: RealAirflow, run: Run) -> Place:
        """Return the place of a DAG's supervisord, which has the DAG's name."""
        return cls(airflow, run.dag_id.removeprefix("sup_"))

    def processes(self) -> list[psutil.Process]:
        """Return the supervisord, and the programs, which run below its folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if (
                    str(self.folder) in " ".join(process.cmdline())
                    or self.folder in Path(process.cwd()).parents
                ):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def is_clean(self) -> bool:
        return not self.folder.exists() and not self.processes()


def steps(run: Run, *names: str) -> dict[str, str | None]:
    """Return the states of the run's steps, by their short names."""
    states = {task_id.rpartition(".")[2]: state for task_id, state in run.task_states().items()}
    return {name: states[f"{run.dag_id}-{name}"] for name in names}


def step(run: Run, name: str) -> Task:
    """Return the task of a step, by its short name."""
    [task_id] = [task_id for task_id in run.task_states() if task_id.endswith(f"{run.dag_id}-{name}")]
    return run.task(task_id)


# A retrigger keeps it.
CONF = {"venue": "LSE"}


@pytest.mark.long
@pytest.mark.parametrize("started_airflow", ["postgres"], indirect=True)
def test_program_that_always_crashes_is_started_again_after_longer_and_longer_pauses(
    airflow: RealAirflow,
) -> None:
    airflow.trigger("sup_crashes")
    wait_until(
        lambda: [run.state for run in chain(airflow, "sup_crashes")] == ["failed"] * 3,
        "three runs of sup_crashes to end",
        timeout=240,
    )
    runs = chain(airflow, "sup_crashes")
    gates = [run.task("sup_crashes-check-programs-retrigger-fail") for run in runs[:2]]
    assert ["The next DAG run starts in" in gate.log() for gate in gates] == [False, True]
    ended, retriggered = (
        datetime.fromisoformat(task.attributes["end_date"])
        for task in (runs[1].task("sup_crashes-check-programs"), gates[1])
    )
    # The pause begins when the inbox has the result. Airflow writes the end of the check up to two seconds later.
    assert (retriggered - ended).total_seconds() >= 10
    assert [run.worker_processes() for run in runs] == [1, 1, 0]
    assert steps(runs[-1], *STOPS) == dict.fromkeys(STOPS, "success")


def chain(airflow: RealAirflow, dag_id: str) -> list[Run]:
    rows = airflow.client.get(f"/dags/{dag_id}/dagRuns", order_by="id", limit=100)["dag_runs"]
    return [Run(airflow.client, dag_id, row["dag_run_id"]) for row in rows]


def has_sshd(airflow: RealAirflow) -> bool:
    return "AIRFLOW_CONN_SSH_DEFAULT" in airflow.environment


@pytest.mark.both_databases
@pytest.mark.parametrize("started_airflow", ["sqlite"], indirect=True)
def test_programs_that_end_well_fail_or_are_started_again_take_no_worker_and_leave_nothing(
    airflow: RealAirflow,
) -> None:
    ends, fails, _restarts = (airflow.trigger(f"sup_{name}", CONF) for name in ("ends", "fails", "restarts"))

    ends_well(airflow, ends)
    fails.wait_for("failed", timeout=180)
    assert fails.worker_processes() == 0
    check = step(fails, "check-programs")
    assert [row["state"] for row in check.xcom("supervisor_process_status")] == ["EXITED"]
    [failure] = check.xcom("supervisor_failure")
    assert (failure["program"], failure["exitstatus"]) == ("test", 1)
    assert steps(fails, *STOPS) == dict.fromkeys(STOPS, "success")
    assert Place.of(airflow, fails).is_clean()
    program_that_failed_is_started_again_and_the_next_run_adopts_its_supervisord(airflow, "sup")


def test_notices_of_a_crash_loop_read_connections_and_have_the_exit_code(airflow: RealAirflow) -> None:
    airflow.client.post(
        "/connections", {"connection_id": "pager", "conn_type": "http", "host": "pager.example.com"}
    )
    run = airflow.trigger("sup_notices")
    run.wait_for("failed", timeout=180)
    assert run.worker_processes() == 0
    file = Path(airflow.environment["SUPERVISOR_FOLDERS"]) / "notices.jsonl"
    notices = [json.loads(line) for line in file.read_text().splitlines()]
    task_id = "sup_notices-check-programs"
    assert {one["text"] for one in notices} == {
        f"{kind} in {task_id}" for kind in ("restarted", "crash_loop", "given_up")
    }
    for one in notices:
        assert one["hosts"] == ["pager.example.com"] * 2
        assert (one["program"], one["exitstatus"], one["last_lines"][-1]) == ("test", 3, "last words")


# Not on SQLite, which gives a deleted trigger's id to the next: the teardown of a run that a user ends is that, and the
# triggerer takes it for the one that it still runs.
@pytest.mark.parametrize("started_airflow", ["postgres"], indirect=True)
@pytest.mark.timeout(600)
def test_each_run_ends_as_its_programs_do_and_leaves_nothing(airflow: RealAirflow, full_load: bool) -> None:
    """All in one, because they go side by side: each takes its time."""
    kinds = KINDS if has_sshd(airflow) else KINDS[:1]
    # How a program ends does not depend on the machine: only --long sees each end over SSH as well.
    ended = [f"{kind}_{name}" for name in ENDED for kind in (kinds if full_load else KINDS[:1])]
    alone = ["sup_ends", "sup_goes_on", "example_supervisor"]
    pairs = [f"{kind}_{name}" for name in ("restarts", "force_killed") for kind in kinds]
    runs = {dag_id: airflow.trigger(dag_id, CONF) for dag_id in [*alone, *ended, *pairs]}
    over_ssh = [airflow.trigger(dag_id) for dag_id in BY_SSH] if has_sshd(airflow) else []

    ends_well(airflow, runs["sup_ends"])
    user_who_marks_a_run_as_failed_ends_what_it_runs(airflow)
    for kind in kinds:
        user_who_force_kills_ends_all_at_once(airflow, runs[f"{kind}_force_killed"])
    example_tells_what_its_programs_say(runs["example_supervisor"])
    programs_that_shall_go_on_do(airflow, runs["sup_goes_on"])
    each_end_tears_down_and_gives_the_run_its_state(airflow, {dag_id: runs[dag_id] for dag_id in ended})
    for kind in kinds:
        program_that_failed_is_started_again_and_the_next_run_adopts_its_supervisord(airflow, kind)
    if not over_ssh:
        pytest.skip("no OpenSSH server (sshd) on this machine")
    supervisord_on_another_machine_is_run_over_ssh(airflow, *over_ssh)


def ends_well(airflow: RealAirflow, run: Run) -> None:
    run.wait_for("success", timeout=180)
    assert steps(run, *PATH, *STOPS) == dict.fromkeys((*PATH, *STOPS), "success")
    assert steps(run, "restart-programs", "force-kill", "check-config-failed") == dict.fromkeys(
        ("restart-programs", "force-kill", "check-config-failed"), "skipped"
    )
    assert run.task("after").state == "success"
    assert run.worker_processes() == 0
    assert run.task("sup_ends-check-programs").xcom() == ["pass", "stop"]
    started = run.task("sup_ends-start-programs").xcom()
    assert set(started["programs"]) == {"test:test"}
    log = run.task("sup_ends-check-programs").log()
    assert (log.count("[test] began"), log.count("[test] ended")) == (1, 1)
    assert Place(airflow, "ends").is_clean()
    logs = log + "".join(run.task(f"sup_ends-{step}").log() for step in PATH[:2])
    assert "hunter2secret" not in logs


def example_tells_what_its_programs_say(run: Run) -> None:
    run.wait_for("success", timeout=180)
    hello = run.task("example_supervisor-check-programs").log()
    assert [hello.count(f"[greeter] hello {n}") for n in (1, 2, 3)] == [1, 1, 1]
    assert run.worker_processes() == 0


def programs_that_shall_go_on_do(airflow: RealAirflow, run: Run) -> None:
    run.wait_for("success", timeout=180)
    assert steps(run, *STOPS) == dict.fromkeys(STOPS, "skipped")
    assert run.worker_processes() == 0
    goes_on = Place(airflow, "goes_on")
    assert goes_on.processes()
    for process in goes_on.processes():
        process.kill()


def each_end_tears_down_and_gives_the_run_its_state(airflow: RealAirflow, runs: dict[str, Run]) -> None:
    for dag_id, run in runs.items():
        name = dag_id.removeprefix("sup_").removeprefix("ssh_")
        run.wait_for(ENDED[name], timeout=180)
        assert run.worker_processes() == 0, run
        assert steps(run, *STOPS) == dict.fromkeys(STOPS, "success"), run
        assert Place.of(airflow, run).is_clean(), run
        if name != "never_ends":
            assert step(run, "check-programs").xcom() == ["fail", "stop"]


def program_that_failed_is_started_again_and_the_next_run_adopts_its_supervisord(
    airflow: RealAirflow, kind: str
) -> None:
    dag_id = f"{kind}_restarts"
    wait_until(
        lambda: [run.state for run in chain(airflow, dag_id)] == ["failed", "success"],
        f"the second run of {dag_id} to end",
        timeout=120,
    )
    first, second = chain(airflow, dag_id)
    assert steps(first, "restart-programs", *STOPS) == {
        "restart-programs": "success",
        **dict.fromkeys(STOPS, "skipped"),
    }
    [(started, attempt)] = first.worker_starts()
    assert (started.rpartition(".")[2], attempt) == (f"{dag_id}-check-programs-retrigger-fail", 1)
    assert step(second, "start-supervisor").xcom()["started"] is False  # it was adopted
    assert second.client.get(second.path)["conf"]["venue"] == CONF["venue"]
    assert second.worker_processes() == 0
    assert Place.of(airflow, second).is_clean()


def user_who_marks_a_run_as_failed_ends_what_it_runs(airflow: RealAirflow) -> None:
    with airflow.unpaused("test-supervisor"):
        [run] = wait_until(lambda: chain(airflow, "test-supervisor"), "the first scheduled run", timeout=60)
        step(run, "check-programs").wait_for("deferred", timeout=120)
        place = Place(airflow, "seed")
        assert len(place.processes()) >= 2
        run.client.patch(run.path, {"state": "failed"})  # as the button does
        run.wait_for("failed")
    assert step(run, "unconfigure-supervisor").state == "success"
    wait_until(place.is_clean, f"nothing to be left of {run}")
    assert run.worker_processes() == 0


def user_who_force_kills_ends_all_at_once(airflow: RealAirflow, run: Run) -> None:
    step(run, "check-programs").wait_for("deferred", timeout=120)
    place = Place.of(airflow, run)
    assert len(place.processes()) >= 2
    step(run, "force-kill").clear()
    run.wait_for("failed", timeout=120)  # maxretrigger=0; else the DAG would start it again
    assert step(run, "force-kill").state == "success"
    assert step(run, "force-kill").xcom()["killed"]
    wait_until(place.is_clean, f"nothing to be left of {run}")
    assert run.worker_processes() == 0


def supervisord_on_another_machine_is_run_over_ssh(
    airflow: RealAirflow, ends: Run, killed: Run, example: Run
) -> None:
    killed.task("sup_ssh_killed-check-programs").wait_for("deferred", timeout=120)
    killed.client.patch(killed.path, {"state": "failed"})

    ends.wait_for("success")
    assert steps(ends, *PATH, *STOPS) == dict.fromkeys((*PATH, *STOPS), "success")
    log = ends.task("sup_ssh_ends-check-programs").log()
    assert (log.count("[test] began"), log.count("[test] ended")) == (1, 1)
    killed.wait_for("failed")
    example.wait_for("success")
    for run, name in ((ends, "ssh_ends"), (killed, "ssh_killed"), (example, "ssh_example")):
        assert run.worker_processes() == 0
        assert steps(run, *STOPS) == dict.fromkeys(STOPS, "success")
        wait_until(Place(airflow, name).is_clean, f"nothing to be left of {name}")
