"""The events wait: follow what the inbox is given, from a moment on, until a condition is true."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, cast

from deferrable_ops.events.condition_language import parse_condition
from deferrable_ops.events.gathering import Gathering, Keep, check_keep
from deferrable_ops.events.specifications import KafkaEvent, Specification, specification_to_json
from deferrable_ops.events.windows import check_since, check_timeout, deadline, since_moment, timezone_named
from deferrable_ops.inbox import Attempt, NewWait, Wait, WaitState
from deferrable_ops.outcome import Failure, Outcome, Skip, Success
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.events.arguments import RunTimes, end_of_next_interval, specifications_of
from deferrable_ops.triggers.events.intake import Intake
from deferrable_ops.triggers.events.progress import PROGRESS, Progress
from deferrable_ops.triggers.events.source_request import Need
from deferrable_ops.triggers.events.sources import upstreams_of

_ALWAYS_KEPT: Final = 86_400.0  # events are kept for days, so that most waits need not ask since when


class EventsTrigger(TaskTrigger):
    """Waits for events.

    The arguments are those of :class:`deferrable_ops.operators.events.MultiEventSensor`, but these:

    :param events: by name, what ``specification_to_json`` wrote.
    :param cron: a timeout that is a cron expression.
    :param next_interval: with ``until_next_interval``, what the operator knows of its DAG's schedule.
    :param timezone: the DAG's, by name.
    :param single: there is one event, and the value is what came for it.
    :param run_times: when the DAG run started, and its data interval, where a worker deferred the task; None where the
        scheduler did, because Airflow tells then.
    """

    feature: ClassVar[str] = "events"
    classpath: ClassVar[str] = "deferrable_ops.triggers.events.EventsTrigger"
    arguments: ClassVar[tuple[str, ...]] = (
        "events",
        "condition",
        "keep",
        "since",
        "cron",
        "next_interval",
        "timezone",
        "soft_fail",
        "single",
        "run_times",
    )

    # Set while run() runs; before that they are None.
    _wanted: dict[str, Specification] | None  # until _intake has it
    _intake: Intake
    _progress: Progress | None

    def __init__(
        self,
        *,
        events: dict[str, dict[str, Any]] | None = None,
        condition: str | None = None,
        keep: Keep = "first",
        since: str | None = None,
        cron: str | None = None,
        next_interval: dict[str, Any] | None = None,
        timezone: str = "UTC",
        soft_fail: bool = False,
        single: bool = False,
        run_times: dict[str, str | None] | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.events = events
        self.condition = condition
        self.keep = keep
        self.since = since
        self.cron = cron
        self.next_interval = next_interval
        self.timezone = timezone
        self.soft_fail = soft_fail
        self.single = single
        self.run_times = run_times
        self._wanted = None
        self._intake = cast("Any", None)
        self._progress = None

    @property
    def cancellable(self) -> bool:
        """Whether there is anything to stop: waiting launches nothing."""
        return False

    @property
    def xcoms_to_clear(self) -> tuple[str, ...]:
        """The XComs that an earlier attempt may have left."""
        return super().xcoms_to_clear if self.single else (*super().xcoms_to_clear, PROGRESS)

    def validate(self) -> None:
        """Check the rendered arguments, and keep of the events what they say.

        :raises InputError: one of them is wrong; the message names it and the fix.
        """
        self._wanted = specifications_of(self.events or {})
        parse_condition(self.condition, list(self._wanted))
        # Thousands of waits take turns after this. What all of them hold meanwhile stays the process's memory.
        self.events = None
        check_keep(self.keep)
        check_since(self.since)
        timezone_named(self.timezone)
        if self.cron is not None:
            check_timeout(self.cron)

    def new_wait(self, attempt: Attempt) -> NewWait:
        """Return what is registered of the wait, whose deadline may follow the DAG's clock and schedule.

        :raises InputError: the wait is to end with the next data interval, and nobody can tell when that is.
        """
        new = super().new_wait(attempt)
        if self.cron is None and self.next_interval is None:
            return new
        now, latest = datetime.now(UTC), None
        if self.next_interval is not None:
            times = self._times()
            latest = end_of_next_interval(self.next_interval, times, times.start or now, self.timezone)
        zone = timezone_named(self.timezone)
        moment = deadline(self.cron or self.timeout, start=now, timezone=zone, next_interval_end=latest)
        return replace(new, timeout=max(0.0, min(new.timeout, (moment - now).total_seconds())))

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the classpath and the kwargs that make this trigger again."""
        classpath, kwargs = super().serialize()
        wanted = self._wanted if self._intake is None else dict(self._intake.wanted)
        if wanted is not None:
            kwargs["events"] = {name: specification_to_json(one) for name, one in wanted.items()}
        return classpath, kwargs

    async def wait(self) -> Outcome:
        """Follow the events until the condition is true, and return what came."""
        self._begin()
        await self._tell_what_is_waited_for()
        # No with statements, as in run(): there are thousands of waits.
        upstreams = upstreams_of(self._needs())
        await upstreams.__aenter__()
        try:
            following = self._follow()
            try:
                while self._goes_on:
                    await self.changes.next_change()
                    await self._take_what_came()
                outcome = await self._ending()
            finally:
                self._follow_no_more(following)
        finally:
            await upstreams.__aexit__(None, None, None)
        if self._progress is not None:
            await self._progress.show_last()
        return outcome

    async def cancel(self, wait: Wait) -> None:
        """Stop nothing: waiting launches nothing."""

    async def expired(self) -> Outcome:
        """Return what has come by the deadline, or that it is not enough."""
        intake = self._begin()
        await intake.take_the_rest(self.inbox.events, self.current.id)
        if intake.gathering.complete:
            return Success(self._value())
        reason = f"the deadline passed; {intake.gathering.why_incomplete()}"
        return Skip(reason) if self.soft_fail else Failure(reason)

    async def _ending(self) -> Outcome:
        if self.current.state is not WaitState.WAITING:
            return await self.wait_until_settled()
        reason = self._intake.failed_because
        return Success(self._value()) if reason is None else Failure(reason)

    def _follow(self) -> AbstractContextManager[Any]:
        following = self._intake.follow(self.inbox.feed)
        following.__enter__()
        if self._progress is not None:
            self._progress.__enter__()
        return following

    def _follow_no_more(self, following: AbstractContextManager[Any]) -> None:
        if self._progress is not None:
            self._progress.__exit__()
        following.__exit__(None, None, None)

    @property
    def _goes_on(self) -> bool:
        is_over = self._intake.gathering.complete or self._intake.failed_because is not None
        return self.current.state is WaitState.WAITING and not is_over

    async def _take_what_came(self) -> None:
        self.current = self.changes.take() or self.current
        if self.current.state is not WaitState.WAITING:
            return
        intake, progress = self._intake, self._progress
        has_changed = await intake.take_what_came(self.inbox.events)
        for warning in intake.take_warnings():
            self.log.warning(warning)
        if progress is not None and has_changed and not intake.gathering.complete:
            progress.changed()

    def _begin(self) -> Intake:
        if self._intake is None:
            specifications = self._wanted or {}
            condition = parse_condition(self.condition, list(specifications))
            started = self._times().start or datetime.fromtimestamp(self.current.created_at, UTC)
            zone = timezone_named(self.timezone)
            # What an earlier run of this trigger had gathered. The events themselves come to the same.
            state = (self.current.progress or {}).get("state")
            self._intake = Intake(
                specifications,
                Gathering(condition, list(specifications), self.keep, state),
                since=since_moment(self.since, run_start=started, timezone=zone).timestamp(),
                latest=self.current.deadline,
                changes=self.changes,
            )
            self._wanted = None
            if not self.single:
                # What was read of Kafka goes up to offsets that are kept elsewhere, and a state could not agree with.
                keeps_state = not any(isinstance(one, KafkaEvent) for one in specifications.values())
                self._progress = Progress(self, self._intake.gathering, keeps_state=keeps_state)
        return self._intake

    def _needs(self) -> Iterator[Need]:
        intake = self._intake
        sources = dict.fromkeys(one.source for one in intake.specifications)
        for source in sources:
            wanted = tuple(one for one in intake.specifications if one.source == source)
            if wanted == intake.specifications:
                wanted = intake.specifications  # kept once: there are thousands of waits
            yield Need(self.inbox, self.current.id, self.current.is_new, wanted, intake.since, intake)

    def _times(self) -> RunTimes:
        if self.run_times is not None:
            return RunTimes.from_json(self.run_times)
        ti = self.task_instance
        if ti is None or not self.task:
            return RunTimes()
        return RunTimes.of(ti.get_template_context()["dag_run"])

    def _value(self) -> Any:
        result = self._intake.gathering.result()
        return next(iter(result.values())) if self.single else result

    async def _tell_what_is_waited_for(self) -> None:
        intake = self._intake
        names = ", ".join(f"{name} ({one.source})" for name, one in intake.wanted)
        self.log.info("Waiting for %s", names)
        since = datetime.fromtimestamp(intake.since, UTC)
        self.log.info("Events count since %s; needed: %s", since, intake.gathering.missing())
        if intake.since > self.current.created_at - _ALWAYS_KEPT:
            return
        kept_since = await self.inbox.events.kept_since()
        if intake.since < kept_since:
            self.log.warning(
                "What came before %s is no longer kept ([deferrable_ops] event_retention_days): "
                "the wait does not see it",
                datetime.fromtimestamp(kept_since, UTC),
            )
