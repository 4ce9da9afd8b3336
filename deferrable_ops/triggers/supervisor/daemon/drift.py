"""A supervisord that runs another configuration than its task's: telling so, and putting it right."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

from deferrable_ops.exceptions import MachineUnavailable, SupervisordRefused, SupervisordUnavailable
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.policy import Action
from deferrable_ops.supervisord.processes import ALIVE, Process, Verdict
from deferrable_ops.triggers.supervisor.configuration import step_timeout
from deferrable_ops.triggers.supervisor.host import POLL_SECONDS, StepFailed, SupervisorHost, classify_refusal
from deferrable_ops.upstreams.machine.machine import Machine
from deferrable_ops.upstreams.supervisord.client import Supervisord

_CANNOT_REREAD: Final = 92  # the faults of supervisor's xmlrpc.py
_STILL_RUNNING: Final = 91
_ALREADY_ADDED: Final = 90
_BAD_NAME: Final = 10
_ASK_AGAIN_AFTER: Final = 0.2
_NO_SOONER: Final = 60.0  # a program that crashes is started again all the time


class _Changes:
    """The changes that this process makes to a supervisord, one after another."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.count = 0


_changes: WeakKeyDictionary[Supervisord, _Changes] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Drift:
    """How what runs differs from what is configured. Without any of these it does not.

    :param other_file: the file on the machine is another one, or gone.
    :param unreadable: supervisord cannot read its file.
    :param added: groups that are configured and do not run; a program outside a group is one of its own.
    :param changed: groups that run with another configuration.
    :param removed: groups that run and are not configured.
    """

    other_file: bool = False
    unreadable: bool = False
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != Drift()

    def __str__(self) -> str:
        told = [
            *(["its file is another one"] if self.other_file else []),
            *(["it cannot read its file"] if self.unreadable else []),
            *(
                f"{what} {', '.join(groups)}"
                for what, groups in (
                    ("it does not know", self.added),
                    ("it runs another configuration of", self.changed),
                    ("it still runs", self.removed),
                )
                if groups
            ),
        ]
        return "; ".join(told)


async def find_drift(config: SupervisorAirflowConfiguration, machine: Machine, client: Supervisord) -> Drift:
    """Return how a supervisord differs from its configuration. What is configured of the daemon itself is compared in
    the file alone: it counts from the daemon's next start.
    """
    other_file = not await file_equals(machine, config.config_path, config.to_cfg().encode())
    try:
        ((added, changed, removed),) = await client.call("supervisor.reloadConfig")
    except SupervisordRefused as refused:
        if refused.code != _CANNOT_REREAD:
            raise classify_refusal(refused) from None
        return Drift(other_file, unreadable=True)
    return Drift(other_file, False, tuple(added), tuple(changed), tuple(removed))


async def file_equals(machine: Machine, path: Path, wanted: bytes) -> bool:
    """Return whether a file holds exactly this. However large it is, no more of it is read than that takes."""
    return await machine.read(path, 0, len(wanted) + 1) == wanted


async def apply_configuration(
    config: SupervisorAirflowConfiguration, machine: Machine, client: Supervisord
) -> Drift:
    """Make a supervisord run its configuration, and return what was different. It may be cut off and repeated.

    Groups that differ are stopped and replaced; of them those processes are started that ran before, and all of a
    group that is new.

    :raises SupervisordUnavailable: a group did not stop in time, or supervisord does not answer.
    """
    drift = await find_drift(config, machine, client)
    if drift.other_file:
        await machine.write(config.config_path, config.to_cfg().encode())
        drift = replace(await find_drift(config, machine, client), other_file=True)
    if not (drift.added or drift.changed or drift.removed):
        return drift
    ran = [process for process in map(Process.from_info, await client.processes()) if process.is_alive]
    await _remove(client, (*drift.changed, *drift.removed), step_timeout(config, "stop-programs"))
    # Adding and starting is one call: between the two, those programs would seem never to have been started.
    await client.multicall(
        [
            *(("supervisor.addProcessGroup", (group,)) for group in (*drift.changed, *drift.added)),
            *(("supervisor.startProcessGroup", (group, False)) for group in drift.added),
            *(
                ("supervisor.startProcess", (one.full_name, False))
                for one in ran
                if one.group in drift.changed
            ),
        ]
    )
    return drift


async def _remove(client: Supervisord, groups: Sequence[str], within: float) -> None:
    """Stop groups, and remove each once it has stopped: without a call that supervisord would answer no sooner."""
    await client.multicall([("supervisor.stopProcessGroup", (group, False)) for group in groups])
    try:
        async with asyncio.timeout(within):
            left = list(groups)
            while left:
                answers = await client.multicall(
                    [("supervisor.removeProcessGroup", (group,)) for group in left]
                )
                left = [
                    group
                    for group, answer in zip(left, answers, strict=True)
                    if isinstance(answer, SupervisordRefused) and answer.code == _STILL_RUNNING
                ]
                await asyncio.sleep(_ASK_AGAIN_AFTER if left else 0)
    except TimeoutError:
        raise SupervisordUnavailable(f"{', '.join(left)} did not stop within {within:g} s") from None


async def update_groups(host: SupervisorHost) -> Drift:
    """Let supervisord take over what its file says of groups in which nothing runs; return how it still differs.

    What runs with another configuration is left alone, unless ``drift`` is apply: then it is stopped and replaced.

    :raises StepFailed: it cannot read its file; or something runs with another configuration, and ``drift`` is fail.
    """
    drift = await _replaced(host, await find_drift(host.cfg, host.machine, host.rpc))
    if drift.unreadable:
        raise StepFailed("supervisord cannot read its file; clear the task configure-supervisor")
    if not (drift.changed or drift.removed):
        return drift
    if host.cfg.drift == "fail":
        raise StepFailed(
            f"supervisord runs another configuration than this task's: {drift}. Stop it, or set drift='apply'",
            retryable=False,
        )
    if host.cfg.drift == "warn":
        host.log.warning("supervisord runs another configuration than this task's: %s", drift)
        return drift
    groups = (*drift.changed, *drift.removed)
    await host.check()
    host.log.info("Stopping what runs with another configuration: %s", ", ".join(groups))
    await host.rpc.multicall([("supervisor.stopProcessGroup", (group, False)) for group in groups])
    while drift.changed or drift.removed:
        await asyncio.sleep(POLL_SECONDS)
        drift = await _replaced(host, drift)
    return drift


async def _replaced(host: SupervisorHost, drift: Drift) -> Drift:
    """Replace the groups in which nothing runs, and return the differences that stay."""
    alive = {process.group for process in await host.processes() if process.state in ALIVE}
    idle = [group for group in (*drift.changed, *drift.removed) if group not in alive]
    fresh = [*drift.added, *(group for group in drift.changed if group not in alive)]
    calls = [("supervisor.removeProcessGroup", (group,)) for group in idle]
    calls += [("supervisor.addProcessGroup", (group,)) for group in fresh]
    if calls:
        await host.check()
    for answer in await host.rpc.multicall(calls) if calls else ():
        if isinstance(answer, SupervisordRefused) and answer.code not in (_ALREADY_ADDED, _BAD_NAME):
            raise StepFailed(str(answer))
    return replace(
        drift,
        added=(),
        changed=tuple(group for group in drift.changed if group in alive),
        removed=tuple(group for group in drift.removed if group in alive),
    )


class DriftWatch:
    """Looks for drift when the watching begins, and when processes came, went or were started again since."""

    def __init__(self, host: SupervisorHost) -> None:
        self._config = host.cfg
        self._machine = host.machine
        self._client = host.rpc
        self._log = host.log
        self._changes = _changes.setdefault(host.rpc, _Changes())
        self._known_changes = self._changes.count
        self._starts: dict[str, int] | None = None
        self._not_before = 0.0
        self._told = ""
        self.is_due = True
        self.verdict: Verdict | None = None

    async def is_none(self, seen: Iterable[Process]) -> bool:
        """Return whether a reading can be judged; otherwise, :attr:`verdict` says what to do: None is to read again."""
        if self._may_be_of_a_change():
            return False
        starts = {process.full_name: process.start for process in seen}
        now = asyncio.get_running_loop().time()
        self.is_due = starts != self._starts
        if not self.is_due or now < self._not_before:
            return True
        self._starts, self._not_before, self.is_due = starts, now + _NO_SOONER, False
        try:
            return await (self._applied() if self._config.drift == "apply" else self._told_of())
        except (MachineUnavailable, SupervisordUnavailable) as error:
            self._log.warning("Whether supervisord runs this configuration cannot be seen now: %s", error)
            self._starts, self.is_due = None, True
            return True

    def _may_be_of_a_change(self) -> bool:
        """Return whether a reading may show programs stopped that are about to be started again."""
        if self._changes.lock.locked():
            return True
        if self._known_changes == self._changes.count:
            return False
        self._known_changes = self._changes.count  # the next reading is begun after this one
        return True

    async def _told_of(self) -> bool:
        drift = await find_drift(self._config, self._machine, self._client)
        if not drift:
            return True
        text = f"supervisord runs another configuration than this task's: {drift}"
        if self._config.drift == "fail":
            self.verdict = Verdict(Action.FAIL, text)
            return False
        if text != self._told:
            self._told = text
            self._log.warning("%s. drift='apply' would change that, drift='fail' ends it", text)
        return True

    async def _applied(self) -> bool:
        # Of many who watch one supervisord the first changes it, and the others find it changed.
        async with self._changes.lock:
            drift = None
            try:
                drift = await apply_configuration(self._config, self._machine, self._client)
            finally:
                self._changes.count += drift is None or bool(drift)
        if drift:
            self._log.info("supervisord ran another configuration, and was given this task's: %s", drift)
        return not drift
