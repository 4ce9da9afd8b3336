"""Steps with a real supervisord on this host: there is always one supervisord, with the right programs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from integration.supervisor.support import (
    BEGIN,
    END,
    SLEEP,
    Life,
    Place,
    alive,
    on_host,
    until,
    until_killed,
)
from sqlalchemy import update
from unit.triggers.support import new_attempt

from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.inbox.waits.launches import Claim
from deferrable_ops.outcome import Success
from deferrable_ops.triggers.supervisor.configuration import daemon_name, serialize_configuration
from deferrable_ops.triggers.supervisor.daemon.daemon import adopt_or_start
from deferrable_ops.triggers.supervisor.host import open_host

pytest.importorskip("supervisor.supervisord")

log = logging.getLogger("task")

STARTER = """
import asyncio, logging, os, signal, sys
from deferrable_ops.triggers.supervisor.configuration import load_configuration
from deferrable_ops.triggers.supervisor.daemon.daemon import adopt_or_start
from deferrable_ops.triggers.supervisor.host import open_host
async def main():
    async with open_host(load_configuration(sys.stdin.read()), logging.getLogger()) as site:
        await adopt_or_start(site)
        os.killpg(0, signal.SIGKILL)
asyncio.run(main())
"""


async def test_start_steps_run_programs_and_teardown_steps_leave_nothing(place: Place) -> None:
    cfg = place.cfg()
    result = await place.run_steps(cfg, *BEGIN)
    (daemon,) = place.daemons()
    assert {name: one["state"] for name, one in result["programs"].items()} == {
        "a:a": "RUNNING",
        "b:b": "RUNNING",
    }
    assert sorted(one["pid"] for one in result["programs"].values()) == sorted(place.processes())
    assert cfg.config_path.stat().st_mode & 0o777 == 0o600
    assert place.folder.joinpath("s").stat().st_mode & 0o777 == 0o700
    assert os.getsid(daemon) == daemon
    stdio = [Path(f"/proc/{daemon}/fd/{number}").readlink() for number in range(3)]
    assert stdio == [Path("/dev/null")] * 3
    result = await place.run_steps(cfg, *END)
    assert (place.daemons(), place.processes()) == ([], [])
    assert list(place.folder.iterdir()) == []
    assert await place.runs.inbox.daemons.all() == []


async def test_running_supervisord_and_programs_are_adopted(place: Place) -> None:
    cfg = place.cfg()
    first = await place.run_steps(cfg, *BEGIN)
    (daemon,) = place.daemons()
    result = await place.run_steps(cfg, *BEGIN[:2])
    assert (result["pid"], result["started"]) == (daemon, False)
    assert (await place.run_steps(cfg, "start-programs"))["programs"] == first["programs"]
    assert place.daemons() == [daemon]


async def test_twenty_concurrent_starts_start_one_supervisord_despite_a_stale_socket(place: Place) -> None:
    cfg = place.cfg()
    await place.run_steps(cfg, *BEGIN[:2])
    os.kill(place.daemons()[0], signal.SIGKILL)
    assert cfg.socket_path.exists()

    async def start() -> tuple[int, bool]:
        async with open_host(cfg, log) as site:
            daemon, started = await adopt_or_start(site)
            return daemon.pid, started

    found = await asyncio.gather(*(start() for _ in range(20)))
    (daemon,) = place.daemons()
    assert {pid for pid, _ in found} == {daemon}
    assert [started for _, started in found].count(True) == 1
    assert not can_be_locked(cfg.working_dir), "supervisord must hold its lock while it runs"
    os.kill(daemon, signal.SIGKILL)
    until(lambda: can_be_locked(cfg.working_dir))


def can_be_locked(folder: Path | None) -> bool:
    assert folder is not None
    return subprocess.run(["flock", "-n", folder / "supervisord.lock", "true"], check=False).returncode == 0


async def test_supervisord_outlives_the_process_group_that_started_it(place: Place) -> None:
    cfg = place.cfg()
    await place.run_steps(cfg, "configure-supervisor")
    starter = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STARTER, stdin=subprocess.PIPE, start_new_session=True
    )
    await starter.communicate(serialize_configuration(cfg).encode())
    assert starter.returncode == -signal.SIGKILL
    (daemon,) = place.daemons()
    result = await place.run_steps(cfg, "start-supervisor")
    assert (result["pid"], result["started"]) == (daemon, False)


async def test_pid_file_is_ignored(place: Place) -> None:
    cfg = place.cfg()
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        await place.run_steps(cfg, "configure-supervisor")
        cfg.supervisord.pidfile.write_text(f"{bystander.pid}\n")
        cfg.socket_path.write_text("no socket")
        cfg.socket_path.unlink()
        await place.run_steps(cfg, "stop-supervisor", "force-kill")
        assert bystander.poll() is None
        cfg.supervisord.pidfile.write_text(f"{bystander.pid}\n")
        await place.run_steps(cfg, *BEGIN[1:], "force-kill")
        assert bystander.poll() is None
        assert (place.daemons(), place.processes()) == ([], [])
    finally:
        bystander.kill()
        bystander.wait()


async def test_truncated_file_fails_without_its_password_and_is_repaired(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    login = {"username": "me", "password": "hunter2hunter2"}
    cfg = place.cfg(unix_http_server={"file": place.folder / "s" / "supervisor.sock", **login})
    failed = await place.fail_step(cfg, "start-supervisor")
    assert "clear the task 'configure-supervisor'" in failed.reason
    await place.run_steps(cfg, "configure-supervisor")
    cfg.config_path.write_text(f"[supervisord]\npassword hunter2hunter2\n{cfg.to_cfg()[:40]}")
    failed = await place.fail_step(cfg, "start-supervisor")
    assert "supervisord exited with code" in failed.reason
    assert place.daemons() == []
    await place.run_steps(cfg, *BEGIN)
    assert len(place.processes()) == 2
    assert "hunter2" not in failed.reason + caplog.text
    assert "hunter2" not in serialize_configuration(cfg)


async def test_step_interrupted_between_any_two_actions_gives_the_same_result(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, cuts = place.cfg(), 0
    for step in (*BEGIN, "restart-programs", *END):
        attempt, actions = new_attempt(task_id=step), 0
        while True:
            with until_killed(monkeypatch, life := Life(actions)):
                run = place.run(step, cfg, attempt)
                over = asyncio.create_task(life.is_over.wait())
                await asyncio.wait([run.task, over], return_when=asyncio.FIRST_COMPLETED)
                if run.task.done():
                    over.cancel()
                    break
                await run.kill_process()
            actions, cuts = actions + 1, cuts + 1
        assert isinstance(await run.outcome(), Success)
        assert len(place.daemons()) == (step in (*BEGIN[1:], "restart-programs", "stop-programs"))
        assert len(place.processes()) == 2 * (step in ("start-programs", "restart-programs"))
    assert list(place.folder.iterdir()) == []
    assert cuts > 40


async def test_two_triggerers_on_one_step_get_one_outcome(place: Place) -> None:
    cfg = place.cfg(program={"a": {"command": f"sh -c 'echo started >> {place.folder}/log'"}})
    for step in BEGIN:
        attempt = new_attempt(task_id=step)
        one, other = place.run(step, cfg, attempt), place.run(step, cfg, attempt)
        assert await one.outcome() == await other.outcome()
    assert len(place.daemons()) == 1
    assert (
        until(lambda: (place.folder / "log").exists() and (place.folder / "log").read_text()) == "started\n"
    )


async def test_resumed_step_does_not_start_an_ended_program_again(place: Place) -> None:
    ran = place.folder / "ran"
    program = {"a": {"command": f"sh -c 'echo started >> {ran}'"}, "b": {"command": SLEEP, "startsecs": 2}}
    cfg = place.cfg(program=program)
    await place.run_steps(cfg, *BEGIN[:2])
    attempt = new_attempt(task_id="start-programs")
    run = place.run("start-programs", cfg, attempt)
    await asyncio.to_thread(until, ran.exists)
    await run.kill_process()
    result = (await place.run("start-programs", cfg, attempt).outcome()).value  # type: ignore[union-attr]
    assert {name: one["state"] for name, one in result["programs"].items()} == {
        "a:a": "EXITED",
        "b:b": "RUNNING",
    }
    assert ran.read_text() == "started\n"


async def test_orphans_of_a_killed_supervisord_end_before_the_new_programs_start(place: Place) -> None:
    cfg = place.cfg()
    await place.run_steps(cfg, *BEGIN)
    old = place.processes()
    os.kill(place.daemons()[0], signal.SIGKILL)
    result = await place.run_steps(cfg, *BEGIN)
    new = place.processes()
    assert len(new) == 2
    assert not set(new) & set(old)
    assert not any(alive(pid) for pid in old)
    assert sorted(one["pid"] for one in result["programs"].values()) == sorted(new)


async def test_step_on_another_host_fails_with_both_names(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = place.cfg()
    result = await place.run_steps(cfg, *BEGIN)
    with on_host(monkeypatch, "web-2"):
        for step in (*BEGIN, "restart-programs", *END, "force-kill"):
            failed = await place.fail_step(cfg, step)
            assert f"runs on {result['host']}, but this triggerer runs on web-2" in failed.reason
            assert f"supervisord forget {daemon_name(cfg)}" in failed.reason
            # The retry of a teardown step may run on another triggerer.
            assert failed.retryable == (step in END)
        assert len(place.processes()) == 2
        await place.runs.inbox.daemons.forget(daemon_name(cfg))
        await place.run_steps(cfg, "configure-supervisor")
    claimed = await place.runs.inbox.daemons.find(daemon_name(cfg))
    assert claimed is not None
    assert claimed.host == "web-2"


async def test_supervisord_is_started_again_after_a_reboot(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = place.cfg()
    await place.run_steps(cfg, *BEGIN)
    place.clean()
    with on_host(monkeypatch, os.uname().nodename, "another boot"):
        result = await place.run_steps(cfg, "start-supervisor")
        assert result["started"]
        await place.run_steps(cfg, "start-programs")
    claimed = await place.runs.inbox.daemons.find(daemon_name(cfg))
    assert claimed is not None
    assert claimed.boot_id == "another boot"
    assert len(place.processes()) == 2


async def test_triggerer_that_was_suspended_for_long_changes_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = place.cfg()
    await place.run_steps(cfg, *BEGIN)
    attempt = new_attempt(task_id="stop-supervisor")
    sleeper = place.run("stop-supervisor", cfg, attempt)
    asked, go_on = asyncio.Event(), asyncio.Event()
    real = Claim.check

    async def slow(claim: Claim) -> float:
        asked.set()
        await go_on.wait()
        return await real(claim)

    monkeypatch.setattr(Claim, "check", slow)
    await asked.wait()
    monkeypatch.setattr(Claim, "check", real)
    await _let_lease_expire(place, attempt.wait_id)
    result = await place.run("stop-supervisor", cfg, attempt).outcome()
    next_run = await place.run_steps(cfg, *BEGIN)
    go_on.set()
    assert await sleeper.outcome() == result
    assert sorted(one["pid"] for one in next_run["programs"].values()) == sorted(place.processes())


async def _let_lease_expire(place: Place, wait_id: str) -> None:
    async with place.runs.inbox.database.begin() as connection:
        await connection.execute(update(waits).where(waits.c.id == wait_id).values(launch_lease=0.0))
