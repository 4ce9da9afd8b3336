"""The operator that runs a check repeatedly in the Triggerer, then starts the DAG again or ends the DAG run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

from airflow.sdk import Param
from airflow.sdk.exceptions import DownstreamTasksSkipped

from deferrable_ops.checks import ReadyCheck
from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability import Action, Result
from deferrable_ops.high_availability.check_evaluator import CheckRules
from deferrable_ops.high_availability.facts import RunFacts
from deferrable_ops.high_availability.limit_functions import compute_limits
from deferrable_ops.high_availability.limits import Limits, check_reference_date
from deferrable_ops.high_availability.poll_schedule import (
    DEFAULT_MAX_WAIT,
    DEFAULT_POLL_INTERVAL,
    PollSchedule,
    check_jitter,
)
from deferrable_ops.high_availability.results import gates_to_skip, read_result
from deferrable_ops.high_availability.retrigger_backoff import (
    DEFAULT_DELAY,
    DEFAULT_RESET_AFTER,
    RetriggerBackoff,
)
from deferrable_ops.high_availability.thresholds import Thresholds
from deferrable_ops.operators.base import TriggererOperator, seconds
from deferrable_ops.operators.high_availability.check_callables import (
    IMPORT_FIX,
    USE_FIX,
    dotted_path,
    find_imported,
    is_function_path,
    triggerer_import_problem,
    validate_path,
)
from deferrable_ops.operators.high_availability.check_source import CheckSource, source_at, source_of
from deferrable_ops.operators.high_availability.gate import HighAvailabilityGate
from deferrable_ops.operators.high_availability.gates import make_gates
from deferrable_ops.operators.high_availability.worker_check import check_on_worker
from deferrable_ops.plain_data import require_serializable
from deferrable_ops.triggers.base import DEFAULT_TIMEOUT, TaskTrigger
from deferrable_ops.triggers.high_availability.triggers import DEFAULT_CHECK_TIMEOUT, HighAvailabilityTrigger
from deferrable_ops.triggers.lifecycle.delivery import RETURN_VALUE

if TYPE_CHECKING:
    from airflow.sdk import DAG, Context

    from deferrable_ops.operators.high_availability.retrigger import HighAvailabilityRetrigger

_REPLACEMENTS: Final = {
    "silent_fail": "catch the exception in the check and return (Result.FAIL, Action.CONTINUE), or use "
    "failure_threshold=, which also counts exceptions",
    "never_fail": "catch the exception in the check and raise AirflowSkipException, which skips the task and its gates",
}


class HighAvailabilityOperator(TriggererOperator):
    """Run a check repeatedly, until the check ends this DAG run. The check can also start the DAG again.

    The check returns a :class:`Result` and an :class:`Action`. CONTINUE: check again later. RETRIGGER: start the DAG
    again and end this run. STOP: end this run. The result (PASS or FAIL) becomes the state of this DAG run. The task's
    XCom is the pair of result and action, for example ``["pass", "stop"]``.

    :param python_callable: the check: a function, the dotted path of a function, or an :class:`HttpCheck`,
        :class:`TcpCheck` or :class:`FileCheck`. A function that the triggerer cannot import runs on a worker, and the
        task is deferred between two checks. All other checks run in the triggerer. In the triggerer, a coroutine runs
        on the event loop, and any other function runs in a thread. If the check raises an exception or exceeds
        `check_timeout`, the check counts as FAIL/RETRIGGER. If the check returns an invalid value, the check counts as
        FAIL/STOP.
    :param op_args: the positional arguments with which the check is called. `op_args`, `op_kwargs` and
        `templates_dict` are templated.
    :param poke_interval: the time between two checks, as a timedelta or in seconds; 1 minute by default.
    :param timeout: the time for all checks together, as a timedelta or in seconds; 7 days by default. After this
        timeout, the DAG is started again, and the result of the last check becomes the state of this DAG run. If no
        check has ended before the timeout, the result is PASS.
    :param check_timeout: the timeout of one check, as a timedelta or in seconds; 5 minutes by default.
    :param runtime: how long after the reference date the DAG run ends as PASS/STOP, as a timedelta or in seconds. With
        ``runtime=0``, the DAG run ends at once.
    :param endtime: the run ends as PASS/STOP at the next occurrence of this time of day after the reference date, in
        the DAG's timezone; a datetime.time or a string. With ``endtime="06:00"`` and a reference date at 22:00, the
        DAG run ends on the next day.
        Both `runtime` and `endtime` can also be a function of an installed package, or its dotted path. The function is
        called in the triggerer with those of ``dag_run``, ``params``, ``run_id``, ``logical_date``, ``ds``,
        ``reference_date`` and the like that its signature accepts, and returns the limit of the run, or None.
    :param maxretrigger: the maximum number of times in a row that the DAG is started again; 0 means never. After a run
        that is longer than `retrigger_reset_after`, the count begins at 0. After `maxretrigger` starts, the action
        RETRIGGER is replaced by STOP.
    :param retrigger_delay: the pause between the second of these starts and the end of the checks before it, as a
        timedelta or in seconds; 10 seconds by default. The first start has no pause. Each further pause is twice as
        long, but at most 10 minutes. With 0, there are no pauses.
    :param retrigger_reset_after: after a DAG run that is longer than this, the DAG is started again without a pause,
        and the starts are counted from 0; a timedelta or seconds; 10 minutes by default.
    :param reference_date: which date of the first DAG run of a chain is the reference date for `runtime` and
        `endtime`; one of ``data_interval_end`` (the default), ``logical_date`` and ``start_date``.
    :param conf: a dict, or a JSON object as a string, that is merged into the conf of this DAG run to get the conf of
        the next DAG run; templated. A key of `conf` replaces the equal key of this run's conf. By default, the next run
        keeps the conf, and thus the params, of this run.
    :param pass_trigger_kwargs: arguments of the TriggerDagRunOperator that starts the DAG again after PASS, such as
        ``trigger_dag_id``. A ``conf`` in these arguments replaces the conf of this DAG run and the argument `conf`.
    :param fail_trigger_kwargs: arguments of the TriggerDagRunOperator that starts the DAG again after FAIL.
    :param failure_threshold: how many FAILs in a row are needed before the check's action is carried out.
    :param success_threshold: how many PASSes in a row are needed before the check's action is carried out.
    :param exponential_backoff: whether the time between two checks doubles with each FAIL in a row.
    :param max_wait: with `exponential_backoff`, the longest time between two checks, as a timedelta or in seconds; 10
        minutes by default.
    :param jitter: a factor from 0 to 1. With ``jitter=0.1``, each time between two checks is changed at random by up
        to 10 %.
    :param soft_fail: whether the task is skipped after `timeout`, instead of starting the DAG again.
    :param mode: ignored, because the task never waits on a worker. The argument `mode` is accepted for compatibility
        with the package airflow-ha.
    :param silent_fail: not supported; True is refused with a replacement, as for `never_fail`.
    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """

    trigger_class: ClassVar[type[TaskTrigger]] = HighAvailabilityTrigger
    template_fields: Sequence[str] = ("op_args", "op_kwargs", "templates_dict")
    template_fields_renderers: ClassVar[dict[str, str]] = {"op_args": "py", "op_kwargs": "py"}

    # A worker that defers the task sets this attribute.
    run_facts: dict[str, Any] | None = None

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any] | str,
        conf: Mapping[str, Any] | str | None = None,
        pass_trigger_kwargs: Mapping[str, Any] | None = None,
        fail_trigger_kwargs: Mapping[str, Any] | None = None,
        op_args: Sequence[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        templates_dict: Mapping[str, Any] | None = None,
        poke_interval: timedelta | float = DEFAULT_POLL_INTERVAL,
        timeout: timedelta | float = DEFAULT_TIMEOUT,
        check_timeout: timedelta | float = DEFAULT_CHECK_TIMEOUT,
        runtime: timedelta | float | str | Callable[..., Any] | None = None,
        endtime: time | str | Callable[..., Any] | None = None,
        maxretrigger: int | None = None,
        retrigger_delay: timedelta | float = DEFAULT_DELAY,
        retrigger_reset_after: timedelta | float = DEFAULT_RESET_AFTER,
        reference_date: str = "data_interval_end",
        failure_threshold: int = 1,
        success_threshold: int = 1,
        exponential_backoff: bool = False,
        max_wait: timedelta | float = DEFAULT_MAX_WAIT,
        jitter: float = 0.0,
        soft_fail: bool = False,
        mode: str = "poke",
        silent_fail: bool = False,
        never_fail: bool = False,
        **kwargs: Any,
    ) -> None:
        for name, value in (("silent_fail", silent_fail), ("never_fail", never_fail)):
            if value:
                raise InputError(f"{name}=True is not supported; {_REPLACEMENTS[name]}")
        given = dict(kwargs)
        kwargs.setdefault("trigger_rule", "none_failed")
        super().__init__(timeout=timeout, **kwargs)
        self.poke_interval = seconds("poke_interval", poke_interval)
        self.check_timeout = seconds("check_timeout", check_timeout)
        functions = {
            "runtime": self._limit_function("runtime", runtime),
            "endtime": self._limit_function("endtime", endtime),
        }
        self.limits = replace(
            Limits.of(
                None if functions["runtime"] else runtime,
                None if functions["endtime"] else endtime,
                maxretrigger,
            ),
            runtime_function=functions["runtime"],
            endtime_function=functions["endtime"],
        )
        self.backoff = RetriggerBackoff.of(retrigger_delay, retrigger_reset_after)
        self.reference_date = check_reference_date(reference_date)
        self.thresholds = Thresholds.of(success_threshold, failure_threshold)
        self.pace = PollSchedule(
            self.poke_interval, bool(exponential_backoff), seconds("max_wait", max_wait), check_jitter(jitter)
        )
        self.soft_fail = bool(soft_fail)
        self.op_args = None if op_args is None else list(op_args)
        self.op_kwargs = None if op_kwargs is None else dict(op_kwargs)
        self.templates_dict = None if templates_dict is None else dict(templates_dict)
        self._set_check(python_callable)
        dag = self.get_dag()
        if dag is None:
            raise InputError(
                f"the task {self.task_id!r} has no DAG; create it inside `with DAG(...)`, or pass dag="
            )
        self._add_params(dag)
        self._gates = make_gates(self, given, conf, pass_trigger_kwargs or {}, fail_trigger_kwargs or {})

    @classmethod
    def partial(cls, **_: Any) -> NoReturn:
        """Refuse dynamic task mapping, because the gates of a mapped task would not be mapped with the task.

        :raises InputError: always.
        """
        raise InputError(
            f"{cls.__name__} cannot be mapped, because it adds further tasks (its gates) to the DAG; create "
            "one operator for each value, or expand a task group that contains the operator"
        )

    @property
    def worker_start_reason(self) -> str | None:
        """The reason why the task starts on a worker; None if the task starts in the triggerer."""
        return self.worker_check_reason or super().worker_start_reason

    @property
    def inherits_from_skipmixin(self) -> bool:
        """Whether Airflow's scheduler skips the gates that have nothing to do, without starting them.

        A gate with an ``on_skipped_callback`` must start, because the scheduler does not call this callback.
        """
        return not any(task.on_skipped_callback for task in (self, self.retrigger_pass, self.retrigger_fail))

    @property
    def rules(self) -> dict[str, Any]:
        """The limits, thresholds and intervals of the checks, as a JSON object for the trigger."""
        return self._rules().as_json()

    @property
    def decide_task(self) -> HighAvailabilityOperator:
        """This task, which decides which gates run. In the package airflow-ha, a separate task decides this."""
        return self

    @property
    def stop_pass(self) -> HighAvailabilityGate:
        """The task that succeeds when the check ends as PASS/STOP, and is skipped otherwise."""
        return self._gates.stop_pass

    @property
    def stop_fail(self) -> HighAvailabilityGate:
        """The task that fails when the check ends as FAIL/STOP, and is skipped otherwise."""
        return self._gates.stop_fail

    @property
    def retrigger_pass(self) -> HighAvailabilityRetrigger:
        """The task that starts the DAG again when the check ends as PASS/RETRIGGER, and is skipped otherwise."""
        return self._gates.retrigger_pass

    @property
    def retrigger_fail(self) -> HighAvailabilityRetrigger:
        """The task that starts the DAG again when the check ends as FAIL/RETRIGGER, and is skipped otherwise."""
        return self._gates.retrigger_fail

    def check_end_conditions(self, **context: Any) -> tuple[Result | None, Action] | None:
        """Return the result and the action that the limits require now; None if no limit is reached.

        After ``runtime`` or ``endtime``, return ``(PASS, STOP)``. If only ``maxretrigger`` is reached, return ``(None,
        STOP)``.

        :param context: Airflow's context; this method reads only ``dag_run``, ``params`` and ``dag``.
        """
        facts = RunFacts.of(context)
        computed = compute_limits(self.task_id, facts, self.limits, self.reference_date)
        zone = _timezone_of(context.get("dag") or self.get_dag())
        limits = facts.limits(self.task_id, computed)
        end = limits.end(facts.reference(self.task_id, self.reference_date), zone)
        now = datetime.now(UTC)
        if end is not None and end[0] <= now:
            return Result.PASS, Action.STOP
        recent = facts.recent_retriggers(self.task_id).at(now, self.backoff.reset_after)
        return (None, Action.STOP) if limits.is_last(recent) else None

    def get_retrigger_count(self, **context: Any) -> int:
        """Return how often the DAG was started again in this chain of runs, up to this DAG run.

        :param context: Airflow's context; this method reads only ``dag_run`` and ``params``.
        """
        return RunFacts.of(context).retriggers(self.task_id)

    def is_initial_run(self, **context: Any) -> bool:
        """Return whether this DAG run is the first run of its chain. A retrigger starts each later run of a chain.

        :param context: Airflow's context; this method reads only ``dag_run`` and ``params``.
        """
        return self.get_retrigger_count(**context) == 0

    def execute(self, context: Context) -> Any:
        """Defer the task to its trigger. If no triggerer can import the check, run the check on this worker.

        :raises TaskDeferred: if a further check is needed.
        """
        facts = RunFacts.of(context)
        if self.worker_check_reason is not None:
            return self._ended(context, check_on_worker(self, context, facts, self._computed_rules(facts)))
        self.run_facts = facts.as_json()
        return self._ended(context, super().execute(context))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Return the final result and action of the checks. See :meth:`TriggererOperator.execute_complete`.

        :raises DownstreamTasksSkipped: in a mapped task group, to skip the gates that have nothing to do.
        """
        return self._ended(context, super().execute_complete(context, event))

    def trigger_kwargs(self) -> dict[str, Any]:
        """Return the kwargs of the task's trigger."""
        kwargs = super().trigger_kwargs()
        if self._skips_on_worker:
            reason = {"success": "only a worker can skip gates in a mapped task group"}
            kwargs["ends_on_worker"] = reason | kwargs["ends_on_worker"]
        return kwargs

    def check_again(self, context: Context, event: Any) -> Any:
        """Run the next check on this worker, because no triggerer can import the check.

        :raises TaskDeferred: if a further check is needed.
        """
        facts = RunFacts.of(context)
        return self._ended(context, check_on_worker(self, context, facts, self._computed_rules(facts)))

    @property
    def _skips_on_worker(self) -> bool:
        # In a mapped task group, Airflow's scheduler does not find the XCom with the gates that it must skip, and each
        # gate would start on a worker.
        return self.get_closest_mapped_task_group() is not None and self.inherits_from_skipmixin

    def _ended(self, context: Context, returned: Any) -> Any:
        decided = read_result(returned)
        if decided is None or not self._skips_on_worker:
            return returned
        ti = context["ti"]
        # The exception takes the place of the return value.
        if self.do_xcom_push:
            ti.xcom_push(key=RETURN_VALUE, value=returned)
        skipped = gates_to_skip(self.task_id, *decided)
        tasks = [(task_id, ti.map_index) for task_id in skipped]
        raise DownstreamTasksSkipped(tasks=tasks)  # type: ignore[no-untyped-call]

    def _set_check(self, given: Any) -> None:
        self.python_callable: Callable[..., Any] | None = None
        self.check: str | None = None
        self.worker_check_reason: str | None = None
        self.worker_check_fix = IMPORT_FIX
        if isinstance(given, ReadyCheck):
            if self.op_args or self.op_kwargs:
                raise InputError(
                    "op_args= and op_kwargs= are only for functions; pass the arguments to "
                    f"{type(given).__name__}(...) instead"
                )
            self.check, self.op_kwargs = given.path(), given.arguments()
        elif isinstance(given, str):
            self.check = validate_path(given)
            if (used := self._worker_only_use(source_at(given))) is not None:
                raise InputError(
                    f"python_callable={given!r} uses {used}, which a triggerer does not have; pass the function itself "
                    "instead of its path, and the check runs on a worker"
                )
        elif callable(given):
            dag = self.get_dag()
            self.worker_check_reason = triggerer_import_problem(given, None if dag is None else dag.fileloc)
            used = self._worker_only_use(source_of(given))
            if self.worker_check_reason is None and used is not None:
                self.worker_check_reason = f"python_callable uses {used}, which a triggerer does not have"
                self.worker_check_fix = USE_FIX
            self.python_callable = given
            self.check = None if self.worker_check_reason else dotted_path(given)
        else:
            raise InputError(
                f"python_callable={given!r} is not a check; give a function, its dotted path, or an HttpCheck, "
                "TcpCheck or FileCheck"
            )
        if self.check is not None:
            for name in self.template_fields:
                require_serializable(name, getattr(self, name))

    def _limit_function(self, name: str, value: Any) -> str | None:
        """Return the dotted path of the function that computes a limit; None if the limit is not a function."""
        if not callable(value) and not is_function_path(value):
            return None
        dag = self.get_dag()
        function = find_imported(value) if isinstance(value, str) else value
        problem = None
        if function is not None:
            problem = triggerer_import_problem(function, None if dag is None else dag.fileloc, name)
        if problem is not None:
            raise InputError(
                f"{problem}, so a triggerer cannot call it; move the function into an installed package or the plugins "
                f"folder, then pass the function or its dotted path"
            )
        return value if isinstance(value, str) else dotted_path(value)

    def _computed_rules(self, facts: RunFacts) -> CheckRules:
        limits = compute_limits(self.task_id, facts, self.limits, self.reference_date)
        return replace(self._rules(), limits=limits)

    def _worker_only_use(self, source: CheckSource) -> str | None:
        return source.worker_only_use(self.op_args or [], self.op_kwargs or {})

    def _rules(self) -> CheckRules:
        zone = _timezone_of(self.get_dag())
        return CheckRules(
            self.limits,
            self.reference_date,
            zone,
            self.thresholds,
            self.pace,
            self.backoff,
        )

    def _add_params(self, dag: DAG) -> None:
        own = {
            "run": Param(False, "Ignores runtime, endtime and maxretrigger", type="boolean"),
            "runtime": Param(None, "Replaces runtime, in seconds", type=["null", "number"]),
            "endtime": Param(None, "Replaces endtime", type=["null", "string"], format="time"),
            "maxretrigger": Param(None, "Replaces maxretrigger", type=["null", "integer"]),
            "retrigger": Param(None, "Retriggers before this run", type=["null", "integer"]),
        }
        for name, param in own.items():
            if f"{self.task_id}-force-{name}" not in dag.params:
                dag.params[f"{self.task_id}-force-{name}"] = param


def _timezone_of(dag: Any) -> str:
    return "UTC" if dag is None else str(getattr(dag.timezone, "name", dag.timezone))
