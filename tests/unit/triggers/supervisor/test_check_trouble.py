"""The check, if supervisord or its machine does not answer, or refuses."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.triggers.supervisor.fakes import FakeHost, FakeSupervisord, two, watching
from unit.triggers.support import Runs, eventually

from deferrable_ops.exceptions import (
    ConfigurationError,
    MachineRefused,
    MachineUnavailable,
    SupervisordRefused,
    SupervisordUnavailable,
)
from deferrable_ops.outcome import Failure, Success
from deferrable_ops.supervisord.processes import ProcessState
from deferrable_ops.triggers.supervisor import check_trigger
from deferrable_ops.triggers.supervisor.watch.program_watcher import ProgramWatcher

AWAY = SupervisordUnavailable("supervisord does not answer at /data/s/supervisor.sock")


@pytest.fixture
def daemon() -> FakeSupervisord:
    return FakeSupervisord()


@pytest.fixture
def place(daemon: FakeSupervisord, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    place = FakeHost(daemon)
    monkeypatch.setattr(check_trigger, "open_host", place.open_host)
    return place


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("silence", [AWAY, SupervisordRefused("it shuts down", 6)])
async def test_supervisord_that_does_not_answer_retriggers(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path, silence: Exception
) -> None:
    run = runs.start(watching(two(tmp_path)))
    await daemon.looked()
    daemon.failing = silence
    before = daemon.readings
    assert await run.outcome() == Success(["fail", "retrigger"])
    assert daemon.readings - before == 3


@pytest.fixture
def running_process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has the command line of the supervisord in `tmp_path`."""
    config = two(tmp_path).config_path
    command = [sys.executable, "-c", "import time; time.sleep(60)", "supervisord", "-c", str(config)]
    with subprocess.Popen(command) as process:
        yield process
        process.kill()


@pytest.mark.usefixtures("place")
async def test_supervisord_whose_process_runs_is_waited_for(
    runs: Runs,
    daemon: FakeSupervisord,
    tmp_path: Path,
    running_process: subprocess.Popen[bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    two(tmp_path).socket_path.touch()
    run = runs.start(watching(two(tmp_path)))
    await daemon.looked()
    daemon.failing = AWAY
    for _ in range(6):
        await daemon.looked()
    assert not run.task.done()
    assert caplog.text.count(f"{AWAY}, although its process runs; the programs keep running") == 1
    running_process.kill()
    running_process.wait()
    assert await run.outcome() == Success(["fail", "retrigger"])


@pytest.mark.usefixtures("place", "running_process")
async def test_supervisord_that_hangs_retriggers(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProgramWatcher, "hangs_after", 0.5)
    two(tmp_path).socket_path.touch()
    run = runs.start(watching(two(tmp_path)))
    await daemon.looked()
    daemon.failing = AWAY
    assert await run.outcome() == Success(["fail", "retrigger"])
    assert daemon.readings > 3


@pytest.mark.usefixtures("place")
async def test_short_silence_of_supervisord_is_tolerated(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path
) -> None:
    run = runs.start(watching(two(tmp_path)))
    for _ in range(4):
        await daemon.looked()
        daemon.failing, before = AWAY, daemon.readings
        while daemon.readings == before:
            await asyncio.sleep(0.001)
        daemon.failing = None
    await daemon.looked()
    assert not run.task.done()


async def test_check_waits_for_an_unreachable_machine(
    runs: Runs, daemon: FakeSupervisord, place: FakeHost, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = runs.start(watching(two(tmp_path)))
    await daemon.looked()

    async def lost(*_: Any, **__: Any) -> Any:
        raise MachineUnavailable("airflow@web-3:22 is away")

    check, place.machine.check_directory = place.machine.check_directory, lost  # type: ignore[method-assign]
    daemon.failing = AWAY
    for _ in range(5):
        await daemon.looked()
    assert not run.task.done(), "supervisord may still be running"
    assert (
        caplog.text.count(
            "Lost contact with the machine, and retrying; the programs keep running. The error: "
            "airflow@web-3:22 is away"
        )
        == 1
    )
    place.machine.check_directory, daemon.failing = check, None  # type: ignore[method-assign]
    daemon.set("a", ProcessState.EXITED, 0)
    daemon.set("b", ProcessState.EXITED, 0)
    assert await run.outcome() == Success(["pass", "stop"])


@pytest.mark.usefixtures("place")
async def test_directory_that_others_can_write_to_is_left_alone_until_it_is_fixed(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = runs.start(watching(two(tmp_path)))
    await daemon.looked()
    tmp_path.chmod(0o777)
    daemon.failing = AWAY
    await eventually(lambda: f"chmod go-w {tmp_path}" in caplog.text, "the fix in the log")
    assert not run.task.done(), "the programs keep running"
    tmp_path.chmod(0o700)
    daemon.failing = None
    daemon.set("a", ProcessState.EXITED, 0)
    daemon.set("b", ProcessState.EXITED, 0)
    assert await run.outcome() == Success(["pass", "stop"])


@pytest.mark.usefixtures("place")
async def test_supervisord_without_its_directory_is_not_called_again(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    run = runs.start(watching(two(folder)))
    await daemon.looked()
    shutil.rmtree(folder)
    before, daemon.failing = daemon.readings, AWAY
    assert await run.outcome() == Success(["fail", "retrigger"])
    assert daemon.readings - before == 1


async def test_check_waits_for_a_machine_that_is_unreachable_at_its_start(
    runs: Runs, daemon: FakeSupervisord, place: FakeHost, tmp_path: Path
) -> None:
    place.failing = [MachineUnavailable("away")]
    runs.start(watching(two(tmp_path)))
    await daemon.looked()


@pytest.mark.parametrize(
    "refused",
    [
        MachineRefused("the host key is another"),
        SupervisordRefused("login"),
        ConfigurationError("there is no connection web"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_refused_login_does_not_end_the_check_while_the_programs_run(
    runs: Runs,
    daemon: FakeSupervisord,
    place: FakeHost,
    tmp_path: Path,
    refused: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if isinstance(refused, SupervisordRefused):
        daemon.failing = refused
    else:
        place.failing = [refused]
    run = runs.start(watching(two(tmp_path)))
    if isinstance(refused, ConfigurationError):
        await eventually(lambda: daemon.readings, "the check to go on")
    else:
        await eventually(lambda: str(refused) in caplog.text, "the refusal in the log")
    assert not run.task.done()
    daemon.failing = None
    daemon.set("a", ProcessState.EXITED, 0)
    daemon.set("b", ProcessState.EXITED, 0)
    assert await run.outcome() == Success(["pass", "stop"])


@pytest.mark.usefixtures("place")
async def test_supervisord_of_another_host_fails_the_check(
    runs: Runs, daemon: FakeSupervisord, tmp_path: Path
) -> None:
    await runs.inbox.daemons.claim(str(tmp_path), "web-9", "boot", dag_id="dag", run_id="run")
    outcome = await runs.start(watching(two(tmp_path))).outcome()
    assert isinstance(outcome, Failure)
    assert not outcome.retryable
    assert "runs on web-9" in outcome.reason
    assert not daemon.readings


async def test_configuration_that_cannot_be_read_fails_the_task(runs: Runs, tmp_path: Path) -> None:
    trigger = watching(two(tmp_path))
    trigger.configuration = "no configuration"
    outcome = await runs.start(trigger).outcome()
    assert isinstance(outcome, Failure)
    assert "configuration is not a result of serialize_configuration()" in outcome.reason
