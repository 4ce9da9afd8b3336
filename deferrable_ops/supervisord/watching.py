"""One look at a supervisord's programs: what it means, and what is to be done before the next one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deferrable_ops.supervisord.airflow import SupervisorAirflowConfiguration
from deferrable_ops.supervisord.crash_loops import History, Step, follow
from deferrable_ops.supervisord.policy import Action, ProgramPolicy
from deferrable_ops.supervisord.processes import Process, Verdict, judge, processes_of


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found.

    :param verdict: of all programs together.
    :param histories: by a process's full name: what the next look needs.
    :param steps: processes to stop or to start now, by full name; empty when the verdict ends the watching.
    :param own: each program's processes.
    """

    verdict: Verdict
    histories: dict[str, History]
    steps: dict[str, Step]
    own: dict[str, tuple[Process, ...]]


def look(
    config: SupervisorAirflowConfiguration, processes: Iterable[Process], histories: Mapping[str, History]
) -> Look:
    """Return what the processes mean, seen after those histories.

    :param processes: all that supervisord has, event listeners among them.
    :param histories: of the look before; empty at the first one.
    """
    policies = {name: config.policy_of(name) for name in config.programs}
    own = processes_of(config, processes)
    seen: dict[str, History] = {}
    steps: dict[str, Step] = {}
    for name, found in own.items():
        for process in found:
            key = process.full_name
            seen[key], steps[key] = follow(histories.get(key, History()), process, policies[name])
    paused = {key for key, history in seen.items() if history.paused_until is not None}
    verdict = judge(config, own, policies, paused)
    given_up = _given_up(own, steps, policies)
    if given_up is not None and verdict.action in (None, Action.SUCCESS, Action.SKIP):
        verdict = given_up
    if verdict.action is not None:
        return Look(verdict, seen, {}, own)
    return Look(verdict, seen, {key: step for key, step in steps.items() if step is not Step.NOTHING}, own)


def _given_up(
    own: Mapping[str, tuple[Process, ...]], steps: Mapping[str, Step], policies: Mapping[str, ProgramPolicy]
) -> Verdict | None:
    for name, found in own.items():
        for process in found:
            if steps[process.full_name] is Step.GIVE_UP:
                policy = policies[name]
                return Verdict(
                    policy.otherwise,
                    f"{process.full_name} is in a crash loop ({policy.crash_restarts} restarts within "
                    f"{policy.crash_window.total_seconds():g} s), again after {policy.crash_give_up} pauses",
                )
    return None
