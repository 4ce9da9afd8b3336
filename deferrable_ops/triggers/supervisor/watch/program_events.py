"""Finds the events of programs for which the task that watches them sends notices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.crash_loops import CrashHistory
from deferrable_ops.supervisord.evaluation import Evaluation
from deferrable_ops.supervisord.processes import Process


class ProgramEventKind(StrEnum):
    """What happened to a process.

    CRASH_LOOP: it was restarted too often. PAUSED: it is kept stopped for some time because of a crash loop. GIVEN_UP:
    it was in a crash loop after the last allowed pause. RESTARTED: it was started again. NOT_READY: its check ``ready``
    or ``healthy`` failed.
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
    config: SupervisorAirflowConfiguration, before: Mapping[str, CrashHistory], now: Evaluation
) -> list[ProgramEvent]:
    """Return the events between two evaluations.

    :param before: the crash histories before the evaluation `now`. They are saved, so a restart of the Triggerer
        neither hides nor repeats an event.
    """
    events = []
    for name, own in now.processes.items():
        policy = config.policy_of(name)
        for process in own:
            old = before.get(process.full_name, CrashHistory())
            new = now.histories[process.full_name]
            kinds = []
            if old.start and (new.start != old.start or 0 != new.pid != old.pid != 0):
                kinds.append((ProgramEventKind.RESTARTED, process.error))
            if new.pauses > old.pauses:
                seconds = (new.paused_until or process.now) - process.now
                kinds.append((ProgramEventKind.CRASH_LOOP, f"{policy.crash_restarts} restarts"))
                kinds.append((ProgramEventKind.PAUSED, f"pause number {new.pauses}, {seconds} s"))
            restarts = len(new.restarts) >= policy.crash_restarts > len(old.restarts)
            if restarts and new.paused_until is None and new.pauses >= policy.crash_give_up:
                kinds.append((ProgramEventKind.GIVEN_UP, f"after {new.pauses} pauses"))
            events += [ProgramEvent(kind, name, process, reason) for kind, reason in kinds]
    return events
