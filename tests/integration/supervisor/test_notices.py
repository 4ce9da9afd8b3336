"""Notices of program events, and the rolling replacement of changed programs, with a real supervisord."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from airflow.sdk import BaseNotifier
from integration.supervisor.support import SLEEP, Place
from unit.triggers.supervisor.fakes import watching
from unit.triggers.support import Runs, eventually

from deferrable_ops.outcome import Success
from deferrable_ops.triggers.supervisor.watch.notices import Notices
from deferrable_ops.upstreams.supervisord.client import Supervisord

START = ("configure-supervisor", "start-supervisor", "start-programs")
received: list[tuple[str, dict[str, Any]]] = []


class Recorder(BaseNotifier):
    """Keeps its rendered text and the event."""

    template_fields = ("text",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    async def async_notify(self, context: Any) -> None:
        received.append((self.text, context["event"]))


async def fail() -> None:
    raise RuntimeError("hook-token")


async def hang(context: Any) -> None:
    await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def _empty() -> None:
    received.clear()


def crashing(place: Place, *notifiers: Any, **fields: Any) -> Any:
    lines = "echo secret-value; echo last; sleep 0.2; exit 3"
    program = {"command": f"sh -c '{lines}'", "autorestart": True, "environment": {"X": "secret-value"}}
    policy = {"crash_restarts": 2, "crash_delay": 1, "crash_give_up": 1, "otherwise": "fail"}
    given = {"program": {"a": program}, "policy": policy, "check_interval": 0.05, **fields}
    return place.cfg(on_program_event=list(notifiers), **given)


async def test_notices_of_a_crash_loop_have_exit_code_and_masked_last_lines(place: Place, runs: Runs) -> None:
    recorder = {"path": f"{__name__}.Recorder", "kwargs": {"text": "{{ event.kind }} of {{ event.program }}"}}
    cfg = crashing(place, recorder)
    await place.run_steps(cfg, *START)
    assert await runs.start(watching(cfg)).outcome() == Success(["fail", "stop"])
    texts = [text for text, _ in received]
    assert sorted(texts) == [
        "crash_loop of a",
        "given_up of a",
        "paused of a",
        "restarted of a",
    ], "one notice per kind, because of the throttle"
    for _, event in received:
        assert event["last_lines"][-2:] == ["***", "last"]
    assert {event["exitstatus"] for _, event in received} <= {0, 3}


async def test_notifier_that_fails_or_hangs_does_not_change_the_outcome(
    place: Place, runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Notices, "finish_timeout", 0.2)
    cfg = crashing(place, f"{__name__}.fail", f"{__name__}.hang", "no_such_package.Notifier")
    await place.run_steps(cfg, *START)
    assert await runs.start(watching(cfg)).outcome() == Success(["fail", "stop"])
    assert f"Could not send a notice with {__name__}.fail (RuntimeError); the task continues" in caplog.text
    assert "no_such_package.Notifier (ModuleNotFoundError)" in caplog.text
    assert "were not sent in time" in caplog.text
    assert "hook-token" not in caplog.text


@pytest.mark.parametrize("how", ["while it is watched", "when supervisord is used again"])
async def test_rolling_replaces_only_changed_programs_one_after_another(
    place: Place, runs: Runs, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = place.cfg(program={name: {"command": SLEEP} for name in "abc"}, check_interval=0.05)
    before = await place.run_steps(old, *START)
    changed = {"command": SLEEP, "startsecs": 1}
    new = place.cfg(
        program={"a": changed, "b": {"command": SLEEP}, "c": changed},
        check_interval=0.05,
        drift="apply",
        rolling=True,
    )
    lowest, multicall = [3], Supervisord.multicall

    async def counted(client: Supervisord, calls: Any) -> Any:
        answers = await multicall(client, calls)
        if any(method == "supervisor.removeProcessGroup" for method, _ in calls):
            states = [process["statename"] for process in await client.processes()]
            lowest[0] = min(lowest[0], states.count("RUNNING"))
        return answers

    monkeypatch.setattr(Supervisord, "multicall", counted)
    if how == "while it is watched":
        run = runs.start(watching(new))
        await eventually(lambda: new.config_path.read_text() == new.to_cfg(), "the new file")
        await asyncio.sleep(4)
        await run.kill_process()
    else:
        await place.run_steps(new, "configure-supervisor", "start-supervisor")
    after = await place.run_steps(new, "start-programs")
    pids = {name: state["pid"] for name, state in before["programs"].items()}
    moved = {name for name, state in after["programs"].items() if state["pid"] != pids[name]}
    assert moved == {"a:a", "c:c"}
    assert lowest[0] >= 2
