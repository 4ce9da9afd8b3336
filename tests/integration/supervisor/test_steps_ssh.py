"""Steps over a real sshd: the same as on this host, without paths of this host."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from integration.supervisor.support import (
    BEGIN,
    END,
    SLEEP,
    Place,
    answered,
    ask,
    is_stopped,
    on_host,
    owned_inbox,
    set_call_timeout,
    until,
)

from deferrable_ops.inbox.requests import RequestKind, RequestState
from deferrable_ops.supervisord import SupervisorSSHAirflowConfiguration
from deferrable_ops.triggers.supervisor.configuration import daemon_name
from real_sshd import RealSshd

pytest.importorskip("supervisor.supervisord")


@pytest.fixture
def remote(place: Place, sshd_server: RealSshd, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that creates configurations for the machine behind sshd."""
    monkeypatch.setenv("AIRFLOW_CONN_WEB", sshd_server.connection())

    def cfg(**fields: Any) -> SupervisorSSHAirflowConfiguration:
        venv = shlex.quote(str(Path(sys.executable).parent))
        return SupervisorSSHAirflowConfiguration(
            working_dir=place.folder / "s",
            program={"a": {"command": SLEEP}},
            startsecs=0,
            ssh_conn_id="web",
            command_prefix=f"export PATH={venv}:$PATH",
            **fields,
        )

    return cfg


async def test_steps_over_ssh_run_programs_and_leave_nothing(place: Place, remote: Any) -> None:
    cfg = remote()
    result = await place.run_steps(cfg, *BEGIN)
    (daemon,) = place.daemons()
    assert place.processes() == [result["programs"]["a:a"]["pid"]]
    assert cfg.config_path.stat().st_mode & 0o777 == 0o600
    result = await place.run_steps(cfg, "start-supervisor")
    assert (result["pid"], result["started"]) == (daemon, False)
    await place.run_steps(cfg, "restart-programs", *END)
    assert (place.daemons(), place.processes()) == ([], [])
    assert list(place.folder.iterdir()) == []
    assert await place.runs.inbox.daemons.all() == []


async def test_silent_remote_supervisord_is_killed_and_started_again(
    place: Place, remote: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_call_timeout(monkeypatch, 0.5)
    cfg = remote()
    await place.run_steps(cfg, *BEGIN)
    (daemon,) = place.daemons()
    (program,) = place.processes()
    os.kill(daemon, signal.SIGSTOP)
    until(lambda: is_stopped(daemon))
    assert (await place.run_steps(cfg, "force-kill"))["killed"] == sorted([daemon, program])
    result = await place.run_steps(cfg, *BEGIN)
    assert place.processes() == [result["programs"]["a:a"]["pid"]]
    assert place.daemons() != [daemon]


async def test_machine_without_supervisord_fails_with_the_fix(place: Place, remote: Any) -> None:
    cfg = remote().model_copy(update={"command_prefix": "export PATH=/usr/bin:/bin"})
    await place.run_steps(cfg, "configure-supervisor")
    failed = await place.fail_step(cfg, "start-supervisor")
    assert "supervisord is not installed on" in failed.reason
    assert "command_prefix" in failed.reason
    assert not failed.retryable


async def test_any_triggerer_runs_remote_steps_and_a_moved_connection_is_logged(
    place: Place, remote: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = remote()
    await place.run_steps(cfg, *BEGIN)
    with on_host(monkeypatch, "web-4"):
        await place.run_steps(cfg, "configure-supervisor", "stop-programs")
    assert "leads to the machine web-4 now" in caplog.text
    claimed = await place.runs.inbox.daemons.find(daemon_name(cfg))
    assert claimed is not None
    assert claimed.host == "web-4"


async def test_requests_are_carried_out_over_ssh_by_any_triggerer(place: Place, remote: Any) -> None:
    cfg, inbox = remote(), owned_inbox(place)
    before = (await place.run_steps(cfg, *BEGIN))["programs"]["a:a"]["pid"]
    request = await ask(inbox, cfg, RequestKind.RESTART, program="a")
    assert request.arguments["host"] is None
    restarted = await answered(inbox, request)
    assert restarted.state is RequestState.DONE, restarted.answer
    [pid] = place.processes()
    assert pid != before
    stopped = await answered(inbox, await ask(inbox, cfg, RequestKind.STOP))
    assert stopped.state is RequestState.DONE, stopped.answer
    assert (place.daemons(), place.processes(), list(place.folder.iterdir())) == ([], [], [])
