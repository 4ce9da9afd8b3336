"""One look at a supervisord's programs: what it means, and what is to be done before the next one."""

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
    """What one look found.

    :param verdict: of all programs together.
    :param histories: by a process's full name: what the next look needs.
    :param steps: processes to stop or to start now, by full name; empty when the verdict ends the watching.
    :param own: each program's processes.
    """

    verdict: Verdict
    histories: dict[str, CrashHistory]
    steps: dict[str, CrashLoopStep]
    own: dict[str, tuple[Process, ...]]


def evaluate(
    config: SupervisorAirflowConfiguration,
    processes: Iterable[Process],
    histories: Mapping[str, CrashHistory],
) -> Evaluation:
    """Return what the processes mean, seen after those histories.

    :param processes: all that supervisord has, event listeners among them.
    :param histories: of the look before; empty at the first one.
    """
    policies = {name: config.policy_of(name) for name in config.programs}
    own = processes_by_program(config, processes)
    seen: dict[str, CrashHistory] = {}
    steps: dict[str, CrashLoopStep] = {}
    for name, found in own.items():
        for process in found:
            key = process.full_name
            seen[key], steps[key] = update_history(
                histories.get(key, CrashHistory()), process, policies[name]
            )
    paused = {key for key, history in seen.items() if history.paused_until is not None}
    verdict = overall_verdict(config, own, policies, paused)
    given_up = _given_up(own, steps, policies)
    if given_up is not None and verdict.action in (None, Action.SUCCESS, Action.SKIP):
        verdict = given_up
    if verdict.action is not None:
        return Evaluation(verdict, seen, {}, own)
    return Evaluation(
        verdict, seen, {key: step for key, step in steps.items() if step is not CrashLoopStep.NOTHING}, own
    )


def processes_to_restart(
    config: SupervisorAirflowConfiguration,
    processes: Iterable[Process],
    histories: Mapping[str, CrashHistory],
) -> list[Process]:
    """Return the processes that a retry of the watching task starts again, by their programs' priority.

    Their end asks for a retry, and they were not started since those histories: it is the end that was seen then, or
    came before anybody watched again. One that is kept stopped stays so.

    :param processes: all that supervisord has.
    :param histories: what the attempt before has seen last.
    """
    found = processes_by_program(config, processes)
    due = []
    for name, program in sorted(config.programs.items(), key=lambda item: item[1].priority):
        for process in found[name]:
            history = histories.get(process.full_name, CrashHistory())
            is_old = process.start in (0, history.start)  # 0: this supervisord has never started it
            if (
                is_old
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
    """Return the histories with which a retry of the watching task goes on, once it has started what was due.

    That start is no crash. What was given up has all its pauses again: else each retry would end as it begins.
    """
    anew = dict(histories)
    for name, found in processes_by_program(config, processes).items():
        for process in found:
            history = histories.get(process.full_name, CrashHistory())
            if history.paused_until is not None:
                continue
            if len(history.restarts) >= config.policy_of(name).crash_restarts:
                anew[process.full_name] = CrashHistory()
            elif process.start != history.start:
                anew[process.full_name] = replace(history, start=0, pid=0)
    return anew


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
                    f"{policy.crash_window.total_seconds():g} s), again after {policy.crash_give_up} pauses",
                )
    return None
