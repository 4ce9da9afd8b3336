"""Much output, binary output and long lines of a real supervisord's program: nothing blocks, nothing goes uncounted."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from integration.supervisor.supervisord_daemon import daemon, python
from integration.supervisor.test_watching import looked, watching
from unit.triggers.support import Runs, eventually, new_attempt

from deferrable_ops.outcome import Success
from deferrable_ops.testing import memory_inbox
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.lifecycle.log_budget import log_budget
from deferrable_ops.triggers.supervisor.watch.output_copier import OutputCopier

pytest.importorskip("supervisor.supervisord")

QUICK = {"check_interval": 0.2, "startsecs": 0}
BURST = 200 * 30  # lines
MB = 1_000_000
SKIPPED = re.compile(r"^\[test\] skipped ([\d,]+) lines? \(")

# Of each program: the size of its output, and the number of its lines.
LINES = (
    "import sys; [sys.stdout.write('%0100d' % n + chr(10)) for n in range({count})]",
    101,
    1,
)
BINARY = (
    (
        "import random, sys; block = random.Random(1).randbytes(65536); "
        "[sys.stdout.buffer.write(block) for n in range({count})]"
    ),
    65_536,
    0,
)
LONG_LINES = ("import sys; [sys.stdout.write('x' * 10**6 + chr(10)) for n in range({count})]", MB + 1, 1)


@pytest.fixture
async def runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> AsyncIterator[Runs]:
    monkeypatch.setattr(TaskTrigger, "log", logging.getLogger("task"))
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path))
    caplog.set_level(logging.INFO, "task")
    log_budget.cache_clear()
    async with memory_inbox() as inbox:
        runs = Runs(inbox)
        yield runs
        await runs.stop()
    log_budget.cache_clear()


@asynccontextmanager
async def unblocked_loop() -> AsyncIterator[None]:
    """Fail if the event loop was blocked for a second. CPU time counts, because the machine may be busy."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.01)
            longest = max(longest, time.thread_time() - before)

    ticker = asyncio.create_task(tick())
    yield
    ticker.cancel()
    print(f"longest block of the loop: {1000 * longest:.0f} ms")
    assert longest < 1.0


async def ends(runs: Runs, program: tuple[str, int, int], size: int, **fields: Any) -> bytes | None:
    """Run a program until it has ended, and return the file with its output, if there is one."""
    code, of_each, _ = program
    command = python(code.format(count=size // of_each))
    attempt = new_attempt(task_id="check")
    own = {"command": command, "stdout_logfile_maxbytes": "0"}
    async with daemon(program={"test": own}, **{**QUICK, **fields}) as found, unblocked_loop():
        run = runs.start(watching(found), attempt)
        await found.start()
        async with asyncio.timeout(1_200):
            await asyncio.wait([run.task])
        assert await run.outcome() == Success(["pass", "stop"])
        log = Path(found.config.programs["test"].stdout_logfile)
        files = list(Path(os.environ["AIRFLOW__LOGGING__BASE_LOG_FOLDER"]).rglob("output.attempt=1.test.log"))
        written = log.stat().st_size
        assert written == size // of_each * of_each
        if not files:
            return None
        assert files[0].stat().st_size == written
        return b"" if written > 100 * MB else log.read_bytes()


def counts(caplog: pytest.LogCaptureFixture) -> tuple[int, int]:
    """Return how many lines are in the task's log, and how many it reports as skipped."""
    messages = [record.getMessage() for record in caplog.records]
    skipped = [int(found[1].replace(",", "")) for found in map(SKIPPED.search, messages) if found]
    return sum(message.startswith("[test] ") for message in messages) - len(skipped), sum(skipped)


SIZES = [
    pytest.param(20 * MB, id="20 MB"),
    pytest.param(1_000 * MB, id="1 GB", marks=[pytest.mark.long, pytest.mark.timeout(1_500)]),
]


@pytest.mark.parametrize("size", SIZES)
async def test_lines_over_the_budget_are_skipped_and_counted(
    runs: Runs, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    await ends(runs, LINES, size, forward_logs=True)
    copied, skipped = counts(caplog)
    assert copied + skipped == size // LINES[1]
    assert 0 < copied < 2 * BURST
    last = [record.getMessage() for record in caplog.records if record.getMessage().startswith("[test] 0")]
    assert int(last[-1].split()[1]) == size // LINES[1] - 1, "the newest lines are in the log"


@pytest.mark.parametrize("program", [BINARY, LONG_LINES], ids=["binary", "lines of 1 MB"])
@pytest.mark.parametrize("forward_logs", [True, "file"])
async def test_binary_output_and_long_lines_block_nothing(
    runs: Runs,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    program: tuple[str, int, int],
    forward_logs: bool | str,
) -> None:
    output = await ends(runs, program, 20 * MB, forward_logs=forward_logs)
    written = sum(len(record.getMessage()) for record in caplog.records)
    # The budget is 200 lines of 500 bytes a second.
    assert written < (2 * BURST * 500 if forward_logs is True else 10_000)
    if forward_logs == "file":
        [file] = tmp_path.rglob("output.*")
        assert file.read_bytes() == output
    else:
        assert any(" skipped " in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("size", SIZES)
async def test_all_output_is_copied_to_the_file(
    runs: Runs, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    await ends(runs, LINES, size, forward_logs="file")
    messages = [record.getMessage() for record in caplog.records if record.getMessage().startswith("[test] ")]
    assert len(messages) == 1


@pytest.mark.parametrize("forward_logs", [True, "file"])
async def test_full_disk_under_the_log_files_of_programs_is_reported(
    runs: Runs,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    small_disk: Path,
    forward_logs: bool | str,
) -> None:
    monkeypatch.setattr(OutputCopier, "space_check_interval", 0.0)
    (small_disk / "other").write_bytes(b"x" * MB)
    log = small_disk / "output.log"
    go = small_disk / "go"
    # supervisord loses what it cannot write, and reports nothing.
    command = python(
        f"import os, signal, time; [time.sleep(0.02) for _ in iter(lambda: os.path.exists('{go}'), True)]; "
        "[print('x' * 4999, flush=True) for n in range(1000)]; signal.pause()"
    )
    own = {"command": command, "stdout_logfile": str(log)}

    def reports() -> list[str]:
        messages = [record.getMessage() for record in caplog.records]
        return [message for message in messages if message.startswith("The disk of ")]

    async with daemon(program={"test": own}, forward_logs=forward_logs, **QUICK) as found:
        await found.start()
        run = runs.start(watching(found), new_attempt(task_id="check"))
        await looked(run)
        assert not reports()
        go.touch()
        await eventually(reports, "a report of the full disk")
        [report] = reports()
        assert report.startswith(f"The disk of {small_disk} on this host ({os.uname().nodename}) is full, ")
        assert log.stat().st_size < 5 * MB
