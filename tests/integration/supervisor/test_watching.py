"""The check with a real supervisord."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from integration.supervisor.supervisord_daemon import Daemon, daemon, python
from integration.supervisor.support import set_call_timeout
from unit.high_availability.support import facts
from unit.triggers.support import Run, Runs, eventually, new_attempt

from deferrable_ops.high_availability.check_evaluator import CheckRules
from deferrable_ops.inbox.database.schema import waits
from deferrable_ops.outcome import Failure, Skip, Success
from deferrable_ops.testing import memory_inbox
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.supervisor.check_trigger import SupervisorCheckTrigger
from deferrable_ops.triggers.supervisor.configuration import serialize_configuration

pytest.importorskip("supervisor.supervisord")

QUICK = {"check_interval": 0.1, "startsecs": 0, "forward_logs": True}
SLEEPS = {"command": python("import signal; signal.pause()")}


@pytest.fixture
async def runs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Runs]:
    """Runs triggers on an inbox for this test."""
    monkeypatch.setattr(TaskTrigger, "log", logging.getLogger("task"))
    caplog.set_level(logging.INFO, "task")
    async with memory_inbox() as inbox:
        runs = Runs(inbox)
        yield runs
        await runs.stop()


@pytest.fixture
def copied(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return the lines of programs in the task's log."""
    return lambda: [
        message for record in caplog.records if (message := record.getMessage()).startswith("[test")
    ]


def watching(found: Daemon, **changes: Any) -> SupervisorCheckTrigger:
    cfg = found.config
    if changes:
        cfg = type(cfg)(**cfg.with_secrets() | changes)
    run = facts(start_date=datetime.now(UTC))
    return SupervisorCheckTrigger(
        configuration=serialize_configuration(cfg), rules=CheckRules().as_json(), run_facts=run.as_json()
    )


async def looked(run: Run) -> dict[str, Any]:
    """Wait until the run has saved its state, and return it."""
    while True:
        found = await run.inbox.waits.find(waits.c.id == run.attempt.wait_id)
        if found and found[0].progress:
            progress: dict[str, Any] = found[0].progress
            return progress
        assert not run.task.done(), run.task
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "code, outcome",
    [
        (0, Success(["pass", "stop"])),
        (7, Success(["fail", "stop"])),
        (8, Skip("test:test exited with 8")),
        (9, Failure("test:test exited with 9")),
        (1, Success(["fail", "retrigger"])),
    ],
)
async def test_last_output_is_copied_before_the_task_ends(
    runs: Runs, copied: Callable[[], list[str]], code: int, outcome: Any
) -> None:
    code_of_program = (
        f"import sys; print('started'); sys.stderr.write('oh\\n'); print('bye', end=''); exit({code})"
    )
    async with daemon(
        program={"test": {"command": python(code_of_program)}},
        policy={"exit_codes": {7: "fail", 8: "skip", 9: "retry"}},
        **QUICK,
    ) as found:
        run = runs.start(watching(found))
        await found.start()
        assert await run.outcome() == outcome
        assert sorted(copied()) == ["[test stderr] oh", "[test] bye", "[test] started"]


async def test_retry_runs_the_program_again_until_it_ends_well(
    runs: Runs, copied: Callable[[], list[str]], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    counter, script = tmp_path / "runs", tmp_path / "third_time.py"
    script.write_text(
        f"with open('{counter}', 'a') as file: number = file.tell() + file.write('.')\n"
        "print('run', number, end='')\nexit(0 if number == 3 else 75)"
    )
    async with daemon(
        program={"test": {"command": f"{sys.executable} {script}"}},
        policy={"exit_codes": {75: "retry"}, "crash_restarts": 1, "crash_give_up": 0},
        **QUICK,
    ) as found:
        await found.start()
        first = new_attempt()
        outcomes = [await runs.start(watching(found), first).outcome()]
        for number in (2, 3):
            trigger, attempt = watching(found), new_attempt(number, of=first)
            run, before = runs.start(trigger, attempt), caplog.text.count("; restarted the process")
            await eventually(lambda: caplog.text.count("; restarted the process") > before, "the start")  # noqa: B023
            await run.kill_process()  # before the state is saved, or soon after
            outcomes.append(await runs.start(trigger, attempt).outcome())
        assert outcomes == [Failure("test:test exited with 75")] * 2 + [Success(["pass", "stop"])]
        assert counter.read_text() == "..."
        copied_once = list(dict.fromkeys(copied()))  # one poll may be repeated after each kill
        assert copied_once == ["[test] run 1", "[test] run 2", "[test] run 3"]


COUNTS = """
import time
for number in range(1500):
    print(number, "x" * 90 * (number % 2), flush=True)
    time.sleep(0.001)
"""


async def test_rotated_output_is_copied_once_across_triggerer_restarts(
    runs: Runs, copied: Callable[[], list[str]], tmp_path: Path
) -> None:
    script = tmp_path / "count.py"
    script.write_text(COUNTS)
    program = {
        "command": f"{sys.executable} {script}",
        "stdout_logfile_maxbytes": "10000",
        "stdout_logfile_backups": 50,
    }
    async with daemon(program={"test": program}, **QUICK) as found:
        trigger, attempt, seen = watching(found), new_attempt(), 0
        await found.start()
        for _ in range(4):
            run = runs.start(trigger, attempt)
            await eventually(lambda: len(copied()) > seen, "output")  # noqa: B023
            await looked(run)
            await run.kill_process()
            seen = len(copied())
        assert await runs.start(trigger, attempt).outcome() == Success(["pass", "stop"])
        expected = [f"[test] {number} {'x' * 90 * (number % 2)}" for number in range(1500)]
        repeated = len(copied()) - len(expected)
        assert list(dict.fromkeys(copied())) == expected, "lost or reordered lines"
        assert repeated <= 4 * 200, "more than the last poll was repeated"
        assert len(list(found.config.program["test"].stdout_logfile.parent.glob("output.log.*"))) > 5


async def test_next_run_continues_the_output_of_running_programs(
    runs: Runs, copied: Callable[[], list[str]], tmp_path: Path
) -> None:
    go_on = tmp_path / "go_on"
    script = tmp_path / "waits.py"
    script.write_text(
        f"import os, time; print('one', flush=True)\nwhile not os.path.exists('{go_on}'): time.sleep(0.1)\nprint('two')"
    )
    async with daemon(program={"test": {"command": f"{sys.executable} {script}"}}, **QUICK) as found:
        await found.start()
        first = runs.start(watching(found))
        await eventually(lambda: copied() == ["[test] one"], "output")
        await eventually_async(lambda: looked(first), lambda kept: bool(kept["output"]))
        await first.kill_process()
        go_on.touch()
        assert await runs.start(watching(found)).outcome() == Success(["pass", "stop"])
        assert copied() == ["[test] one", "[test] two"]


async def eventually_async(ask: Callable[[], Any], holds: Callable[[Any], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds(await ask()):
            await asyncio.sleep(0.02)


async def test_crash_loop_is_paused_and_then_given_up(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    async with daemon(
        program={"test": {"command": python("import time; time.sleep(0.2); exit(1)"), "autorestart": True}},
        policy={
            "crash_restarts": 2,
            "crash_window": 60,
            "crash_delay": 1,
            "crash_give_up": 1,
            "otherwise": "fail",
        },
        **QUICK,
    ) as found:
        await found.start()
        assert await runs.start(watching(found)).outcome() == Success(["fail", "stop"])
        assert caplog.text.count("keeping the process stopped") == 1
        assert caplog.text.count("The pause of test:test is over") == 1
        assert "again after 1 pauses" in caplog.text


async def test_killed_supervisord_is_noticed(runs: Runs) -> None:
    async with daemon(program={"test": SLEEPS}, **QUICK) as found:
        await found.start()
        run = runs.start(watching(found))
        await looked(run)
        await found.client.call("supervisor.shutdown")
        assert await run.outcome() == Success(["fail", "retrigger"])


async def test_supervisord_that_is_suspended_for_some_polls_is_not_replaced(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_call_timeout(monkeypatch, 0.2)
    async with daemon(program={"test": SLEEPS}, **QUICK) as found:
        await found.start()
        run = runs.start(watching(found))
        await looked(run)
        pid = await found.client.call("supervisor.getPID")
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(3)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert not run.task.done()
        assert "although its process runs; the programs keep running" in caplog.text
        await found.client.call("supervisor.shutdown")
        assert await run.outcome() == Success(["fail", "retrigger"])


OTHER = {"test": {"command": python("import time; time.sleep(99)")}, "new": SLEEPS}


@pytest.mark.parametrize("drift", ["warn", "apply", "fail"])
async def test_drift_is_logged_or_applied_or_fails_the_task(
    runs: Runs, caplog: pytest.LogCaptureFixture, drift: str
) -> None:
    async with daemon(
        program={"test": SLEEPS, "old": SLEEPS}, policy={"otherwise": "fail"}, **QUICK
    ) as found:
        for name in ("test:test", "old:old"):
            await found.start(name)
        (found.config.directories[0] / "new").mkdir()
        trigger = watching(found, program=OTHER, drift=drift)
        two = [runs.start(trigger), runs.start(trigger)]
        if drift == "fail":
            assert [await run.outcome() for run in two] == [Success(["fail", "stop"])] * 2
            assert "another configuration than this task's: its configuration file differs" in caplog.text
        elif drift == "warn":  # a configured program that does not run fails the check
            assert [await run.outcome() for run in two] == [Success(["fail", "stop"])] * 2
            assert caplog.text.count("supervisord runs another configuration") >= 2
        else:
            for run in two:
                await looked(run)
            now = {process["name"]: process for process in await found.client.processes()}
            assert {name: process["statename"] for name, process in now.items()} == {
                "test": "RUNNING",
                "new": "RUNNING",
            }
            assert caplog.text.count("Applied this task's configuration") == 1, (
                "the second task finds it applied"
            )
            assert found.config.config_path.read_text() != found.config.to_cfg()
            assert not any(run.task.done() for run in two)
            assert await found.client.call("supervisor.reloadConfig") == [[[], [], []]]


async def test_unchanged_group_keeps_running_on_drift(runs: Runs) -> None:
    async with daemon(program={"test": SLEEPS}, drift="apply", **QUICK) as found:
        await found.start()
        (before,) = await found.client.processes()
        run = runs.start(watching(found, program={"test": SLEEPS, "new": SLEEPS}))
        (found.config.directories[0] / "new").mkdir()
        await looked(run)
        by_name = {process["name"]: process for process in await found.client.processes()}
        assert by_name["test"]["pid"] == before["pid"]
        assert by_name["new"]["statename"] == "RUNNING"


async def test_invalid_utf8_and_colours_are_copied(runs: Runs, copied: Callable[[], list[str]]) -> None:
    code = r"import sys; sys.stdout.buffer.write(b'\x1b[31mred\x1b[0m\r\ncaf\xe9 \xe2\x82\n')"
    async with daemon(program={"test": {"command": python(code.replace("\\\\", "\\"))}}, **QUICK) as found:
        run = runs.start(watching(found))
        await found.start()
        assert await run.outcome() == Success(["pass", "stop"])
        replaced = "\N{REPLACEMENT CHARACTER}"
        assert copied() == ["[test] \x1b[31mred\x1b[0m", f"[test] caf{replaced} {replaced}"]


async def test_output_to_dev_stdout_is_reported_once(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    program = {"test": SLEEPS | {"stdout_logfile": "/dev/stdout", "stdout_logfile_maxbytes": 0}}
    async with daemon(program=program, **QUICK) as found:
        run = runs.start(watching(found))
        await found.start()
        await eventually(lambda: "log file /dev/stdout is not a regular file" in caplog.text, "the warning")
        await asyncio.sleep(0.5)
        assert caplog.text.count("is not a regular file") == 1
        assert not run.task.done()
