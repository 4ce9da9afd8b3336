"""The trigger that waits until the received events fulfil a condition."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, cast

from deferrable_ops.events.condition_language import parse_condition
from deferrable_ops.events.received import Keep, ReceivedEvents, check_keep
from deferrable_ops.events.specifications import KafkaEvent, Specification, specification_to_json
from deferrable_ops.events.windows import check_since, check_timeout, deadline, since_moment, timezone_named
from deferrable_ops.inbox import Attempt, NewWait, Wait, WaitState
from deferrable_ops.outcome import Failure, Outcome, Skip, Success
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.events.arguments import RunTimes, parse_events, parse_next_interval_end
from deferrable_ops.triggers.events.collector import EventCollector
from deferrable_ops.triggers.events.progress import PROGRESS, ProgressReporter
from deferrable_ops.triggers.events.source_request import SourceRequest
from deferrable_ops.triggers.events.sources import outage_sources, while_reading

# The inbox always keeps events for this many seconds. Only for an earlier `since`, check which events it still has.
_ALWAYS_KEPT: Final = 86_400.0
_NO_PROGRESS: Final = nullcontext()


class EventsTrigger(TaskTrigger):
    """Waits until the received events fulfil a condition.

    This trigger has the arguments of :class:`deferrable_ops.operators.events.MultiEventSensor`, except for these:

    :param events: the event specifications by event name, each in the form that ``specification_to_json`` returns; a
        dict, or a string with the dict as JSON.
    :param cron: the argument `timeout` of the operator, if `timeout` is a cron expression.
    :param next_interval: with ``until_next_interval``, the DAG's schedule as ``{"cron": ...}``, ``{"seconds": ...}``
        or ``{}``.
    :param timezone: the name of the DAG's timezone. The times in `cron` and `since` are times in this timezone.
    :param single: whether the task waits for one event. With ``single=True``, the result is this event, otherwise a
        dict of events by name.
    :param run_times: the DAG run's start and data interval, if a worker deferred the task. If the scheduler deferred
        the task, `run_times` is None, and the trigger reads these times from the task instance that Airflow sets on
        the trigger.
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

    # These are None until run() sets them. _parsed_events becomes None again once _collector has the events.
    _parsed_events: dict[str, Specification] | None
    _collector: EventCollector
    _progress: ProgressReporter | None

    def __init__(
        self,
        *,
        events: dict[str, dict[str, Any]] | str | None = None,
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
        self._parsed_events = None
        self._collector = cast("Any", None)
        self._progress = None

    @property
    def cancellable(self) -> bool:
        """Return False, because a wait for events launches no external work."""
        return False

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the Kafka clusters and of the SQS queues from which the task's events come."""
        if self._collector is None:
            return outage_sources(tuple((self._parsed_events or {}).values()))
        return outage_sources(self._collector.specifications)

    @property
    def xcoms_to_clear(self) -> tuple[str, ...]:
        """The keys of the XComs that an earlier attempt of the task may have pushed."""
        return super().xcoms_to_clear if self.single else (*super().xcoms_to_clear, PROGRESS)

    def validate(self) -> None:
        """Check the rendered arguments, and parse the events.

        :raises InputError: if an argument is invalid. The error message shows which argument is wrong and how to
            correct it.
        """
        self._parsed_events = parse_events(self.events or {})
        parse_condition(self.condition, list(self._parsed_events))
        # This frees memory: thousands of waits are queued after this call, and each would store its events twice.
        self.events = None
        check_keep(self.keep)
        check_since(self.since)
        timezone_named(self.timezone)
        if self.cron is not None:
            check_timeout(self.cron)

    def new_wait(self, attempt: Attempt) -> NewWait:
        """Return the data with which an attempt's wait is registered in the inbox.

        The deadline of the wait may depend on the DAG's timezone and schedule.

        :raises InputError: if ``until_next_interval`` is set, and the end of the next data interval is unknown.
        """
        new = super().new_wait(attempt)
        if self.cron is None and self.next_interval is None:
            return new
        now, latest = datetime.now(UTC), None
        if self.next_interval is not None:
            times = self._times()
            latest = parse_next_interval_end(self.next_interval, times, times.start or now, self.timezone)
        zone = timezone_named(self.timezone)
        moment = deadline(self.cron or self.timeout, start=now, timezone=zone, next_interval_end=latest)
        return replace(new, timeout=max(0.0, min(new.timeout, (moment - now).total_seconds())))

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the classpath and the kwargs from which Airflow creates this trigger."""
        classpath, kwargs = super().serialize()
        wanted = (
            self._parsed_events if self._collector is None else dict(self._collector.named_specifications)
        )
        if wanted is not None:
            kwargs["events"] = {name: specification_to_json(one) for name, one in wanted.items()}
        return classpath, kwargs

    async def wait(self) -> Outcome:
        """Collect events until the condition is true, and return an outcome with these events."""
        if self._collector is not None:
            # This is a new run after an error of a source. It starts as after a restart of the triggerer.
            self._parsed_events = dict(self._collector.named_specifications)
            self._collector, self._progress = cast("Any", None), None
        self._prepare()
        await self._log_what_is_awaited()
        outcome = await while_reading(self._source_requests(), self._collect_until_done)
        if self._progress is not None:
            await self._progress.push_final()
        return outcome

    async def cancel(self, wait: Wait) -> None:
        """Do nothing, because a wait for events launches no external work."""

    async def expired(self) -> Outcome:
        """Return the events if they are complete; otherwise a failure or a skip that lists the missing events."""
        collector = self._prepare()
        await collector.drain(self.inbox.events, self.current.id)
        if collector.received.complete:
            return Success(self._value())
        reason = f"the deadline passed; {collector.received.why_incomplete()}"
        return Skip(reason) if self.soft_fail else Failure(reason)

    async def _collect_until_done(self) -> Outcome:
        with self._collector.follow(self.inbox.feed), self._progress or _NO_PROGRESS:
            while self._is_unfinished:
                await self.changes.next_change()
                await self._collect()
            if self.current.state is not WaitState.WAITING:
                return await self.wait_until_settled()
            if self._collector.error is not None:
                self.started = self.started or self._collector.has_read
                raise self._collector.error
            return Success(self._value())

    @property
    def _is_unfinished(self) -> bool:
        is_over = self._collector.received.complete or self._collector.error is not None
        return self.current.state is WaitState.WAITING and not is_over

    async def _collect(self) -> None:
        await self.take_change()
        if self.current.state is not WaitState.WAITING:
            return
        collector, progress = self._collector, self._progress
        has_matched = await collector.collect(self.inbox.events)
        for warning in collector.take_warnings():
            self.log.warning(warning)
        if progress is not None and has_matched and not collector.received.complete:
            progress.report_soon()

    def _prepare(self) -> EventCollector:
        if self._collector is None:
            specifications = self._parsed_events or {}
            condition = parse_condition(self.condition, list(specifications))
            started = self._times().start or datetime.fromtimestamp(self.current.created_at, UTC)
            zone = timezone_named(self.timezone)
            # The state contains the events that an earlier run of this trigger had received. Without a stored state,
            # all events are counted again.
            state = (self.current.progress or {}).get("state")
            self._collector = EventCollector(
                specifications,
                ReceivedEvents(condition, list(specifications), self.keep, state),
                since=since_moment(self.since, run_start=started, timezone=zone).timestamp(),
                latest=self.current.deadline,
                changes=self.changes,
            )
            self._parsed_events = None
            if not self.single:
                # For Kafka, no state is stored: Kafka offsets are stored separately, so the state could contradict
                # them.
                stores_state = not any(isinstance(one, KafkaEvent) for one in specifications.values())
                self._progress = ProgressReporter(self, self._collector.received, stores_state=stores_state)
        return self._collector

    def _source_requests(self) -> Iterator[SourceRequest]:
        collector = self._collector
        sources = dict.fromkeys(one.source for one in collector.specifications)
        for source in sources:
            wanted = tuple(one for one in collector.specifications if one.source == source)
            if wanted == collector.specifications:
                # Share the tuple, to save memory.
                wanted = collector.specifications
            yield SourceRequest(
                self.inbox, self.current.id, self.current.is_new, wanted, collector.since, collector
            )

    def _times(self) -> RunTimes:
        if self.run_times is not None:
            return RunTimes.from_json(self.run_times)
        ti = self.task_instance
        if ti is None or not self.task:
            return RunTimes()
        return RunTimes.of(ti.get_template_context()["dag_run"])

    def _value(self) -> Any:
        result = self._collector.received.result()
        return next(iter(result.values())) if self.single else result

    async def _log_what_is_awaited(self) -> None:
        collector = self._collector
        names = ", ".join(f"{name} ({one.source})" for name, one in collector.named_specifications)
        self.log.info("Waiting for %s", names)
        since = datetime.fromtimestamp(collector.since, UTC)
        self.log.info("Still needed: %s. Events before %s are ignored", collector.received.missing(), since)
        if collector.since > self.current.created_at - _ALWAYS_KEPT:
            return
        kept_since = await self.inbox.events.kept_since()
        if collector.since < kept_since:
            self.log.warning(
                "The inbox no longer has the events received before %s, so this wait cannot receive them; use a later "
                "since=, or increase [deferrable_ops] event_retention_days",
                datetime.fromtimestamp(kept_since, UTC),
            )
