"""Operators that wait for one or more events, in one task or in one task per event."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import TaskGroup

from deferrable_ops.events.condition_language import check_names, parse_condition
from deferrable_ops.events.received import Keep, check_keep
from deferrable_ops.events.specifications import Specification, specification_to_json
from deferrable_ops.events.windows import check_since, check_timeout, is_cron
from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.base import TriggererOperator, flag
from deferrable_ops.triggers.base import DEFAULT_TIMEOUT, TaskTrigger
from deferrable_ops.triggers.events.arguments import RunTimes
from deferrable_ops.triggers.events.trigger import EventsTrigger

if TYPE_CHECKING:
    from airflow.sdk import DAG, Context
    from airflow.triggers.base import StartTriggerArgs

# Airflow's own timeout if our timeout is a cron expression. It is long, so that our deadline is always earlier.
_MAX_CRON_TIMEOUT: Final = timedelta(days=3660)
_JOIN: Final = "join"
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_.-]")


class _EventsTask(TriggererOperator):
    """Base class of the operators that wait for events. :class:`MultiEventSensor` describes their parameters."""

    trigger_class: ClassVar[type[TaskTrigger]] = EventsTrigger
    template_fields: Sequence[str] = ("events", "since")
    template_fields_renderers: ClassVar[dict[str, str]] = {"events": "json"}

    single: ClassVar[bool]
    # A worker sets this before it defers the task.
    run_times: dict[str, str | None] | None = None

    def __init__(
        self,
        *,
        events: Mapping[str, Specification],
        condition: str | None = None,
        keep: Keep = "first",
        since: datetime | str | None = None,
        timeout: timedelta | float | str = DEFAULT_TIMEOUT,
        until_next_interval: bool = False,
        soft_fail: bool = False,
        **kwargs: Any,
    ) -> None:
        checked = check_timeout(timeout)
        self.cron = checked if isinstance(checked, str) else None
        super().__init__(timeout=_MAX_CRON_TIMEOUT if isinstance(checked, str) else checked, **kwargs)
        self.events = _as_json(events)
        self.condition = condition
        self.keep = keep
        self.since = check_since(since)
        self.until_next_interval = until_next_interval
        self.soft_fail = soft_fail
        parse_condition(condition, list(self.events))
        check_keep(keep)
        flag("until_next_interval", until_next_interval)
        flag("soft_fail", soft_fail)
        if until_next_interval and self.get_dag() is not None:
            _next_interval(self.get_dag())

    @property
    def next_interval(self) -> dict[str, Any] | None:
        """The DAG's schedule, from which the trigger computes the end of the next data interval.

        The value is None if ``until_next_interval`` is False.

        :raises InputError: if the schedule does not define the next data interval.
        """
        return _next_interval(self.get_dag()) if self.until_next_interval else None

    @property
    def timezone(self) -> str:
        """The name of the DAG's timezone."""
        dag = self.get_dag()
        return "UTC" if dag is None else getattr(dag.timezone, "name", str(dag.timezone))

    def _start_trigger_args(self) -> StartTriggerArgs:
        args = super()._start_trigger_args()
        if args.trigger_kwargs is not None and "events" not in self.template_fields:
            # The string is half as long as what Airflow makes of nested dicts.
            args.trigger_kwargs["events"] = json.dumps(self.events, ensure_ascii=False, separators=(",", ":"))
        return args

    def execute(self, context: Context) -> Any:
        """Return the task's result if its wait is already over; otherwise defer the task to the trigger.

        :raises TaskDeferred: if the task is deferred.
        """
        self.run_times = RunTimes.of(context["dag_run"]).as_json()
        return super().execute(context)


class EventSensor(_EventsTask):
    """Wait for one event.

    The event becomes the task's XCom: a dict with ``payload``, ``time``, ``source`` and ``attributes``.

    :param event: the event to wait for: a :class:`~deferrable_ops.events.ChannelEvent`,
        :class:`~deferrable_ops.events.KafkaEvent` or :class:`~deferrable_ops.events.SqsEvent`.

    The other parameters are those of :class:`MultiEventSensor`, except `events`, `condition` and `keep`.
    """

    single: ClassVar[bool] = True

    def __init__(self, *, task_id: str, event: Specification, **kwargs: Any) -> None:
        unknown = next((name for name in ("events", "condition", "keep") if name in kwargs), None)
        if unknown is not None:
            raise InputError(
                f"EventSensor has no {unknown}=, because it waits for one event; use MultiEventSensor instead"
            )
        super().__init__(task_id=task_id, events={_event_name(task_id): event}, **kwargs)


class MultiEventSensor(_EventsTask):
    """Wait for several events, until a condition is true.

    The task's XCom is a dict from each name to its event: a dict with ``payload``, ``time``, ``source`` and
    ``attributes``. If no event for a name was received before the wait ended, the value for this name is None. While
    the task waits, the XCom ``progress`` and the log show which events were received and which are missing.

    :param events: a dict from event names to the events to wait for. Each event is a
        :class:`~deferrable_ops.events.ChannelEvent`, :class:`~deferrable_ops.events.KafkaEvent` or
        :class:`~deferrable_ops.events.SqsEvent`. One message may match more than one of the events.
    :param condition: an expression of event names; the wait ends when the expression is true, for example ``"orders &
        (payments | signoff)"`` or ``"at_least(2, orders, payments, signoff)"``. Without a `condition`, the wait ends
        when all events were received. Events that arrive after the end of the wait do not change the result.
    :param keep: which event to return for a name that received several events: "first" (the default), "last" or "all"
        (at most 1,000).
    :param since: events with a time before this moment are ignored. Give a datetime, an ISO 8601 string, or a template
        of an ISO 8601 string. "day" means the start of the day on which the DAG run started, and "month" means the
        start of the month. Both are in the DAG's timezone. By default, `since` is the start date of the DAG run. A
        finished DAG run that is cleared gets a new start date.
    :param timeout: how long the task may wait, as a timedelta or in seconds; 7 days by default. With a cron
        expression, the wait ends at the next time of this expression in the DAG's timezone. The task's
        ``execution_timeout`` limits the wait, too.
    :param until_next_interval: whether the wait times out at the end of the DAG's next data interval, if `timeout` is
        not reached earlier.
    :param soft_fail: whether to skip the task, instead of failing it, when the wait times out.
    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """

    single: ClassVar[bool] = False


class EventGate(TaskGroup):
    """A task group with one waiting task per event, and a join task after them. Create it with :func:`event_gate`.

    :ivar waits: the waiting tasks, by event name.
    :ivar join: the task downstream of all waiting tasks; it is an empty operator.
    """

    waits: dict[str, EventSensor]
    join: EmptyOperator

    def __exit__(self, *error: Any) -> None:
        """Place the tasks of the ``with`` block downstream of the join task."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        tasks = {task.task_id: task for task in self}
        ours = {self.join.task_id, *(wait.task_id for wait in self.waits.values())}
        for task_id, task in tasks.items():
            if task_id not in ours and not task.upstream_task_ids & tasks.keys():
                self.join >> task


def event_gate(
    name: str,
    *,
    events: Mapping[str, Specification],
    since: datetime | str | None = None,
    timeout: timedelta | float | str = DEFAULT_TIMEOUT,
    **task_arguments: Any,
) -> EventGate:
    """Create one waiting task per event, so that Airflow's Grid shows which event is missing.

    Tasks downstream of this task group start when all events were received. If an event is late, only the task that
    waits for this event fails::

        with event_gate("inputs", events={"orders": ..., "payments": ...}, timeout=timedelta(hours=6)) as gate:
            ...  # tasks that start when all events were received, shown inside the group
        gate >> transform

    :param name: the name of the task group. For a task group "inputs" with an event "orders", the task ids are
        ``inputs.orders`` and ``inputs.join``.
    :param events: a dict from event names to the events to wait for, as in :class:`MultiEventSensor`.
    :param since: the same as the parameter `since` of :class:`MultiEventSensor`.
    :param timeout: the same as the parameter `timeout` of :class:`MultiEventSensor`.
    :param task_arguments: other arguments for each :class:`EventSensor`, for example ``soft_fail=True``.
    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """
    _as_json(events)
    if _JOIN in events:
        raise InputError(
            f"events= has the name {_JOIN!r}, which is the id of the event gate's last task; choose another name"
        )
    gate = EventGate(group_id=name, tooltip=f"Waits for {len(events)} events")
    gate.waits = {
        event_name: EventSensor(
            task_id=event_name,
            event=event,
            since=since,
            timeout=timeout,
            task_group=gate,
            **task_arguments,
        )
        for event_name, event in events.items()
    }
    gate.join = EmptyOperator(task_id=_JOIN, task_group=gate)
    list(gate.waits.values()) >> gate.join
    return gate


def _as_json(events: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(events, Mapping):
        raise InputError(
            f"events={events!r} must be a dict of names and events, for example {{'orders': KafkaEvent('orders')}}"
        )
    check_names(list(events))
    found = {}
    for name, event in events.items():
        try:
            found[name] = specification_to_json(event)
        except InputError as error:
            raise InputError(f"events[{name!r}]: {error}") from None
    return found


def _next_interval(dag: DAG | None) -> dict[str, Any]:
    timetable = None if dag is None else dag.timetable
    expression, delta = getattr(timetable, "expression", None), getattr(timetable, "delta", None)
    if isinstance(expression, str) and is_cron(expression):
        return {"cron": expression}
    if isinstance(delta, timedelta):
        return {"seconds": delta.total_seconds()}
    if timetable is None or (delta is None and type(timetable).__module__.startswith("airflow.")):
        raise InputError(
            "until_next_interval=True cannot be used in this DAG, because the DAG's schedule does not define the end "
            "of the next data interval; give timeout= instead"
        )
    # For a custom timetable, the next interval is assumed to be as long as the run's interval.
    return {}


def _event_name(task_id: str) -> str:
    """Return a name for the one event of an EventSensor: the task's id, with each invalid character replaced by "_"."""
    name = _NOT_IN_NAMES.sub("_", str(task_id))
    return name if name[:1].isalpha() or name[:1] == "_" else f"_{name}"
