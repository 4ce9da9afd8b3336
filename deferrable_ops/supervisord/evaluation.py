"""Evaluates the states of supervisord's processes, for the task that watches the programs. The result is a verdict for
this task, and the steps to take before the next poll.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.crash_loops import CrashHistory, CrashLoopStep, update_history
from deferrable_ops.supervisord.policy import Action, ProgramPolicy
from deferrable_ops.supervisord.processes import (
    Process,
    Verdict,
    interpret_end,
    overall_verdict,
    processes_by_program,
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of :func:`evaluate`.

    :param verdict: what the task that watches the programs must do, decided from the states of all programs.
    :param histories: the updated crash history of each process, by the process's full name. Pass these crash histories
        to the next call of :func:`evaluate`.
    :param steps: which processes the caller must stop or start now, by the process's full name. The dict is empty if
        the verdict ends the task.
    :param processes: the processes of each program, by the program's name.
    """

    verdict: Verdict
    histories: dict[str, CrashHistory]
    steps: dict[str, CrashLoopStep]
    processes: dict[str, tuple[Process, ...]]

    @property
    def is_calm(self) -> bool:
        """Whether the task continues to watch the programs, and no process has recent restarts or pauses. If True, the
        evaluation stays the same until a process changes.
        """
        return self.verdict.action is None and all(
            not history.restarts and not history.pauses and history.paused_until is None
            for history in self.histories.values()
        )


def evaluate(
    config: SupervisorAirflowConfiguration,
    processes: Iterable[Process],
    histories: Mapping[str, CrashHistory],
) -> Evaluation:
    """Evaluate the states of supervisord's processes.

    :param processes: all processes of supervisord, including event listeners.
    :param histories: the crash histories that the previous call returned; an empty dict for the first call.
    """
    policies = {name: config.policy_of(name) for name in config.programs}
    own = processes_by_program(config, processes)
    updated: dict[str, CrashHistory] = {}
    steps: dict[str, CrashLoopStep] = {}
    for name, found in own.items():
        for process in found:
            key = process.full_name
            updated[key], steps[key] = update_history(
                histories.get(key, CrashHistory()), process, policies[name]
            )
    paused = {key for key, history in updated.items() if history.paused_until is not None}
    everything = [process for found in own.values() for process in found]
    if any(process.is_alive for process in everything):
        # A rolling update has stopped at a program that did not start. The other programs keep running.
        paused |= {
            process.full_name
            for process in everything
            if not process.is_alive and updated[process.full_name].is_replaced
        }
    verdict = overall_verdict(config, own, policies, paused)
    given_up = _given_up(own, steps, policies)
    if given_up is not None and verdict.action in (None, Action.SUCCESS, Action.SKIP):
        verdict = given_up
    if verdict.action is not None:
        return Evaluation(verdict, updated, {}, own)
    return Evaluation(
        verdict, updated, {key: step for key, step in steps.items() if step is not CrashLoopStep.NOTHING}, own
    )


def processes_to_restart(
    config: SupervisorAirflowConfiguration,
    processes: Iterable[Process],
    histories: Mapping[str, CrashHistory],
) -> list[Process]:
    """Return the processes that a retry of the watching task must restart, in the order of their programs' priorities.

    The retry must restart a process if the process ended with the action RETRY, and was not started again since the
    previous attempt. The process may have ended before or after the end of the previous attempt. The retry does not
    restart a process that is paused because of a crash loop.

    :param processes: all processes of supervisord.
    :param histories: the crash histories that the previous attempt of the task saved last.
    """
    found = processes_by_program(config, processes)
    due = []
    for name, program in sorted(config.programs.items(), key=lambda item: item[1].priority):
        for process in found[name]:
            history = histories.get(process.full_name, CrashHistory())
            # 0: this supervisord never started the process.
            is_unchanged = process.start in (0, history.start)
            if (
                is_unchanged
                and history.paused_until is None
                and interpret_end(process, program, config.policy_of(name)) is Action.RETRY
            ):
                due.append(process)
    return due


def histories_for_retry(
    config: SupervisorAirflowConfiguration,
    processes: Iterable[Process],
    histories: Mapping[str, CrashHistory],
) -> dict[str, CrashHistory]:
    """Return the crash histories with which a retry of the watching task begins.

    Call this function after the retry has restarted the processes from :func:`processes_to_restart`. These restarts do
    not count as crashes. If the previous attempt gave up a process because of a crash loop, the crash history of this
    process is reset. Without the reset, the retry would give up the process again at once.
    """
    renewed = dict(histories)
    for name, found in processes_by_program(config, processes).items():
        for process in found:
            history = histories.get(process.full_name, CrashHistory())
            if history.paused_until is not None:
                continue
            if len(history.restarts) >= config.policy_of(name).crash_restarts:
                renewed[process.full_name] = CrashHistory()
            elif process.start != history.start:
                renewed[process.full_name] = replace(history, start=0, pid=0)
    return renewed


def _given_up(
    own: Mapping[str, tuple[Process, ...]],
    steps: Mapping[str, CrashLoopStep],
    policies: Mapping[str, ProgramPolicy],
) -> Verdict | None:
    for name, found in own.items():
        for process in found:
            if steps[process.full_name] is CrashLoopStep.GIVE_UP:
                policy = policies[name]
                return Verdict(
                    policy.otherwise,
                    f"{process.full_name} is in a crash loop ({policy.crash_restarts} restarts within "
                    f"{policy.crash_window.total_seconds():g} s), again after {policy.crash_give_up} pauses; see the "
                    "program's log",
                )
    return None
