"""Steps in unusual situations: shutdowns in progress, long stop times, other servers, mounted volumes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from integration.supervisor.support import BEGIN, END, SLEEP, STUBBORN, Place, alive, set_timings, until

pytest.importorskip("supervisor.supervisord")


async def test_start_waits_for_a_shutdown_and_starts_a_new_supervisord(place: Place) -> None:
    cfg = place.cfg(program={"a": {"command": STUBBORN, "stopwaitsecs": 3}})
    await place.start_stubborn(cfg)
    (before,) = place.daemons()
    os.kill(before, signal.SIGTERM)
    log = cfg.supervisord.logfile
    until(lambda: "waiting for a to die" in log.read_text())
    result = await place.run_steps(cfg, "start-supervisor")
    assert result["started"]
    assert place.daemons() == [result["pid"]] != [before]


async def test_shutdown_in_progress_has_its_time(place: Place) -> None:
    cfg = place.cfg(program={"a": {"command": STUBBORN, "stopwaitsecs": 3}})
    await place.start_stubborn(cfg)
    (daemon,) = place.daemons()
    os.kill(daemon, signal.SIGTERM)
    until(lambda: "waiting for a to die" in cfg.supervisord.logfile.read_text())
    await place.run_steps(cfg, "stop-supervisor")
    assert "killing 'a'" in cfg.supervisord.logfile.read_text(), "its supervisord was killed too early"
    assert place.daemons() == place.processes() == []


async def test_programs_with_longer_stop_times_are_ended_too(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_timings(monkeypatch, kill_timeout=0.5, shutdown_timeout=1.0)
    promised = place.cfg(program={"a": {"command": STUBBORN, "stopwaitsecs": 600}})
    await place.start_stubborn(promised)
    now = place.cfg(program={"a": {"command": STUBBORN, "stopwaitsecs": 1}})
    failed = await place.fail_step(now, "stop-programs")
    assert "a:a did not stop within 1 s, the longest stopwaitsecs in this configuration" in failed.reason
    await place.run_steps(now, *END[1:])
    assert place.daemons() == place.processes() == []
    assert not (place.folder / "s").exists()


async def test_program_with_another_server_url_is_ended_with_its_supervisord(place: Place) -> None:
    cfg = place.cfg(program={"a": {"command": SLEEP, "serverurl": "http://127.0.0.1:9001"}})
    first = await place.run_steps(cfg, *BEGIN)
    os.kill(place.daemons()[0], signal.SIGKILL)
    pid = first["programs"]["a:a"]["pid"]
    assert alive(pid)
    again = await place.run_steps(cfg, *BEGIN[1:])
    assert not alive(pid)
    assert alive(again["programs"]["a:a"]["pid"])
    await place.run_steps(cfg, *END)
    assert not alive(again["programs"]["a:a"]["pid"])


async def test_directory_that_cannot_be_removed_is_left_empty(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.folder / "s").mkdir(mode=0o700)  # like a mounted volume
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "rmdir").write_text("#!/bin/sh\necho 'Device or resource busy' >&2\nexit 1\n")
    (tools / "rmdir").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    cfg = place.cfg()
    await place.run_steps(cfg, *BEGIN, *END)
    assert list((place.folder / "s").iterdir()) == []
