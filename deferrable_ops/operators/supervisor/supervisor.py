"""Supervisor and SupervisorSSH run programs under a supervisord that belongs to a DAG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from airflow.sdk import DAG
from airflow.sdk.definitions._internal.contextmanager import DagContext

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.high_availability.operator import HighAvailabilityOperator
from deferrable_ops.operators.supervisor.arguments import (
    CHECK,
    FORCE_KILL,
    REMOTE_ARGUMENTS,
    override_remote,
    parse_configuration,
    parse_steps,
    require_notifiers,
    split_task_arguments,
    teardown_retries,
    with_notifiers,
    with_working_dir,
)
from deferrable_ops.operators.supervisor.hosts import host_name, port_number
from deferrable_ops.operators.supervisor.pipeline import Pipeline, chain_in_order
from deferrable_ops.operators.supervisor.steps import (
    SupervisorAlarm,
    SupervisorCheckOperator,
    SupervisorStepOperator,
    SupervisorSwitch,
    SupervisorTeardownGate,
)
from deferrable_ops.supervisord import (
    SupervisorAirflowConfiguration,
    SupervisorSSHAirflowConfiguration,
)
from deferrable_ops.triggers.supervisor.configuration import START_STEPS, TEARDOWN_STEPS


class Supervisor(Pipeline):
    """Adds tasks to a DAG. The tasks run programs under a supervisord on the triggerer's host.

    A Supervisor can be chained like a task, for example ``before >> supervisor >> after``. The task `after` then runs
    when the programs have succeeded and supervisord is stopped. The Supervisor changes two settings of the DAG: at
    most one active run, and no catch-up.

    :param dag: the DAG; by default the DAG of the surrounding ``with DAG(...)``.
    :param cfg: the configuration, or a dict with its fields. If the configuration has no ``working_dir``, the library
        chooses a working directory whose name contains the DAG's id and `name`.
    :param conf: a dict, or a string with a JSON object; templated. If the DAG triggers another run of itself, the next
        run gets this run's conf, in which the keys of `conf` replace equal keys. By default, the next run gets this
        run's conf unchanged, and thus the same params.
    :param on_program_event: replaces the field of the same name in `cfg`: notifiers that the Triggerer calls for events
        of programs, for example ``AsyncCallback("package.module.Notifier", kwargs={...})``, or a list of these.
    :param steps: a dict with tasks of the same DAG. Each of these tasks replaces the task that the Supervisor would
        create for a step. A key of `steps` is the name of the replaced step, for example ``restart-programs``. The task
        for the key ``check-programs`` must be a HighAvailabilityOperator.
    :param name: prefix of the task ids; by default the DAG's id.
    :param task_id: the name by which other tasks in a YAML file of airflow-config refer to this Supervisor. The ids of
        the Supervisor's tasks do not contain `task_id`.
    :param kwargs: operator arguments for all tasks, such as ``retries``, ``queue`` and ``owner``. ``trigger_rule``,
        ``depends_on_past`` and ``wait_for_downstream`` apply only to the first task of the Supervisor. Without
        ``retries``, the teardown steps are retried three times.
    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """

    configuration_class: ClassVar[type[SupervisorAirflowConfiguration]] = SupervisorAirflowConfiguration

    def __init__(
        self,
        dag: DAG | None = None,
        cfg: SupervisorAirflowConfiguration | Mapping[str, Any] | None = None,
        *,
        conf: Mapping[str, Any] | str | None = None,
        on_program_event: Any = None,
        steps: Mapping[str, Any] | None = None,
        name: str | None = None,
        task_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        found = dag or DagContext.get_current()
        if found is None:
            raise InputError(
                f"{type(self).__name__} is in no DAG; create it inside `with DAG(...)`, or give dag="
            )
        self.dag = found
        self.name = name or found.dag_id
        given = parse_configuration(self.configuration_class, cfg)
        if on_program_event is not None:
            given = with_notifiers(given, on_program_event)
        super().__init__(with_working_dir(given, found, self.name, kwargs.get("task_group")))
        self._steps = parse_steps(steps or {})
        if conf is not None and CHECK in self._steps:
            raise InputError(
                f"conf= has no effect, because steps[{CHECK!r}] replaces the task that triggers the DAG again; give "
                "conf= to that task instead"
            )
        for field in ("rolling", "on_program_event"):
            if getattr(self.cfg, field) and CHECK in self._steps:
                raise InputError(
                    f"{field}= has no effect, because steps[{CHECK!r}] replaces the task that watches the programs; "
                    f"remove {field}=, or do not replace this task in steps="
                )
        require_notifiers(self.cfg, found.fileloc)
        self._conf = conf
        self._arguments, self._first_task_arguments = split_task_arguments(kwargs, self.cfg.pool)
        self.setup_dag()
        self._create_tasks()
        self._chain()

    def setup_dag(self) -> None:
        """Set ``max_active_runs=1`` and ``catchup=False`` in the DAG, because all runs of the DAG share one
        supervisord.
        """
        self.dag.catchup = False
        self.dag.max_active_runs = 1

    def get_base_operator_kwargs(self) -> dict[str, Any]:
        """Return the arguments that all tasks of this Supervisor get."""
        return {"dag": self.dag, **self._arguments}

    def get_step_kwargs(self, step: str) -> dict[str, Any]:
        """Return the arguments that only the task of one step gets.

        :param step: name of the step. The returned arguments contain the ids of other tasks of this Supervisor, and
            these tasks must already be in ``tasks``.
        """
        if step == CHECK:
            return {"cfg": self.cfg, "conf": self._conf}
        own: dict[str, Any] = {"step": step, "cfg": self.cfg, "check_task_id": self.check_programs.task_id}
        if step in (*START_STEPS, "restart-programs"):
            own["rules"] = self.check_programs.rules
            own["tears_down"] = self._steps.keys().isdisjoint(TEARDOWN_STEPS)
        if step == START_STEPS[0]:
            own |= self._first_task_arguments
        if step in TEARDOWN_STEPS:
            own["gate_task_id"] = self.teardown.task_id
            own |= teardown_retries(self._arguments, self.dag.default_args)
        if step == "unconfigure-supervisor" and not self.cfg.cleanup:
            own["skip_because"] = (
                "the configuration file and the working directory are kept, because of cleanup=False"
            )
        if step == FORCE_KILL:
            gate = self.task_of("force-kill-dag").task_id
            own |= {"gate_task_id": gate, "trigger_rule": "all_done", "retries": 0}
        return own

    def get_step_operator(self, step: str) -> Any:
        """Create the task of a step. Subclasses may override this method.

        :param step: name of the step, for example ``start-supervisor``.
        """
        arguments = {
            "task_id": f"{self.name}-{step}",
            **self.get_base_operator_kwargs(),
            **self.get_step_kwargs(step),
        }
        if step == CHECK:
            return SupervisorCheckOperator(**arguments)
        task = SupervisorStepOperator(**arguments)
        # When a user ends the whole run, Airflow skips all tasks that are not teardown tasks.
        return task.as_teardown() if step in TEARDOWN_STEPS else task

    def _create_tasks(self) -> None:
        for step in (CHECK, *START_STEPS, "restart-programs"):
            self._create_step(step)
        check = self.check_programs
        retriggers = [check.retrigger_pass.task_id, check.retrigger_fail.task_id]
        self.tasks["teardown"] = SupervisorTeardownGate(
            **self._gate_arguments("teardown"),
            first_task_id=self.configure_supervisor.task_id,
            check_task_id=check.task_id,
            retriggers=retriggers,
            stop_on_exit=self.cfg.stop_on_exit,
        ).as_teardown()
        for step in TEARDOWN_STEPS:
            self._create_step(step)
        switch = SupervisorSwitch(**self._gate_arguments("force-kill-dag"), clears="")
        self.tasks["force-kill-dag"] = switch
        self._create_step(FORCE_KILL)
        switch.clears = self.force_kill.task_id
        watched = [*START_STEPS, "restart-programs", *TEARDOWN_STEPS]
        self.tasks["check-config-failed"] = SupervisorAlarm(
            **self._gate_arguments("check-config-failed", "on_failure_callback"),
            task_ids=[self.task_of(step).task_id for step in watched],
            leaf_task_id=f"{check.task_id}-force-dag-fail",
            check_task_id=check.task_id,
        ).as_teardown(on_failure_fail_dagrun=True)

    def _create_step(self, step: str) -> None:
        task = self._steps.get(step) or self.get_step_operator(step)
        if step == CHECK and not isinstance(task, HighAvailabilityOperator):
            raise InputError(
                f"steps[{CHECK!r}] must be a HighAvailabilityOperator, because the Supervisor chains tasks behind the "
                "gates of this operator (stop_pass, stop_fail, retrigger_pass and retrigger_fail)"
            )
        self.tasks[step] = task

    def _gate_arguments(self, suffix: str, *without: str) -> dict[str, Any]:
        shared = {key: value for key, value in self.get_base_operator_kwargs().items() if key not in without}
        return {**shared, "task_id": f"{self.name}-{suffix}"}

    def _chain(self) -> None:
        check = self.check_programs
        starts = [self.task_of(step) for step in START_STEPS]
        stops = [self.task_of(step) for step in TEARDOWN_STEPS]
        chain_in_order(*starts, check)
        check.retrigger_fail >> self.restart_programs
        gates = [check.stop_pass, check.stop_fail, check.retrigger_pass, check.retrigger_fail]
        gates >> self.teardown
        chain_in_order(self.teardown, *stops)
        chain_in_order(self.task_of("force-kill-dag"), self.force_kill)
        [*starts, self.restart_programs, *stops] >> self.task_of("check-config-failed")


class SupervisorSSH(Supervisor):
    """Adds tasks to a DAG. Over SSH, the tasks run programs under a supervisord on a remote machine.

    :param host: host name of the remote machine; None means the host in the SSH connection. `host` can be a host name,
        an object with a ``name`` (for example a Host of airflow-pydantic), or a function that returns one of these. If
        `host` is a function, it is called each time the DAG is parsed. The user name and the key always come from the
        Airflow connection of type SSH.
    :param port: a TCP port on which supervisord listens in addition to its Unix socket; None keeps the port in `cfg`.
        `port` can be a number, an object with a ``port``, or a function that returns one of these.
    :param kwargs: the `kwargs` of :class:`Supervisor`, and also ``ssh_conn_id``, ``remote_host``, ``conn_timeout``,
        ``cmd_timeout``, ``banner_timeout``, ``environment`` and ``command_prefix``. Each of these SSH arguments
        replaces the field of the same name in the configuration `cfg`. From ``ssh_hook``, only the id of the Airflow
        connection and the host are used.

    The other parameters are the same as for :class:`Supervisor`.
    """

    configuration_class: ClassVar[type[SupervisorAirflowConfiguration]] = SupervisorSSHAirflowConfiguration

    def __init__(
        self,
        dag: DAG | None = None,
        cfg: SupervisorAirflowConfiguration | Mapping[str, Any] | None = None,
        host: Any = None,
        port: Any = None,
        **kwargs: Any,
    ) -> None:
        given = parse_configuration(self.configuration_class, cfg)
        own = {name: kwargs.pop(name) for name in REMOTE_ARGUMENTS if name in kwargs}
        super().__init__(dag, override_remote(given, host_name(host), port_number(port), own), **kwargs)
