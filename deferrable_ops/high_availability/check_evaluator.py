"""Evaluates the results of the checks in one DAG run. Decides when the checks end, and with which result and action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any, Final

from deferrable_ops.high_availability.facts import RunFacts
from deferrable_ops.high_availability.limits import Limits
from deferrable_ops.high_availability.poll_schedule import PollSchedule
from deferrable_ops.high_availability.results import Action, CheckResult, Decision, Result
from deferrable_ops.high_availability.retrigger_backoff import RetriggerBackoff
from deferrable_ops.high_availability.thresholds import ConsecutiveResults, Thresholds


@dataclass(frozen=True, slots=True)
class CheckRules:
    """Those arguments of an operator that decide how the results of the operator's checks are evaluated.

    :param reference_date: the name of the DAG run's date from which ``runtime`` and ``endtime`` are computed, for
        example ``logical_date``.
    :param timezone: the name of the DAG's timezone, in which ``endtime`` is read.
    """

    limits: Limits = field(default_factory=Limits)
    reference_date: str = "data_interval_end"
    timezone: str = "UTC"
    thresholds: Thresholds = field(default_factory=Thresholds)
    pace: PollSchedule = field(default_factory=PollSchedule)
    retrigger: RetriggerBackoff = field(default_factory=RetriggerBackoff)

    def as_json(self) -> dict[str, Any]:
        """Return these check rules as a JSON object."""
        data = asdict(self) | {"retrigger": self.retrigger.as_json()}
        # The serialized DAG contains these rules several times, so leave out what is not set.
        data["limits"] = {name: value for name, value in data["limits"].items() if value is not None}
        return {name: value for name, value in data.items() if value != {}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CheckRules:
        """Return the check rules from a JSON object.

        Unknown fields are ignored, because another version of the library may have written the JSON object.
        """
        rules = _known(cls, data)
        for name, part in _PARTS.items():
            rules[name] = part(**_known(part, rules.get(name) or {}))
        return cls(**rules)


_PARTS: Final[dict[str, Any]] = {
    "limits": Limits,
    "thresholds": Thresholds,
    "pace": PollSchedule,
    "retrigger": RetriggerBackoff,
}


class CheckEvaluator:
    """Evaluates the checks of one task in one DAG run. The evaluator does not read the clock and has no side effects.

    :param state: the value of :attr:`state` that was stored before the triggerer restarted; None if no state was
        stored.
    :raises InputError: if a value of the run's conf or params is malformed.
    """

    def __init__(self, task_id: str, facts: RunFacts, rules: CheckRules, state: Any = None) -> None:
        self._limits = facts.limits(task_id, rules.limits)
        self._recent, self._reset_after = facts.recent_retriggers(task_id), rules.retrigger.reset_after
        self._end = self._limits.end(facts.reference(task_id, rules.reference_date), rules.timezone)
        self._thresholds = rules.thresholds
        self._pace = rules.pace
        self._results = ConsecutiveResults.from_json(state)

    @property
    def state(self) -> dict[str, Any]:
        """The evaluator's state as a JSON object, to restore the evaluator after a restart of the triggerer."""
        return self._results.as_json()

    @property
    def end(self) -> datetime | None:
        """The time at which a limit ends the checks; None if no limit applies."""
        return None if self._end is None else self._end[0]

    def at_limit(self, now: datetime) -> Decision | None:
        """If the limit ``runtime`` or ``endtime`` is reached, return the decision to end the checks, otherwise None."""
        if self._end is None or now < self._end[0]:
            return None
        return Decision(Result.PASS, Action.STOP, f"{self._end[1]} is over")

    def evaluate(self, checked: CheckResult, now: datetime) -> Decision | None:
        """Add the result of a check. If this result ends the checks, return the decision, otherwise None."""
        result, action = checked
        self._results = self._results.with_result(result, self._thresholds, self._pace.max_relevant_count)
        if (decision := self.at_limit(now)) is not None:
            return decision
        if action is Action.CONTINUE or self._results.length < self._thresholds.needed(result):
            return None
        return self._unless_last(Decision(result, action, f"the check returned the action {action}"), now)

    def timed_out(self, now: datetime) -> Decision:
        """Return the decision with which the checks end when the task's timeout is over.

        The decision's action is RETRIGGER, and its result is the last result that reached its threshold.
        """
        if (decision := self.at_limit(now)) is not None:
            return decision
        health = self._results.health or Result.PASS
        return self._unless_last(Decision(health, Action.RETRIGGER, "the timeout is over"), now)

    def pause(self, now: datetime) -> float:
        """Return the number of seconds until the next check, or until ``runtime`` or ``endtime`` ends the checks."""
        pause = self._pace.pause(self._results)
        return pause if self._end is None else max(0.0, min(pause, (self._end[0] - now).total_seconds()))

    def _unless_last(self, decision: Decision, now: datetime) -> Decision:
        recent = self._recent.at(now, self._reset_after)
        if decision.action is Action.RETRIGGER and self._limits.is_last(recent):
            reason = f"{decision.reason}, and maxretrigger={self._limits.maxretrigger} is used up"
            return Decision(decision.result, Action.STOP, reason)
        return decision


def _known(of: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {one.name for one in fields(of)}
    return {name: value for name, value in data.items() if name in names}
