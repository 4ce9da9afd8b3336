"""A supervisord without a DAG: a configuration's own methods, the client's, the commands, and the health check."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xmlrpc.client import ServerProxy

import pytest
from airflow.sdk.exceptions import AirflowException
from integration.supervisor.support import SLEEP, Place, alive, set_timings, until

from deferrable_ops.cli.main import main
from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.supervisor import (
    SupervisorAirflowConfiguration,
    SupervisorClient,
    SupervisorConvenienceConfiguration,
    SupervisorSSHAirflowConfiguration,
    check_supervisor_health,
)
from deferrable_ops.supervisord.processes import ProcessState
from deferrable_ops.triggers.supervisor.host import StepFailed
from real_airflow.ports import free_port
from real_sshd import RealSshd

pytest.importorskip("supervisor.supervisord")

SPEAKER = f"{sys.executable} -c 'import sys; print(1); print(2, file=sys.stderr); sys.exit(3)'"


class TaskInstance:
    """What check_supervisor_health() uses of a task instance on a worker."""

    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = json.loads(json.dumps(value))


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    set_timings(monkeypatch, poll_interval=0.02)
    with TemporaryDirectory(prefix="outside-") as name:
        yield Path(name)


@pytest.fixture
def cfg(folder: Path) -> Iterator[SupervisorAirflowConfiguration]:
    """The configuration of a supervisord that runs two programs, of which none was started yet."""
    cfg = SupervisorConvenienceConfiguration(
        working_dir=folder / "s",
        startsecs=0,
        exitcodes=[0, 4],
        program={"sleep": {"command": SLEEP}, "speak": {"command": SPEAKER}},
    )
    yield cfg
    cfg.kill()


def test_configuration_manages_its_supervisord(cfg: SupervisorAirflowConfiguration) -> None:
    assert not cfg.running()
    with pytest.raises(StepFailed, match="configure-supervisor"):
        cfg.start()
    assert cfg.write() is True
    assert cfg.write() is False
    pid = cfg.start()
    assert cfg.start(daemon=False) == pid
    assert cfg.running()
    with pytest.raises(StepFailed, match="still runs"):
        cfg.rmdir()
    assert cfg.stop() == [pid]
    assert not cfg.running()
    assert cfg.stop() == []

    other = cfg.start()
    [process] = SupervisorClient(cfg).start("sleep")
    assert {other, process.pid} <= set(cfg.kill())
    assert not alive(process.pid)
    assert str(cfg.working_dir) in cfg.rmdir()
    assert cfg.working_dir is not None
    assert not cfg.working_dir.exists()


async def test_configuration_works_in_a_running_event_loop(cfg: SupervisorAirflowConfiguration) -> None:
    cfg.write()
    assert cfg.start() > 0


def test_client_starts_stops_and_signals_one_program(cfg: SupervisorAirflowConfiguration) -> None:
    cfg.write()
    cfg.start()
    client = SupervisorClient(cfg)

    [started] = client.start("sleep")
    assert started.state is ProcessState.RUNNING
    assert client.start("sleep:sleep") == [started] or client.processes_of("sleep")[0].pid == started.pid
    [restarted] = client.restart("sleep")
    assert restarted.state is ProcessState.RUNNING
    assert restarted.pid != started.pid
    client.signal("sleep", "KILL")
    until(lambda: client.processes_of("sleep")[0].state is ProcessState.EXITED)
    client.start("sleep")
    [stopped] = client.stop("sleep")
    assert stopped.state is ProcessState.STOPPED
    assert client.stop("sleep")[0].state is ProcessState.STOPPED
    assert client.processes_of("speak")[0].start == 0
    with pytest.raises(InputError, match=r"no program 'nobody'; use one of: sleep:sleep, speak:speak"):
        client.start("nobody")


def test_client_reads_logs(cfg: SupervisorAirflowConfiguration) -> None:
    cfg.write()
    cfg.start()
    client = SupervisorClient(cfg)
    assert client.log("speak") == ("", 0)
    client.start("speak")
    until(lambda: client.processes_of("speak")[0].state is ProcessState.EXITED)
    assert client.log("speak") == ("1\n", 2)
    assert client.log("speak", "stderr").text == "2\n"
    assert client.last_lines("speak") == ["2"]

    log = Path(client.processes_of("speak")[0].stdout_log)
    log.write_bytes("a€".encode() + b"\xff\nlast")
    first = client.log("speak", offset=0, length=2)
    assert first == ("a", 1), "a character that is cut is left to the next read"
    assert client.log("speak", offset=first.offset) == ("€\ufffd\nlast", log.stat().st_size)
    assert client.log("speak", offset=10_000).text.startswith("a€"), "after a rotation, from the beginning"
    assert client.log("speak", length=4).text == "last"
    for wrong in ({"channel": "other"}, {"offset": -1}, {"length": 0}):
        with pytest.raises(InputError):
            client.log("speak", **wrong)  # type: ignore[arg-type]

    log.unlink()
    os.mkfifo(log)
    with pytest.raises(InputError, match="not a regular file"):
        client.log("speak")


def test_client_names_all_processes_of_a_program(folder: Path) -> None:
    program = {"command": SLEEP, "numprocs": 2, "process_name": "%(program_name)s_%(process_num)s"}
    cfg = SupervisorAirflowConfiguration(working_dir=folder / "s", startsecs=0, program={"many": program})
    cfg.write()
    cfg.start()
    try:
        client = SupervisorClient(cfg)
        found = client.start("many")
        assert [process.full_name for process in found] == ["many:many_0", "many:many_1"]
        assert {process.state for process in found} == {ProcessState.RUNNING}
        assert [process.state for process in client.stop("many:many_0")] == [ProcessState.STOPPED]
        assert client.processes_of("many")[1].state is ProcessState.RUNNING
        with pytest.raises(InputError, match="give one of: many:many_0, many:many_1"):
            client.log("many")
    finally:
        cfg.kill()


def test_commands_run_each_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "cfg.yaml"
    programs = {"sleep": {"command": SLEEP}}
    file.write_text(json.dumps({"working_dir": str(folder / "s"), "startsecs": 0, "program": programs}))

    def run(step: str, *options: str, code: int = 0) -> str:
        assert main(["supervisord", step, str(file), *options]) == code
        printed = capsys.readouterr()
        return printed.out + printed.err

    try:
        assert "configure-supervisor" in run("start-supervisor", code=1)
        assert run("configure-supervisor").startswith("Wrote ")
        assert run("configure-supervisor").startswith("Nothing to change")
        assert "runs with pid" in run("start-supervisor")
        assert "sleep:sleep  STOPPED" in run("check-programs", code=1)
        first = run("start-programs")
        assert "sleep:sleep  RUNNING" in first
        assert run("start-programs") == first
        assert run("check-programs", "--check-running") == first
        assert run("check-programs", "--check-done", code=1) == first
        second = run("restart-programs")
        assert "RUNNING" in second
        assert second != first
        assert run("start-programs", "--restart") not in (first, second)
        assert "STOPPED" in run("stop-programs")
        assert "STOPPED" in run("check-programs", "--check-done")
        assert "still runs" in run("unconfigure-supervisor", code=1)
        assert run("stop-supervisor").startswith("Stopped supervisord: ")
        assert run("stop-supervisor") == "supervisord was not running\n"
        run("start-supervisor")
        assert run("force-kill").startswith("Killed the processes: ")
        assert str(folder / "s") in run("unconfigure-supervisor")
        assert not (folder / "s").exists()
        assert "not answer" in run("check-programs", code=1)
        file.write_text(json.dumps({"_target_": "x.SupervisorConfiguration", "program": programs}))
        assert "--as airflow" in run("start-supervisor", code=2)
    finally:
        main(["supervisord", "force-kill", str(file), "--as", "airflow"])


def test_health_check_shows_the_failed_programs(cfg: SupervisorAirflowConfiguration) -> None:
    cfg.write()
    with pytest.raises(AirflowException, match="cannot be checked: supervisord does not answer"):
        check_supervisor_health(cfg)
    cfg.start()
    client, ti = SupervisorClient(cfg), TaskInstance()
    client.start("sleep")
    client.start("speak")
    until(lambda: client.processes_of("speak")[0].state is ProcessState.EXITED)
    with pytest.raises(AirflowException, match="speak:speak state=EXITED exitstatus=3"):
        check_supervisor_health(cfg, ti=ti)
    assert [row["state"] for row in ti.xcoms["supervisor_process_status"]] == ["RUNNING", "EXITED"]
    [failure] = ti.xcoms["supervisor_failure"]
    assert failure == {
        "program": "speak",
        "name": "speak",
        "group": "speak",
        "state": "EXITED",
        "exitstatus": 3,
        "spawnerr": "Bad exit code 3",
        "pid": 0,
        "last_lines": ["2"],
    }


def test_health_check_accepts_ends_and_other_clients(folder: Path) -> None:
    port = free_port()
    cfg = SupervisorAirflowConfiguration(
        working_dir=folder / "s",
        port=f"127.0.0.1:{port}",
        startsecs=0,
        program={"end": {"command": "sh -c 'exit 4'", "exitcodes": [4]}},
    )
    cfg.write()
    cfg.start()
    try:
        other = ServerProxy(f"http://127.0.0.1:{port}/RPC2").supervisor
        client = SupervisorClient(cfg)
        with pytest.raises(AirflowException, match="state=STOPPED"):
            check_supervisor_health(cfg, require_running=False)
        client.start("end")
        until(lambda: client.processes_of("end")[0].state is ProcessState.EXITED)
        for given in (None, other):
            ti = TaskInstance()
            found = check_supervisor_health(
                {"working_dir": str(folder / "s"), "program": cfg.program},
                require_running=False,
                supervisor_client=given,
                ti=ti,
            )
            assert found["healthy"]
            assert found["processes"] == ti.xcoms["supervisor_process_status"]
            assert "supervisor_failure" not in ti.xcoms
        with pytest.raises(AirflowException, match="state=EXITED exitstatus=4"):
            check_supervisor_health(cfg, supervisor_client=other)
    finally:
        cfg.kill()


async def test_steps_of_a_dag_use_the_supervisord_of_a_script(place: Place) -> None:
    cfg = place.cfg()
    cfg.write()
    pid = cfg.start()
    result = await place.run_steps(cfg, "configure-supervisor", "start-supervisor")
    assert (result["pid"], result["started"]) == (pid, False)
    await place.run_steps(cfg, "start-programs")
    [process] = SupervisorClient(cfg).processes_of("a")
    assert process.pid in place.processes()
    assert cfg.stop() == [pid]
    assert (place.daemons(), place.processes()) == ([], [])


@pytest.mark.long
def test_script_and_command_work_over_ssh(
    folder: Path, sshd_server: RealSshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WEB", sshd_server.connection())
    fields = {
        "working_dir": str(folder / "s"),
        "ssh_conn_id": "web",
        "command_prefix": f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        "startsecs": 0,
        "program": {"a": {"command": SLEEP}},
    }
    cfg = SupervisorSSHAirflowConfiguration(**fields)
    cfg.write()
    cfg.start()
    try:
        client = SupervisorClient(cfg)
        client.start("a")
        assert check_supervisor_health(cfg)["processes"][0]["state"] == "RUNNING"
        assert client.log("a").offset == 0
        (folder / "cfg.yaml").write_text(json.dumps(fields))
        command = ["check-programs", str(folder / "cfg.yaml"), "--as", "ssh", "--check-running"]
        done = subprocess.run(
            [sys.executable, "-m", "deferrable_ops.cli", "supervisord", *command],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "a:a      RUNNING" in done.stdout
        cfg.stop()
        cfg.rmdir()
        assert not (folder / "s").exists()
    finally:
        if cfg.running():
            cfg.kill()
