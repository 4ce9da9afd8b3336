"""Steps without a real supervisord: arguments, lifetime warnings, errors and retries."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from unit.triggers.support import Runs, eventually, new_attempt

from deferrable_ops.exceptions import (
    ConfigurationError,
    LoginRefused,
    MachineRefused,
    MachineUnavailable,
    SupervisordRefused,
)
from deferrable_ops.outcome import Failure, Success
from deferrable_ops.supervisord import SupervisorAirflowConfiguration
from deferrable_ops.testing.inbox import memory_inbox
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.supervisor import host as supervisor_host
from deferrable_ops.triggers.supervisor.configuration import load_configuration, serialize_configuration
from deferrable_ops.triggers.supervisor.daemon.daemon import _supervisord, lifetime_warning
from deferrable_ops.triggers.supervisor.daemon.processes import _is_daemon_command
from deferrable_ops.triggers.supervisor.host import SupervisorHost
from deferrable_ops.triggers.supervisor.step_trigger import SupervisorStepTrigger
from deferrable_ops.upstreams.machine.machine import CommandResult, FileStatus, Identity

CFG = SupervisorAirflowConfiguration(working_dir="/srv/s", program={"test": {"command": "sleep 9"}})


class FakeMachine:
    """A machine with the files and command results that a test sets."""

    name = "web-3"

    def __init__(
        self, files: dict[str, str] | None = None, ends: dict[str, CommandResult] | None = None
    ) -> None:
        self.files = files or {}
        self.ends = ends or {}
        self.errors: list[Exception] = []

    async def identity(self) -> Identity:
        if self.errors:
            raise self.errors.pop(0)
        return Identity("web-3", "boot", "airflow", 50000)

    async def read(self, path: Path, offset: int = 0, length: int | None = None) -> bytes | None:
        text = self.files.get(str(path))
        return None if text is None else text.encode()[offset:][:length]

    async def write(self, path: Path, data: bytes) -> None:
        self.files[str(path)] = data.decode()

    async def make_directory(self, path: Path) -> None: ...

    async def check_directory(self, path: Path) -> bool:
        return True

    async def status(self, *paths: Path, inodes: bool = False) -> list[FileStatus | None]:
        return [FileStatus(1, 1, 1.0) if str(path) in self.files else None for path in paths]

    async def run(self, arguments: Any, *, timeout: float, stdin: bytes = b"") -> CommandResult:
        return self.ends.get(arguments[0], CommandResult(127, f"{arguments[0]}: not found"))

    async def socket(self, path: Path) -> Path:
        return path


@contextmanager
def on(monkeypatch: pytest.MonkeyPatch, machine: FakeMachine) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(supervisor_host, "use_machine", lambda where: nullcontext(machine))
        yield


def site(machine: FakeMachine) -> SupervisorHost:
    return SupervisorHost(CFG, machine, None, logging.getLogger())  # type: ignore[arg-type]


@pytest.fixture
def outside_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide that these tests may run in a container."""
    for name in ("KUBERNETES_SERVICE_HOST", "container"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("files", "ended", "reason"),
    [
        ({}, None, None),
        ({"/proc/self/cgroup": "0::/user.slice/user-1000.slice/session-2.scope\n"}, None, None),
        ({"/.dockerenv": ""}, None, "container"),
        ({"/run/.containerenv": ""}, None, "container"),
        ({"/proc/self/cgroup": "0::/kubepods/burstable/pod1/abc\n"}, None, "container"),
        ({"/proc/self/cgroup": "12:pids:/docker/0123\n"}, None, "container"),
        (
            {"/proc/self/cgroup": "0::/system.slice/airflow-triggerer.service\n"},
            "control-group",
            "airflow-triggerer.service",
        ),
        ({"/proc/self/cgroup": "0::/system.slice/airflow-triggerer.service\n"}, "mixed", "KillMode=mixed"),
        ({"/proc/self/cgroup": "0::/system.slice/airflow-triggerer.service\n"}, "process", None),
        ({"/proc/self/cgroup": "0::/system.slice/airflow-triggerer.service\n"}, None, "KillMode=unknown"),
    ],
)
async def test_lifetime_warning_names_the_unit_or_the_container(
    files: dict[str, str], ended: str | None, reason: str | None, outside_containers: None
) -> None:
    machine = FakeMachine(files, {} if ended is None else {"systemctl": CommandResult(0, ended + "\n")})
    found = await lifetime_warning(site(machine))
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert reason in found


@pytest.mark.parametrize("variable", ["KUBERNETES_SERVICE_HOST", "container"])
async def test_container_is_detected_by_its_environment(
    variable: str, monkeypatch: pytest.MonkeyPatch, outside_containers: None
) -> None:
    monkeypatch.setenv(variable, "1")
    assert "container" in str(await lifetime_warning(site(FakeMachine({}, {}))))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("/usr/bin/python3", "/usr/bin/supervisord", "-c", "/srv/s/supervisord.conf"), True),
        (("/v/bin/python", "-P", "-m", "supervisor.supervisord", "-c", "/srv/s/supervisord.conf"), True),
        (("/usr/bin/python3", "/usr/bin/supervisord", "-c", "/srv/other/supervisord.conf"), False),
        (("/usr/bin/python3", "/usr/bin/supervisord", "-c", "/srv/s/supervisord.conf.old"), False),
        (("/usr/bin/python3", "/usr/bin/supervisorctl", "-c", "/srv/s/supervisord.conf"), False),
        (("vim", "/srv/s/supervisord.conf"), False),
        (("tail", "-c", "/srv/s/supervisord.conf"), False),
        (("grep", "-lzsxF", "-e", "/srv/s/supervisord.conf", "/proc/1/cmdline"), False),
    ],
)
def test_supervisord_is_identified_by_its_command(command: tuple[str, ...], expected: bool) -> None:
    assert _is_daemon_command(command, "/srv/s/supervisord.conf") is expected


def test_database_settings_blocked_for_triggers_are_unset_for_programs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "airflow-db-not-allowed:///")
    monkeypatch.setenv("AIRFLOW__CORE__SQL_ALCHEMY_CONN", "sqlite://")
    command = _supervisord(site(FakeMachine()))
    assert command[:4] == ["env", "-u", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", sys.executable]
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "sqlite://")
    assert _supervisord(site(FakeMachine())) == command[3:]


async def test_missing_supervisord_or_flock_fails_with_what_to_install(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(supervisor_host.SupervisorHost, "daemon", no_daemon)
    for code, fix in (
        (127, 'pip install "airflow-deferrable-ops\\[supervisor\\]"'),
        (77, "install util-linux"),
    ):
        machine = FakeMachine({"/srv/s/supervisord.conf": "x"})
        machine.run = Launching(code)  # type: ignore[method-assign]
        with on(monkeypatch, machine):
            outcome = await runs.start(configuring(step="start-supervisor")).outcome()
        assert isinstance(outcome, Failure)
        assert re.search(fix, outcome.reason)
        assert not outcome.retryable


async def no_daemon(*_: SupervisorHost) -> None:
    """No supervisord answers."""


class Launching:
    """Every command succeeds, except the start of supervisord."""

    def __init__(self, code: int) -> None:
        self._code = code

    async def __call__(self, arguments: Any, *, timeout: float, stdin: bytes = b"") -> CommandResult:
        return CommandResult(self._code if "supervisord" in arguments else 0, "")


@pytest.fixture
async def runs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(TaskTrigger, "log", logging.getLogger("task"))
    monkeypatch.setattr(SupervisorStepTrigger, "first_pause", 0.01)
    async with memory_inbox() as inbox:
        runs = Runs(inbox)
        yield runs
        await runs.stop()


def configuring(**kwargs: Any) -> SupervisorStepTrigger:
    kwargs = {"step": "configure-supervisor", "configuration": serialize_configuration(CFG), **kwargs}
    return SupervisorStepTrigger(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "named"), [({"step": "stop"}, "step='stop'"), ({"configuration": "x"}, "configuration")]
)
async def test_invalid_argument_fails_the_task_and_is_named(
    runs: Runs, kwargs: dict[str, Any], named: str
) -> None:
    outcome = await runs.start(configuring(**kwargs)).outcome()
    assert isinstance(outcome, Failure)
    assert named in outcome.reason


async def test_unreachable_machine_is_retried_and_refusal_is_not(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = FakeMachine()
    machine.errors = [MachineUnavailable("web-3 is away")] * 3
    with on(monkeypatch, machine):
        assert isinstance(await runs.start(configuring()).outcome(), Success)
        assert machine.files["/srv/s/supervisord.conf"] == CFG.to_cfg()
        machine.errors = [MachineRefused("cannot access /srv/s")]
        outcome = await runs.start(configuring()).outcome()
    assert outcome == Failure("cannot access /srv/s", retryable=False)


@pytest.mark.parametrize(
    "refused",
    [LoginRefused("the password"), SupervisordRefused("the password"), ConfigurationError("no connection")],
    ids=lambda error: type(error).__name__,
)
async def test_refused_login_is_temporary_once_a_step_has_reached_the_machine(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, refused: Exception
) -> None:
    monkeypatch.setattr(SupervisorStepTrigger, "first_retry_pause", 0.01)
    machine = FakeMachine()
    with on(monkeypatch, machine):
        machine.errors = [refused]
        assert await runs.start(configuring()).outcome() == Failure(str(refused), retryable=False)
        assert isinstance(await runs.start(configuring()).outcome(), Success)
        machine.errors = [refused] * 3
        assert isinstance(await runs.start(configuring()).outcome(), Success)
        assert not machine.errors


@pytest.mark.parametrize("step", ["stop-programs", "stop-supervisor", "unconfigure-supervisor"])
async def test_refused_teardown_step_can_be_retried(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    machine = FakeMachine()
    machine.errors = [MachineRefused("web-3 has another host key")]
    with on(monkeypatch, machine):
        outcome = await runs.start(configuring(step=step)).outcome()
    assert outcome == Failure("web-3 has another host key", retryable=True)


@pytest.mark.parametrize(("stop_on_exit", "tears_down"), [(True, True), (False, True), (True, False)])
async def test_inbox_records_what_a_triggerer_needs_to_stop_the_supervisord(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, stop_on_exit: bool, tears_down: bool
) -> None:
    cfg = CFG.model_copy(update={"stop_on_exit": stop_on_exit})
    step = configuring(configuration=serialize_configuration(cfg), tears_down=tears_down)
    with on(monkeypatch, FakeMachine()):
        await runs.start(step).outcome()
    (found,) = await runs.inbox.daemons.all()
    assert load_configuration(found.details["configuration"]) == cfg
    rest = {name: value for name, value in found.details.items() if name != "configuration"}
    assert rest == {
        "is_remote": False,
        "stop_on_exit": stop_on_exit and tears_down,
        "programs": ["test"],
        "team": None,
    }


async def test_timeout_names_the_last_error(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    machine.errors = [MachineUnavailable("web-3 is away")] * 10_000
    with on(monkeypatch, machine):
        outcome = await runs.start(configuring(timeout=0.5)).outcome()
    assert outcome == Failure("configure-supervisor did not end within 0.5 s: web-3 is away")


async def test_step_run_by_another_triggerer_is_not_repeated(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = FakeMachine()
    with on(monkeypatch, machine):
        first = runs.start(configuring())
        outcome = await first.outcome()
        machine.files.clear()
        assert await runs.start(configuring(), first.attempt).outcome() == outcome
    assert machine.files == {}


@pytest.mark.parametrize(
    ("step", "stop_on_exit", "expected"),
    [
        ("configure-supervisor", True, True),
        ("start-supervisor", True, True),
        ("start-programs", True, True),
        ("restart-programs", True, True),
        ("start-programs", False, False),
        ("stop-programs", True, False),
        ("force-kill", True, False),
    ],
)
def test_only_start_steps_are_cancellable(step: str, stop_on_exit: bool, expected: bool) -> None:
    cfg = SupervisorAirflowConfiguration(
        working_dir="/srv/s", program={"test": {"command": "x"}}, stop_on_exit=stop_on_exit
    )
    assert configuring(step=step, configuration=serialize_configuration(cfg)).cancellable is expected


async def test_supervisord_shared_with_another_dag_is_logged(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await runs.inbox.daemons.claim("/srv/s", "web-3", "boot", dag_id="other", run_id="r")
    with on(monkeypatch, FakeMachine()), caplog.at_level(logging.WARNING):
        await runs.start(configuring()).outcome()
    assert "The DAG other uses this supervisord too" in caplog.text


async def test_supervisord_left_in_another_directory_is_logged(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dag_id = new_attempt().dag_id
    for left in (
        ("web-3", "boot", dag_id),
        ("web-4", "boot", dag_id),
        ("web-3", "old", dag_id),
        ("web-3", "boot", "b"),
    ):
        await runs.inbox.daemons.claim("/srv/" + "-".join(left), left[0], left[1], dag_id=left[2], run_id="r")
    with on(monkeypatch, FakeMachine()), caplog.at_level(logging.WARNING):
        assert isinstance(await runs.start(configuring()).outcome(), Success)
    assert re.findall(r"The supervisord (\S+) of this DAG may", caplog.text) == [f"/srv/web-3-boot-{dag_id}"]


async def test_step_waits_for_cancellations_of_earlier_attempts(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, asked = asyncio.Event(), 0

    async def left(wait_id: str) -> list[str]:
        nonlocal asked
        asked += 1
        return [] if stopped.is_set() else ["an-earlier-wait"]

    monkeypatch.setattr(runs.inbox.cancellations, "requeue_other_attempts", left)
    monkeypatch.setattr(SupervisorStepTrigger, "recheck_previous_attempts_every", 0.01)
    machine = FakeMachine()
    with on(monkeypatch, machine):
        run = runs.start(configuring())
        await eventually(lambda: asked > 3, "the step to ask again and again")
        assert machine.files == {}
        stopped.set()
        assert isinstance(await run.outcome(), Success)
