"""Finds and removes drift, which means differences between the task's configuration and the configuration with which
supervisord runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Final, NamedTuple
from weakref import WeakKeyDictionary

from deferrable_ops.exceptions import MachineUnavailable, SupervisordRefused, SupervisordUnavailable
from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.crash_loops import CrashHistory
from deferrable_ops.supervisord.policy import Action
from deferrable_ops.supervisord.processes import ALIVE, Process, Verdict
from deferrable_ops.triggers.supervisor.configuration import step_timeout
from deferrable_ops.triggers.supervisor.daemon.readiness import NotReady
from deferrable_ops.triggers.supervisor.daemon.rolling import RollingUpdate
from deferrable_ops.triggers.supervisor.host import (
    Fault,
    StepFailed,
    SupervisorHost,
    classify_refusal,
)
from deferrable_ops.upstreams.machine.machine import Machine
from deferrable_ops.upstreams.supervisord.client import Supervisord

_REMOVE_POLL_SECONDS: Final = 0.2


class _Changes:
    """The changes that this Python process makes to the configuration of one supervisord. ``lock`` allows one change at
    a time, and ``count`` is the number of changes so far. ``comparing`` is a lock that allows one comparison at a time,
    because hundreds of comparisons at once would need much memory.
    """

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.comparing = asyncio.Lock()
        self.count = 0


_changes: WeakKeyDictionary[Supervisord, _Changes] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Drift:
    """Differences between the configuration with which supervisord runs and the task's configuration.

    ``bool(drift)`` is False if there are no differences.

    :param other_file: whether the configuration file on the machine is missing, or its content differs from the task's
        configuration.
    :param unreadable: whether supervisord cannot read its configuration file.
    :param added: names of the groups in the task's configuration that supervisord has not loaded. supervisord treats a
        program without a group as a group with one program.
    :param changed: names of the groups that supervisord has loaded with other settings than in the task's
        configuration.
    :param removed: names of the groups that supervisord has loaded, but that are not in the task's configuration.
    """

    other_file: bool = False
    unreadable: bool = False
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != Drift()

    def __str__(self) -> str:
        parts = [
            *(["its configuration file differs"] if self.other_file else []),
            *(["it cannot read its configuration file"] if self.unreadable else []),
            *(
                f"{what}: {', '.join(groups)}"
                for what, groups in (
                    ("not loaded", self.added),
                    ("loaded with another configuration", self.changed),
                    ("loaded but no longer configured", self.removed),
                )
                if groups
            ),
        ]
        return "; ".join(parts)


async def find_drift(config: SupervisorAirflowConfiguration, machine: Machine, client: Supervisord) -> Drift:
    """Return the differences between the configuration with which supervisord runs and the task's configuration.

    Settings of supervisord itself are compared only with the configuration file, because a running supervisord does not
    report its own settings.
    """
    other_file = not await file_equals(machine, config.config_path, config.to_cfg().encode())
    try:
        ((added, changed, removed),) = await client.call("supervisor.reloadConfig")
    except SupervisordRefused as refused:
        if refused.code != Fault.CANT_REREAD:
            raise classify_refusal(refused) from None
        return Drift(other_file, unreadable=True)
    return Drift(other_file, False, tuple(added), tuple(changed), tuple(removed))


async def file_equals(machine: Machine, path: Path, content: bytes) -> bool:
    """Return whether a file has exactly the given content. If the file is longer than `content`, only its
    first ``len(content) + 1`` bytes are read.
    """
    return await machine.read(path, 0, len(content) + 1) == content


async def write_environment_files(config: SupervisorAirflowConfiguration, machine: Machine) -> None:
    """Write the files with environment variables. Write only the files whose content has changed."""
    for name, script in config.environment_files().items():
        path = config.config_path.with_name(name)
        if not await file_equals(machine, path, script.encode()):
            await machine.write(path, script.encode())


async def update_groups(host: SupervisorHost) -> Drift:
    """Apply the configuration file to all groups of programs that have no running process. Return the remaining
    differences.

    If the field ``drift`` is ``apply``, groups that run with other settings are stopped, and the caller starts them
    again with the settings in the file. Otherwise, groups that run with other settings keep running. With ``rolling``,
    only groups that are no longer configured are stopped: the task that watches the programs replaces the changed
    groups.

    :raises StepFailed: if supervisord cannot read its configuration file; or if the field ``drift`` is ``fail``, and a
        group runs with other settings.
    """
    drift = await _replace_idle_groups(host, await find_drift(host.cfg, host.machine, host.rpc))
    if drift.unreadable:
        raise StepFailed(
            "supervisord cannot read its configuration file; clear the task 'configure-supervisor' to write the file"
        )
    if not (drift.changed or drift.removed):
        return drift
    if host.cfg.drift == "fail":
        raise StepFailed(
            f"supervisord runs another configuration than this task's: {drift}. Stop supervisord, or set drift='apply'",
            retryable=False,
        )
    if host.cfg.drift == "warn":
        host.log.warning("supervisord runs another configuration than this task's: %s", drift)
        return drift
    later = drift.changed if host.cfg.rolling else ()
    if later:
        host.log.info(
            "The task that watches the programs will replace these changed programs, one after another: %s",
            ", ".join(later),
        )
        drift = replace(drift, changed=())
    groups = (*drift.changed, *drift.removed)
    if groups:
        await host.check_claim()
        host.log.info(
            "Stopping the program groups that run with another configuration than this task's: %s",
            ", ".join(groups),
        )
        await host.rpc.multicall([("supervisor.stopProcessGroup", (group, False)) for group in groups])
    while drift.changed or drift.removed:
        await asyncio.sleep(host.timings.poll_interval)
        drift = await _replace_idle_groups(host, drift)
    return replace(drift, changed=later)


async def _replace_idle_groups(host: SupervisorHost, drift: Drift) -> Drift:
    """Apply the configuration file to all groups of programs that have no running process, and return the remaining
    differences.
    """
    alive = {process.group for process in await host.processes() if process.state in ALIVE}
    idle = [group for group in (*drift.changed, *drift.removed) if group not in alive]
    fresh = [*drift.added, *(group for group in drift.changed if group not in alive)]
    calls = [("supervisor.removeProcessGroup", (group,)) for group in idle]
    calls += [("supervisor.addProcessGroup", (group,)) for group in fresh]
    if calls:
        await host.check_claim()
    for answer in await host.rpc.multicall(calls) if calls else ():
        if isinstance(answer, SupervisordRefused) and answer.code not in (
            Fault.ALREADY_ADDED,
            Fault.BAD_NAME,
        ):
            raise StepFailed(str(answer))
    return replace(
        drift,
        added=(),
        changed=tuple(group for group in drift.changed if group in alive),
        removed=tuple(group for group in drift.removed if group in alive),
    )


async def apply_configuration(
    config: SupervisorAirflowConfiguration, machine: Machine, client: Supervisord
) -> tuple[Drift, tuple[str, ...]]:
    """Apply the task's configuration to supervisord. Return the differences that this call has removed, and the changed
    groups that still run with other settings. This function is idempotent.

    Groups that run with other settings are stopped, and replaced by groups with the settings in the task's
    configuration. In a replaced group, only the processes that were running before are started again. In a new group,
    all processes are started. With ``rolling``, programs that run with other settings keep running.

    :raises SupervisordUnavailable: if a group did not stop within the timeout, or supervisord does not respond.
    """
    drift = await find_drift(config, machine, client)
    if drift.other_file:
        await write_environment_files(config, machine)
        await machine.write(config.config_path, config.to_cfg().encode())
        drift = replace(await find_drift(config, machine, client), other_file=True)
    if not (drift.added or drift.changed or drift.removed):
        return drift, ()
    running = [process for process in map(Process.from_info, await client.processes()) if process.is_alive]
    left: tuple[str, ...] = ()
    if config.rolling:
        alive = {process.group for process in running} - config.eventlistener.keys()
        left = tuple(group for group in drift.changed if group in alive)
        drift = replace(drift, changed=tuple(group for group in drift.changed if group not in alive))
    if drift.added or drift.changed or drift.removed:
        await replace_groups(config, client, drift, running)
    return drift, left


async def replace_groups(
    config: SupervisorAirflowConfiguration, client: Supervisord, drift: Drift, running: Sequence[Process]
) -> dict[str, SupervisordRefused]:
    """Replace the changed groups at the same time, remove the removed groups, and add and start the added groups.

    Return the processes that supervisord refused to start. Each key is a process's full name, and each value is the
    refusal.

    :param running: the processes that ran before the change. In a changed group, only these processes are started
        again.
    :raises SupervisordUnavailable: if a group did not stop within the timeout, or supervisord does not respond.
    """
    await _remove_groups(client, (*drift.changed, *drift.removed), step_timeout(config, "stop-programs"))
    started = [process.full_name for process in running if process.group in drift.changed]
    # Add and start the groups in one request. Between two requests, the programs would look as if supervisord had never
    # started them.
    answers = await client.multicall(
        [
            *(("supervisor.addProcessGroup", (group,)) for group in (*drift.changed, *drift.added)),
            *(("supervisor.startProcessGroup", (group, False)) for group in drift.added),
            *(("supervisor.startProcess", (name, False)) for name in started),
        ]
    )
    return {
        name: answer
        for name, answer in zip(reversed(started), reversed(answers), strict=False)
        if isinstance(answer, SupervisordRefused)
    }


async def _remove_groups(client: Supervisord, groups: Sequence[str], timeout: float) -> None:
    """Stop groups of programs, and remove each group from supervisord after the group has stopped.

    This function polls supervisord until a group has stopped. A single call that waits for the stop would block
    supervisord, which could not respond to other calls in this time.
    """
    await client.multicall([("supervisor.stopProcessGroup", (group, False)) for group in groups])
    try:
        async with asyncio.timeout(timeout):
            left = list(groups)
            while left:
                answers = await client.multicall(
                    [("supervisor.removeProcessGroup", (group,)) for group in left]
                )
                left = [
                    group
                    for group, answer in zip(left, answers, strict=True)
                    if isinstance(answer, SupervisordRefused) and answer.code == Fault.STILL_RUNNING
                ]
                await asyncio.sleep(_REMOVE_POLL_SECONDS if left else 0)
    except TimeoutError:
        raise SupervisordUnavailable(
            f"the program groups {', '.join(left)} did not stop within {timeout:g} s"
        ) from None


class Reconciliation(NamedTuple):
    """The result of :meth:`DriftReconciler.reconcile`.

    :param is_current: whether the poll result may be evaluated. If this process has changed programs after the poll,
        `is_current` is False, and the caller must wait for the next poll result.
    :param verdict: the verdict with which the task fails because of drift; None if the task continues.
    :param next: the processes that a rolling update replaces next. An empty tuple means that the rolling update has
        ended, and None means that the caller has nothing to replace.
    :param failed: a dict with the programs that have stopped a rolling update, and the reasons.
    """

    is_current: bool
    verdict: Verdict | None = None
    next: tuple[Process, ...] | None = None
    failed: Mapping[str, str] = MappingProxyType({})


_CURRENT: Final = Reconciliation(True)
_OUTDATED: Final = Reconciliation(False)


class DriftReconciler:
    """Handles drift according to the field ``drift`` of the configuration, which is ``warn``, ``apply`` or ``fail``.

    The task's configuration is compared with the configuration of supervisord when the task begins to watch the
    programs, and again after processes were added, removed or restarted.
    """

    # A class attribute, because an instance attribute would need memory for each watching task. The interval is needed
    # because a program in a crash loop restarts often: without it, each restart would start another comparison.
    min_interval: ClassVar[float] = 60.0
    """The shortest time between two comparisons of the configurations, in seconds."""

    def __init__(self, host: SupervisorHost) -> None:
        self._config = host.cfg
        self._machine = host.machine
        self._client = host.rpc
        self._log = host.log
        self._changes = _changes.setdefault(host.rpc, _Changes())
        self._known_changes = self._changes.count
        self._starts: Mapping[str, object] | None = None
        self._not_before = 0.0
        self._last_warning = ""
        self._rolling = RollingUpdate(host) if host.cfg.rolling else None
        self.is_due = True

    async def reconcile(
        self,
        processes: Sequence[Process],
        starts: Mapping[str, object],
        histories: Mapping[str, CrashHistory],
    ) -> Reconciliation:
        """Look for drift if processes were added, removed or restarted. If there is drift, handle it according to the
        field ``drift``.

        With ``drift='apply'``, this method may write supervisord's configuration file and restart programs.

        :param processes: all processes of supervisord in the newest poll result.
        :param starts: the start time of each of these processes, by the process's full name.
        :param histories: the crash histories of the processes.
        """
        if self._may_show_a_change():
            return _OUTDATED
        now, rolling = asyncio.get_running_loop().time(), self._rolling
        if rolling is not None:
            # A rolling update that has stopped continues after each start, also after a second one in one second.
            starts = {process.full_name: (process.start, process.pid) for process in processes}
        if rolling is None or not rolling.is_active:
            self.is_due = starts != self._starts
            if not self.is_due or now < self._not_before:
                return _CURRENT
        self._starts, self._not_before, self.is_due = starts, now + self.min_interval, False
        try:
            if rolling is not None:
                return await self._roll(rolling, processes, histories)
            return await (self._apply() if self._config.drift == "apply" else self._report())
        except (MachineUnavailable, SupervisordUnavailable) as error:
            self._log.warning(
                "Could not compare supervisord's configuration with this task's; trying again: %s", error
            )
            self._starts, self.is_due = None, True
            return _CURRENT

    async def replace(self, processes: Sequence[Process]) -> dict[str, SupervisordRefused] | None:
        """Stop running processes, and start them with the settings in the configuration file. Return the refusals of
        supervisord to start a process, by the process's full name. Return None if another task or another triggerer has
        already replaced the processes.

        :raises SupervisordUnavailable: if a process did not stop within the timeout, or supervisord does not respond.
        """
        groups = {process.group for process in processes}
        async with self._changes.lock:
            drift = await find_drift(self._config, self._machine, self._client)
            changed = tuple(groups.intersection(drift.changed))
            if not changed:
                return None
            try:
                return await replace_groups(self._config, self._client, Drift(changed=changed), processes)
            finally:
                self._changes.count += 1

    def _may_show_a_change(self) -> bool:
        """Return whether the poll result may be older than the newest change of the configuration. Such a change
        restarts programs.
        """
        if self._changes.lock.locked():
            return True
        if self._known_changes == self._changes.count:
            return False
        # The next reading is taken after the change, so it will not be outdated.
        self._known_changes = self._changes.count
        return True

    async def _report(self) -> Reconciliation:
        async with self._changes.comparing:
            drift = await find_drift(self._config, self._machine, self._client)
        if not drift:
            return _CURRENT
        text = f"supervisord runs another configuration than this task's: {drift}"
        if self._config.drift == "fail":
            return Reconciliation(True, Verdict(Action.FAIL, text))
        if text != self._last_warning:
            self._last_warning = text
            self._log.warning(
                "%s. Set drift='apply' to apply this task's configuration, or drift='fail' to fail the task",
                text,
            )
        return _CURRENT

    async def _apply(self) -> Reconciliation:
        applied, _ = await self._apply_now()
        return _OUTDATED if applied else _CURRENT

    async def _apply_now(self) -> tuple[Drift, tuple[str, ...]]:
        # Several tasks may watch one supervisord. The first task applies the change; the others find no difference.
        async with self._changes.lock:
            applied: Drift | None = None
            left: tuple[str, ...] = ()
            try:
                applied, left = await apply_configuration(self._config, self._machine, self._client)
            finally:
                self._changes.count += applied is None or bool(applied)
        if applied:
            self._log.info(
                "Applied this task's configuration to supervisord%s. Before, these differences existed: %s",
                f", except to the running programs {', '.join(left)}" if left else "",
                applied,
            )
        return applied, left

    async def _roll(
        self, rolling: RollingUpdate, processes: Sequence[Process], histories: Mapping[str, CrashHistory]
    ) -> Reconciliation:
        applied, left = await self._apply_now()
        is_replaced = any(history.is_replaced for history in histories.values())
        if (applied and not applied.unreadable) or left or is_replaced:
            self.is_due = rolling.is_active = True
        if applied or not rolling.is_active:
            return _OUTDATED if applied else _CURRENT
        try:
            due = await rolling.next(left, processes, histories)
        except NotReady as stopped:
            rolling.stop()
            self.is_due = False
            self._log.error(
                "Stopped the rolling update: %s. Programs that keep running with their old configuration: %s",
                stopped,
                ", ".join(left) or "none",
            )
            return Reconciliation(True, failed=stopped.reasons)
        if due == ():
            rolling.stop()
            self._log.info("Replaced all changed programs, one after another; all of them run")
        return Reconciliation(True, next=due)
