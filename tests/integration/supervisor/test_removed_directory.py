"""The working directory of a running supervisord is removed, for example by a job that cleans /tmp."""

from __future__ import annotations

import asyncio
import shutil
import time
from datetime import UTC, datetime

import pytest
from integration.supervisor.support import BEGIN, END, Place, alive, set_timings
from unit.high_availability.support import facts

from deferrable_ops.high_availability.check_evaluator import CheckRules
from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.outcome import Success
from deferrable_ops.triggers.supervisor.check_trigger import SupervisorCheckTrigger
from deferrable_ops.triggers.supervisor.configuration import serialize_configuration

pytest.importorskip("supervisor.supervisord")


async def test_stop_steps_end_its_supervisord_and_programs(place: Place) -> None:
    cfg = place.cfg()
    await place.run_steps(cfg, *BEGIN)
    shutil.rmtree(place.folder / "s")
    began = time.monotonic()
    for step in END:
        await place.run_steps(cfg, step)
        if step == "stop-programs":
            assert place.processes() == []
    assert place.daemons() == place.processes() == []
    assert time.monotonic() - began < 15


async def test_next_run_replaces_its_supervisord(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    set_timings(monkeypatch, answer_timeout=1.0)
    cfg = place.cfg()
    first = await place.run_steps(cfg, *BEGIN)
    (daemon,) = place.daemons()
    shutil.rmtree(place.folder / "s")
    result = await place.run_steps(cfg, *BEGIN)
    assert place.daemons() != [daemon]
    assert len(place.daemons()) == 1
    assert not any(alive(process["pid"]) for process in first["programs"].values())
    assert place.processes() == [process["pid"] for process in result["programs"].values()]


async def test_start_programs_fails_at_once(place: Place) -> None:
    cfg = place.cfg()
    await place.run_steps(cfg, *BEGIN)
    shutil.rmtree(place.folder / "s")
    failed = await place.fail_step(cfg, "start-programs")
    assert "does not exist on" in failed.reason


@pytest.mark.parametrize("is_made_again", [False, True])
async def test_check_notices_it(place: Place, is_made_again: bool) -> None:
    cfg = place.cfg(check_interval=0.2)
    await place.run_steps(cfg, *BEGIN)
    trigger = SupervisorCheckTrigger(
        configuration=serialize_configuration(cfg),
        rules=CheckRules().as_json(),
        run_facts=facts(start_date=datetime.now(UTC)).as_json(),
    )
    run = place.runs.start(trigger)
    while (
        not (found := await run.inbox.waits.find(waits.c.id == run.attempt.wait_id)) or not found[0].progress
    ):
        await asyncio.sleep(0.01)
    shutil.rmtree(place.folder / "s")
    if is_made_again:
        (place.folder / "s").mkdir(mode=0o700)
    assert await run.outcome() == Success(["fail", "retrigger"])
