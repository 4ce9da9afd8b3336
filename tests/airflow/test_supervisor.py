"""Whole pipelines with a real supervisord: how they end, what is left of them, and how many workers that takes."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from real_airflow import RealAirflow, Run, wait_until

PATH = ("configure-supervisor", "start-supervisor", "start-programs", "check-programs")
STOPS = ("teardown", "stop-programs", "stop-supervisor", "unconfigure-supervisor")


ENDED = {
    "sup_fails": "failed",
    "sup_loops": "failed",
    "sup_never_ends": "success",
    "sup_goes_on": "success",
    "example_supervisor": "success",
}
BY_SSH = ("sup_ssh_ends", "sup_ssh_killed", "example_supervisor_ssh")


class Place:
    """A supervisord's folder on this host, and what runs there."""

    def __init__(self, airflow: RealAirflow, name: str) -> None:
        self.folder = Path(airflow.environment["SUPERVISOR_FOLDERS"]) / name

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


def chain(airflow: RealAirflow, dag_id: str) -> list[Run]:
    rows = airflow.client.get(f"/dags/{dag_id}/dagRuns", order_by="id", limit=100)["dag_runs"]
    return [Run(airflow.client, dag_id, row["dag_run_id"]) for row in rows]


def has_sshd(airflow: RealAirflow) -> bool:
    return "AIRFLOW_CONN_SSH_DEFAULT" in airflow.environment


@pytest.mark.parametrize("started_airflow", ["postgres"], indirect=True)
def test_programs_that_end_well_take_no_worker_and_leave_nothing(airflow: RealAirflow) -> None:
    ends_well(airflow, airflow.trigger("sup_ends"))


# Nothing else of these depends on the inbox's database.
@pytest.mark.parametrize("started_airflow", ["sqlite"], indirect=True)
@pytest.mark.timeout(600)
def test_each_run_ends_as_its_programs_do_and_leaves_nothing(airflow: RealAirflow) -> None:
    """All in one, because they go side by side: each takes its time."""
    dag_ids = ["sup_ends", "sup_restarts", "sup_killed", *ENDED]
    runs = {dag_id: airflow.trigger(dag_id) for dag_id in dag_ids}
    over_ssh = [airflow.trigger(dag_id) for dag_id in BY_SSH] if has_sshd(airflow) else []

    ends_well(airflow, runs["sup_ends"])
    each_end_tears_down_and_gives_the_run_its_state(airflow, runs)
    program_that_failed_is_started_again_and_the_next_run_adopts_its_supervisord(airflow)
    user_who_ends_a_run_ends_what_it_runs(airflow, runs["sup_killed"])
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


def each_end_tears_down_and_gives_the_run_its_state(airflow: RealAirflow, runs: dict[str, Run]) -> None:
    for dag_id, state in ENDED.items():
        runs[dag_id].wait_for(state, timeout=180)
        assert runs[dag_id].worker_processes() == 0, dag_id
    assert runs["sup_fails"].task("sup_fails-check-programs").xcom() == ["fail", "stop"]
    assert runs["sup_loops"].task("watched.sup_loops-check-programs").xcom() == ["fail", "stop"]
    for dag_id, name in (("sup_fails", "fails"), ("sup_loops", "loops"), ("sup_never_ends", "never")):
        assert steps(runs[dag_id], *STOPS) == dict.fromkeys(STOPS, "success")
        assert Place(airflow, name).is_clean(), name
    hello = runs["example_supervisor"].task("example_supervisor-check-programs").log()
    assert [hello.count(f"[greeter] hello {n}") for n in (1, 2, 3)] == [1, 1, 1]

    assert steps(runs["sup_goes_on"], *STOPS) == dict.fromkeys(STOPS, "skipped")
    goes_on = Place(airflow, "goes-on")
    assert goes_on.processes()
    for process in goes_on.processes():
        process.kill()


def program_that_failed_is_started_again_and_the_next_run_adopts_its_supervisord(
    airflow: RealAirflow,
) -> None:
    wait_until(
        lambda: [run.state for run in chain(airflow, "sup_restarts")] == ["failed", "success"],
        "the second run to end",
        timeout=120,
    )
    first, second = chain(airflow, "sup_restarts")
    assert steps(first, "restart-programs", *STOPS) == {
        "restart-programs": "success",
        **dict.fromkeys(STOPS, "skipped"),
    }
    assert first.worker_starts() == [("sup_restarts-check-programs-retrigger-fail", 1)]
    assert second.task("sup_restarts-start-supervisor").xcom()["started"] is False  # it was adopted
    assert second.worker_processes() == 0
    assert Place(airflow, "again").is_clean()


def user_who_ends_a_run_ends_what_it_runs(airflow: RealAirflow, killed: Run) -> None:
    airflow.client.patch("/dags/test-supervisor", {"is_paused": False})
    [seed] = wait_until(lambda: chain(airflow, "test-supervisor"), "the first scheduled run", timeout=60)
    places = {run.dag_id: Place(airflow, name) for run, name in ((seed, "seed"), (killed, "killed"))}
    for run in (seed, killed):
        run.task(f"{run.dag_id}-check-programs").wait_for("deferred", timeout=120)
        assert len(places[run.dag_id].processes()) >= 2

    seed.client.patch(seed.path, {"state": "failed"})  # as the button does
    killed.task("sup_killed-force-kill").clear()

    seed.wait_for("failed")
    airflow.client.patch("/dags/test-supervisor", {"is_paused": True})
    assert seed.task("test-supervisor-unconfigure-supervisor").state == "success"
    killed.wait_for("failed")  # maxretrigger=0; else the DAG would start it again
    assert killed.task("sup_killed-force-kill").state == "success"
    assert killed.task("sup_killed-force-kill").xcom()["killed"]
    for run in (seed, killed):
        wait_until(places[run.dag_id].is_clean, f"nothing to be left of {run.dag_id}")
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
