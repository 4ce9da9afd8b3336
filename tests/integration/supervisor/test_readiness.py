"""The steps start programs in order, and wait until they are ready, with a real supervisord."""

from __future__ import annotations

import asyncio
import logging
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from integration.supervisor.support import BEGIN, SLEEP, Place, until

from deferrable_ops.checks import TcpCheck
from deferrable_ops.outcome import Success
from deferrable_ops.supervisord import LogLine, SupervisorSSHAirflowConfiguration
from real_sshd import RealSshd

pytest.importorskip("supervisor.supervisord")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def script(folder: Path, name: str, code: str) -> str:
    """Return a command that runs this code."""
    path = folder / f"{name}.py"
    path.write_text(code)
    return f"{sys.executable} {shlex.quote(str(path))}"


def spawned(cfg: Any, program: str) -> int:
    text: str = cfg.supervisord.logfile.read_text()
    return text.count(f"spawned: '{program}'")


async def test_program_starts_when_the_port_of_the_other_is_open(place: Place, tmp_path: Path) -> None:
    port = free_port()
    listens = (
        f"import socket, signal, time\ntime.sleep(0.7)\nfound = socket.create_server(('127.0.0.1', {port}))\n"
    )
    connects = f"import socket, signal\nsocket.create_connection(('127.0.0.1', {port}), 5)\n"
    cfg = place.cfg(
        program={
            "a-web": {"command": script(tmp_path, "web", connects + "signal.pause()"), "after": ["db"]},
            "db": {
                "command": script(tmp_path, "db", listens + "signal.pause()"),
                "ready": TcpCheck("127.0.0.1", port),
                "startsecs": 0,
            },
            "last": {"command": SLEEP, "after": ["a-web"]},
        },
        startsecs=1,
    )
    result = await place.run_steps(cfg, *BEGIN)
    assert {name: one["state"] for name, one in result["programs"].items()} == {
        "a-web:a-web": "RUNNING",
        "db:db": "RUNNING",
        "last:last": "RUNNING",
    }
    # With startretries, supervisord would hide a start that was too early.
    assert [spawned(cfg, name) for name in ("db", "a-web", "last")] == [1, 1, 1]
    again = await place.run_steps(cfg, "start-programs")
    assert again["programs"] == result["programs"], "programs that run are checked, but not started again"


def marks(folder: Path) -> dict[str, Any]:
    """Return a program that writes a line when its mark exists, and a program that needs the mark."""
    mark = folder / "mark"
    slow = (
        "import os, signal, time\n"
        f"if os.path.exists({str(mark)!r}): os.remove({str(mark)!r})\n"
        f"time.sleep(0.7)\nopen({str(mark)!r}, 'w').close()\nprint('x' * 9000, 'warm-up done', flush=True)\n"
        "signal.pause()"
    )
    needs = f"import os, signal\nassert os.path.exists({str(mark)!r})\nsignal.pause()"
    return {
        "cache": {"command": script(folder, "cache", slow), "ready": LogLine("warm-up done")},
        "web": {"command": script(folder, "web", needs), "after": ["cache"], "startsecs": 1},
    }


async def test_only_a_line_since_the_start_of_the_program_counts(place: Place, tmp_path: Path) -> None:
    cfg = place.cfg(program=marks(tmp_path))
    await place.run_steps(cfg, *BEGIN)
    for number in (2, 3):
        result = await place.run_steps(cfg, "restart-programs")
        assert {one["state"] for one in result["programs"].values()} == {"RUNNING"}
        assert [spawned(cfg, name) for name in ("cache", "web")] == [number, number]
    began = time.monotonic()
    await place.run_steps(cfg, "start-programs")
    assert time.monotonic() - began < 30, "the program runs, so no new line is awaited"


async def test_rotated_log_is_searched(place: Place, tmp_path: Path) -> None:
    program = marks(tmp_path)
    program["cache"] |= {"stdout_logfile_maxbytes": "4096", "stdout_logfile_backups": 3}
    cfg = place.cfg(program=program)
    await place.run_steps(cfg, *BEGIN)
    await place.run_steps(cfg, "restart-programs")
    assert spawned(cfg, "web") == 2


async def test_program_that_writes_its_line_and_ends_with_success_is_ready(place: Place) -> None:
    program = {
        "migrate": {"command": f"{sys.executable} -c 'print(\"migrated\")'", "ready": LogLine("migrated")},
        "web": {"command": SLEEP, "after": ["migrate"]},
    }
    result = await place.run_steps(place.cfg(program=program), *BEGIN)
    states = {name: one["state"] for name, one in result["programs"].items()}
    assert states == {"migrate:migrate": "EXITED", "web:web": "RUNNING"}


async def test_program_that_is_not_ready_in_time_fails_the_step_and_is_started_again_by_a_retry(
    place: Place,
) -> None:
    program: dict[str, Any] = {
        "db": {"command": SLEEP, "ready": LogLine("never"), "ready_timeout": 0.5},
        "other": {"command": SLEEP},
        "web": {"command": SLEEP, "after": ["db"]},
    }
    cfg = place.cfg(program=program)
    await place.run_steps(cfg, *BEGIN[:2])
    for number in (1, 2):
        failed = await place.fail_step(cfg, "start-programs")
        assert failed.reason.startswith(
            "db was not ready within 0.5 s. Its check ready=LogLine('never') failed: db:db has not written a line "
            "with this text"
        )
        assert failed.retryable
        assert [spawned(cfg, name) for name in ("db", "other", "web")] == [number, 1, 0]
        assert until(lambda: len(place.processes()) == 1), "only the program that is not ready is stopped"
    fatal = place.cfg(program=program, policies={"db": {"otherwise": "fail"}})
    assert not (await place.fail_step(fatal, "start-programs")).retryable


async def test_killed_step_goes_on_waiting_and_finds_a_line_that_was_written_meanwhile(
    place: Place, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    waits = (
        f"import os, signal, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.02)\n"
        "print('ready', flush=True)\nsignal.pause()"
    )
    program = {
        "db": {"command": script(tmp_path, "db", waits), "ready": LogLine("ready")},
        "web": {"command": SLEEP, "after": ["db"]},
    }
    cfg = place.cfg(program=program)
    await place.run_steps(cfg, *BEGIN[:2])
    run = place.run("start-programs", cfg)
    async with asyncio.timeout(20):
        while not (cfg.supervisord.logfile.exists() and spawned(cfg, "db")):
            await asyncio.sleep(0.02)
    await run.kill_process()
    go.touch()
    output = cfg.program["db"].stdout_logfile
    until(lambda: output.exists() and "ready" in output.read_text())
    assert spawned(cfg, "web") == 0
    outcome = await place.run("start-programs", cfg, run.attempt).outcome()
    assert isinstance(outcome, Success), outcome
    assert [spawned(cfg, name) for name in ("db", "web")] == [1, 1]


@pytest.mark.parametrize(
    ("otherwise", "fails"), [("fail", True), ("skip", True), ("retry", True), ("retrigger", False)]
)
async def test_program_that_ends_before_it_is_ready_leaves_the_others_to_its_policy(
    place: Place, caplog: pytest.LogCaptureFixture, otherwise: str, fails: bool
) -> None:
    program = {
        "db": {"command": f"{sys.executable} -c 'exit(3)'", "ready": LogLine("ready")},
        "web": {"command": SLEEP, "after": ["db"]},
        "last": {"command": SLEEP, "after": ["web"]},
    }
    cfg = place.cfg(program=program, policies={"db": {"otherwise": otherwise}})
    await place.run_steps(cfg, *BEGIN[:2])
    reason = "last, web not started, because db:db exited with 3 before it was ready"
    if fails:
        failed = await place.fail_step(cfg, "start-programs")
        assert reason in failed.reason
        assert failed.retryable == (otherwise != "fail")
    else:
        with caplog.at_level(logging.WARNING):
            result = await place.run_steps(cfg, "start-programs")
        assert reason in caplog.text
        assert result["programs"]["web:web"]["state"] == "STOPPED"
    assert spawned(cfg, "web") == spawned(cfg, "last") == 0


@pytest.fixture
def ssh(sshd_server: RealSshd, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The fields of a configuration with which the steps run over SSH."""
    monkeypatch.setenv("AIRFLOW_CONN_WEB", sshd_server.connection())
    prefix = f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
    return {"startsecs": 0, "ssh_conn_id": "web", "command_prefix": prefix}


async def test_line_is_found_over_ssh(place: Place, ssh: dict[str, Any], tmp_path: Path) -> None:
    cfg = SupervisorSSHAirflowConfiguration(working_dir=place.folder / "s", program=marks(tmp_path), **ssh)
    await place.run_steps(cfg, *BEGIN)
    await place.run_steps(cfg, "restart-programs")
    assert [spawned(cfg, name) for name in ("cache", "web")] == [2, 2]


async def test_port_is_checked_over_ssh_by_the_name_of_the_remote_machine(
    place: Place, ssh: dict[str, Any], tmp_path: Path
) -> None:
    port = free_port()
    listens = f"import socket, signal, time\ntime.sleep(0.7)\nfound = socket.create_server(('', {port}))\n"
    connects = f"import socket, signal\nsocket.create_connection(('127.0.0.1', {port}), 5)\n"
    program: Any = {
        "db": {
            "command": script(tmp_path, "db", listens + "signal.pause()"),
            "ready": TcpCheck(socket.gethostname(), port),
        },
        "web": {"command": script(tmp_path, "web", connects + "signal.pause()"), "after": ["db"]},
    }
    cfg = SupervisorSSHAirflowConfiguration(working_dir=place.folder / "s", program=program, **ssh)
    result = await place.run_steps(cfg, *BEGIN)
    assert {one["state"] for one in result["programs"].values()} == {"RUNNING"}
    assert [spawned(cfg, name) for name in ("db", "web")] == [1, 1]
