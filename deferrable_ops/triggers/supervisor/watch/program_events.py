"""Finds the events of programs for which a task sends notices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.crash_loops import CrashHistory
from deferrable_ops.supervisord.evaluation import Evaluation
from deferrable_ops.supervisord.processes import Process, ProcessState


class ProgramEventKind(StrEnum):
    """What happened to a process.

    CRASH_LOOP: the process was restarted too many times in a short time. PAUSED: the process is kept stopped for some
    time because of a crash loop. GIVEN_UP: the process is not started again, because it was in a crash loop after the
    last allowed pause, or because supervisord could not start it. RESTARTED: the process was started again. NOT_READY:
    the check ``ready`` or ``healthy`` failed, or the process did not start with its new configuration.
    """

    CRASH_LOOP = "crash_loop"
    PAUSED = "paused"
    GIVEN_UP = "given_up"
    RESTARTED = "restarted"
    NOT_READY = "not_ready"


@dataclass(frozen=True, slots=True)
class ProgramEvent:
    """An event of one process.

    :param program: the name of the program.
    :param reason: why the event happened, for example the error of a check; may be empty.
    """

    kind: ProgramEventKind
    program: str
    process: Process
    reason: str = ""


def find_events(
    config: SupervisorAirflowConfiguration,
    before: Mapping[str, CrashHistory],
    states: Mapping[str, ProcessState],
    now: Evaluation,
) -> list[ProgramEvent]:
    """Return the events of programs between two evaluations of their processes.

    :param before: the crash histories before the evaluation `now`. The inbox stores these crash histories, so that no
        event is lost when the Triggerer is restarted.
    :param states: the states of the processes at the previous evaluation, by full name; empty for the first evaluation.
    """
    return [
        ProgramEvent(kind, name, process, reason)
        for name, own in now.processes.items()
        for process in own
        for kind, reason in _events_of(
            config,
            name,
            process,
            states.get(process.full_name),
            before.get(process.full_name, CrashHistory()),
            now.histories[process.full_name],
        )
    ]


def find_start_failures(
    found: Mapping[str, tuple[Process, ...]], reasons: Mapping[str, str]
) -> list[ProgramEvent]:
    """Return the events of programs that a step could not start.

    :param found: the processes of each program, by the program's name.
    :param reasons: a dict with the name of each program that was not ready in time, and the reason.
    """
    events = []
    for name, own in found.items():
        for process in own:
            if name in reasons:
                events.append(ProgramEvent(ProgramEventKind.NOT_READY, name, process, reasons[name]))
            elif process.state is ProcessState.FATAL:
                events.append(ProgramEvent(ProgramEventKind.GIVEN_UP, name, process, process.end))
    return events


def _events_of(
    config: SupervisorAirflowConfiguration,
    program: str,
    process: Process,
    state: ProcessState | None,
    old: CrashHistory,
    new: CrashHistory,
) -> list[tuple[ProgramEventKind, str]]:
    events, policy = [], config.policy_of(program)
    if process.state is ProcessState.FATAL:
        if state is not ProcessState.FATAL:
            events.append((ProgramEventKind.GIVEN_UP, process.end))
    elif old.start and (new.start != old.start or 0 != new.pid != old.pid != 0):
        events.append((ProgramEventKind.RESTARTED, _restart_reason(old)))
    restarts = f"{policy.crash_restarts} restarts within {policy.crash_window.total_seconds():g} s"
    if new.pauses > old.pauses and new.paused_until is not None:
        events.append((ProgramEventKind.CRASH_LOOP, restarts))
        seconds = new.paused_until - process.now
        events.append((ProgramEventKind.PAUSED, f"stopped for {seconds} s (pause number {new.pauses})"))
    if len(new.restarts) >= policy.crash_restarts > len(old.restarts) and new.paused_until is None:
        events.append((ProgramEventKind.CRASH_LOOP, restarts))
        events.append((ProgramEventKind.GIVEN_UP, f"{restarts}, after {new.pauses} pauses"))
    return events


def _restart_reason(old: CrashHistory) -> str:
    if old.is_restarting:
        return "its configuration has changed" if old.is_replaced else "its check healthy= has failed"
    return "after a pause" if old.paused_until is not None else ""
