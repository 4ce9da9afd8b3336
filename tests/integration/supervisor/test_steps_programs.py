"""Which programs the steps start, restart or leave running, also after a change of the configuration."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
from airflow.sdk.execution_time import task_runner
from integration.supervisor.support import BEGIN, SLEEP, Place, until
from unit.triggers.support import XComs, lose

from deferrable_ops.high_availability.facts import RunFacts
from deferrable_ops.outcome import Success
from deferrable_ops.triggers.base import TaskTrigger

pytest.importorskip("supervisor.supervisord")

CHECK = "prices-check-programs"


def run_facts(retriggers: int) -> dict[str, Any]:
    conf = {f"{CHECK}-retrigger": retriggers} if retriggers else {}
    return RunFacts("prices", "monday", "scheduled", {}, conf).as_json()


def pids(result: dict[str, Any]) -> dict[str, int]:
    return {name: one["pid"] for name, one in result["programs"].items()}


async def test_running_programs_are_restarted_only_in_the_configured_runs(place: Place) -> None:
    before = pids(await place.run_steps(place.cfg(), *BEGIN))
    for initial, retrigger, retriggers in (
        (False, True, 0),
        (False, True, 2),
        (True, False, 0),
        (True, False, 1),
        (True, True, 0),
    ):
        cfg = place.cfg(restart_on_initial=initial, restart_on_retrigger=retrigger)
        facts = run_facts(retriggers)
        result = await place.run_steps(cfg, "start-programs", check_task_id=CHECK, run_facts=facts)
        same = {name for name, pid in pids(result).items() if pid == before[name]}
        restarts = retrigger if retriggers else initial
        assert same == (set() if restarts else {"a:a", "b:b"}), (initial, retrigger, retriggers)
        before = pids(result)
    assert sorted(before.values()) == sorted(place.processes())


async def test_restart_restarts_all_programs_including_ended_ones(place: Place) -> None:
    cfg = place.cfg(program={"a": {"command": SLEEP}, "b": {"command": f"{sys.executable} -c 'exit(3)'"}})
    first = await place.run_steps(cfg, *BEGIN)
    again = await place.run_steps(cfg, "restart-programs")
    assert again["programs"]["a:a"]["state"] == "RUNNING"
    assert pids(again)["a:a"] != pids(first)["a:a"]
    assert cfg.supervisord.logfile.read_text().count("spawned: 'b'") == 2


async def test_step_whose_wait_the_inbox_has_lost_starts_no_program_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TaskTrigger, "records_launches", True)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", XComs(), raising=False)
    cfg = place.cfg(program={"a": {"command": SLEEP}, "b": {"command": f"{sys.executable} -c 'exit(0)'"}})
    await place.run_steps(cfg, *BEGIN[:2])
    run = place.run("start-programs", cfg)
    assert isinstance(await run.outcome(), Success)
    await lose(run)
    assert isinstance(await place.run("start-programs", cfg, run.attempt).outcome(), Success)
    assert cfg.supervisord.logfile.read_text().count("spawned: 'b'") == 1


async def test_program_that_cannot_start_fails_the_step_unless_its_policy_says_otherwise(
    place: Place,
) -> None:
    gone, fatal = {"command": "/no/such/program"}, {"command": "false", "startsecs": 1, "startretries": 0}
    cfg = place.cfg(program={"a": gone, "b": {"command": SLEEP}})
    await place.run_steps(cfg, *BEGIN[:2])
    failed = await place.fail_step(cfg, "start-programs")
    assert "a:a: " in failed.reason
    assert "NO_FILE" in failed.reason
    # A forked process can be found by its environment only after it has executed its command.
    assert until(lambda: len(place.processes()) == 1), "the other programs are started"
    cfg = place.cfg(program={"b": {"command": SLEEP}, "c": fatal}, policies={"c": {"otherwise": "fail"}})
    await place.run_steps(cfg, *BEGIN[:2])
    failed = await place.fail_step(cfg, "start-programs")
    assert "c:c is FATAL" in failed.reason
    assert not failed.retryable
    for judged_later in ("skip", "retrigger"):
        policies = {"c": {"otherwise": judged_later}}
        cfg = place.cfg(program={"b": {"command": SLEEP}, "c": fatal}, policies=policies)
        result = await place.run_steps(cfg, "start-programs")
        assert result["programs"]["c:c"]["state"] == "FATAL"


async def test_changed_configuration_applies_to_idle_groups_and_warns_of_running_ones(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    sleeps = {"command": SLEEP}
    cfg = place.cfg(program={"stays": sleeps, "idle": sleeps, "leaves": sleeps})
    await place.run_steps(cfg, *BEGIN[:2])
    first = pids(await place.run_steps(cfg, "start-programs"))
    site_program = {"command": SLEEP, "environment": {"COLOUR": "blue"}}
    changed = place.cfg(program={"stays": site_program, "idle": sleeps, "new": sleeps})
    with caplog.at_level(logging.WARNING):
        result = await place.run_steps(changed, *BEGIN)
    assert "loaded with another configuration: stays" in caplog.text
    assert "no longer configured: leaves" in caplog.text
    assert pids(result)["stays:stays"] == first["stays:stays"]
    assert result["programs"]["new:new"]["state"] == "RUNNING"
    failing = place.cfg(program=dict(changed.program), drift="fail")
    failed = await place.fail_step(failing, "start-supervisor")
    assert not failed.retryable
    assert "drift='apply'" in failed.reason
    applying = place.cfg(program=dict(changed.program), drift="apply")
    result = await place.run_steps(applying, *BEGIN)
    assert pids(result)["stays:stays"] != first["stays:stays"]
    assert pids(result)["idle:idle"] == first["idle:idle"]
    assert sorted(pids(result).values()) == sorted(place.processes()), "a removed program still runs"
    environment = place.environment(pids(result)["stays:stays"])
    assert b"COLOUR=blue" in environment


async def test_restart_applies_the_changed_configuration(place: Place) -> None:
    await place.run_steps(place.cfg(program={"a": {"command": SLEEP}}), *BEGIN)
    changed = place.cfg(program={"a": {"command": SLEEP, "environment": {"COLOUR": "red"}}})
    result = await place.run_steps(changed, "configure-supervisor", "restart-programs")
    assert b"COLOUR=red" in place.environment(pids(result)["a:a"])
