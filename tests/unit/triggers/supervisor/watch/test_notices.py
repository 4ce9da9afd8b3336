"""Notices of program events: what a notifier gets, and what happens if it fails, hangs or blocks."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from unit.supervisord.support import config, process
from unit.triggers.supervisor.recorder import Recorder, received
from unit.triggers.support import new_attempt

from deferrable_ops.exceptions import SupervisordRefused
from deferrable_ops.supervisord.processes import ProcessState
from deferrable_ops.triggers.high_availability import threads
from deferrable_ops.triggers.supervisor.host import SupervisorHost
from deferrable_ops.triggers.supervisor.watch import notices as module
from deferrable_ops.triggers.supervisor.watch.notices import Notices
from deferrable_ops.triggers.supervisor.watch.program_events import ProgramEvent, ProgramEventKind
from deferrable_ops.upstreams.machine.local import LocalMachine

release = threading.Event()


async def record(context: Any, channel: str) -> None:
    received.append((channel, context["message"]))


async def record_without_context(channel: str) -> None:
    received.append(channel)


async def fail() -> None:
    raise RuntimeError("hook-token")


async def exit_process() -> None:
    raise SystemExit(1)


async def cancel_itself() -> None:
    raise asyncio.CancelledError


async def hang() -> None:
    await asyncio.Event().wait()


async def block() -> None:
    release.wait(30)


class Daemon:
    """A supervisord with this log."""

    def __init__(self, log: str | Exception = "") -> None:
        self.log = log

    async def call(self, method: str, offset: int, length: int) -> str:
        assert (method, offset, length) == ("supervisor.readLog", -65536, 0)
        if isinstance(self.log, Exception):
            raise self.log
        return self.log


@pytest.fixture(autouse=True)
def _clean() -> Any:
    received.clear()
    release.clear()
    yield
    release.set()


def notices(*notifiers: Any, log: str | Exception = "") -> Notices:
    cfg = config(
        working_dir="/data",
        on_program_event=[
            one if isinstance(one, dict) else f"{__name__}.{one.__name__}" for one in notifiers
        ],
    )
    host = SupervisorHost(cfg, LocalMachine(), Daemon(log), logging.getLogger("notices"))  # type: ignore[arg-type]
    return Notices(host, new_attempt())


def event(
    kind: ProgramEventKind = ProgramEventKind.RESTARTED, reason: str = "", **fields: Any
) -> ProgramEvent:
    return ProgramEvent(kind, "a", process(name="a", group="a", **fields), reason)


async def sent(notices: Notices, *events: ProgramEvent) -> None:
    notices.add(events)
    await notices.finish()


async def test_notifier_class_renders_its_templates_with_the_event(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("first\nlast\n")
    text = "{{ event.kind }} {{ event.program }} {{ ti.task_id }} {{ dag_id }} {{ message }}"
    found = notices({"path": f"{Recorder.__module__}.Recorder", "kwargs": {"text": text}})
    await sent(
        found,
        event(
            ProgramEventKind.GIVEN_UP,
            "too often",
            state=ProcessState.EXITED,
            exit_code=7,
            stdout_logfile=str(tmp_path / "log"),
            stderr_logfile="",
        ),
    )
    ((rendered, data),) = received
    assert rendered == f"given_up a {new_attempt().task_id} {new_attempt().dag_id} a:a: given up (too often)"
    assert data["name"] == "a"
    assert data["exitstatus"] == 7
    assert data["last_lines"] == ["first", "last"]
    assert data["skipped"] == 0


async def test_function_gets_its_kwargs_and_the_context_if_it_has_this_parameter() -> None:
    own = {"kwargs": {"channel": "ops"}}
    found = notices(
        {"path": f"{__name__}.record", **own}, {"path": f"{__name__}:record_without_context", **own}
    )
    await sent(found, event())
    assert sorted(received, key=str) == [("ops", "a:a: restarted"), "ops"]


@pytest.mark.parametrize(
    "log, reason, code",
    [
        ("INFO exited: a (exit status 3; not expected)\nINFO spawned: 'a' with pid 4\n", "", 3),
        ("WARN exited: a (exit status 3; not expected)\nWARN exited: a (terminated by SIGKILL; x)\n", "", -1),
        ("INFO stopped: a (exit status 0)\nINFO exited: ab (exit status 3; not expected)\n", "pause", 0),
        ("WARN exited: a (exit status 3; not expected)\nWARN stopped: a (terminated by SIGTERM)\n", "", 3),
        ("", "", None),
        (SupervisordRefused("NO_FILE", 20), "", None),
    ],
)
async def test_exit_code_of_a_process_that_runs_again_comes_from_the_log_of_supervisord(
    log: str | Exception, reason: str, code: int | None
) -> None:
    found = notices({"path": f"{Recorder.__module__}.Recorder", "kwargs": {"text": ""}}, log=log)
    await sent(found, event(reason=reason, state=ProcessState.RUNNING))
    assert received[0][1]["exitstatus"] == code


@pytest.mark.parametrize("notifier", [fail, exit_process, cancel_itself])
async def test_notifier_that_raises_is_logged_without_its_message(
    notifier: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await sent(notices(notifier, {"path": "no_such_package.Notifier"}), event())
    assert f"Could not send a notice with {__name__}.{notifier.__name__} (" in caplog.text
    assert "Could not send a notice with no_such_package.Notifier (ModuleNotFoundError)" in caplog.text
    assert "hook-token" not in caplog.text


async def test_notifier_that_hangs_is_cancelled_after_the_timeout(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Notices, "timeout", 0.1)
    before = len(threads._hanging)
    await sent(notices(hang), event())
    assert "hang (TimeoutError); the task continues" in caplog.text
    assert len(threads._hanging) == before


async def test_notifier_that_blocks_does_not_block_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Notices, "timeout", 0.2)
    monkeypatch.setattr(module, "_GRACE", 0.1)
    monkeypatch.setattr(module, "_MAX_HANGING", len(threads._hanging) + 1)
    found = notices(block)
    sending = asyncio.create_task(sent(found, event()))
    longest, last = 0.0, time.monotonic()
    while not sending.done():
        await asyncio.sleep(0)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert longest < 10, "block() blocks for 30 s"
    assert "block (TimeoutError)" in caplog.text
    await sent(found, event(ProgramEventKind.PAUSED))
    assert "block (TooManyHangingChecks)" in caplog.text, "threads that hang are limited"


async def test_task_does_not_wait_longer_than_finish_timeout(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Notices, "finish_timeout", 0.1)
    found = notices(hang)
    await sent(found, event())
    assert "1 notices of program events were not sent in time" in caplog.text
    found.cancel()


async def test_second_notice_within_a_minute_is_skipped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = notices({"path": f"{Recorder.__module__}.Recorder", "kwargs": {"text": ""}})
    await sent(found, event(), event(), event(ProgramEventKind.PAUSED))
    assert sorted(data["kind"] for _, data in received) == ["paused", "restarted"]
    monkeypatch.setattr(Notices, "min_interval", 0)
    received.clear()
    await sent(found, event())
    assert [data["skipped"] for _, data in received] == [1]


async def test_number_of_notices_at_the_same_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Notices, "max_running", 2)
    found = notices({"path": f"{Recorder.__module__}.Recorder", "kwargs": {"text": ""}})
    await sent(found, *(event(kind) for kind in ProgramEventKind))
    assert len(received) == 2
