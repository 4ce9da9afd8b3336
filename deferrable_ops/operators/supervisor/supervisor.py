"""Run programs under a supervisord that belongs to a DAG, here or on a machine that is reached by SSH."""

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
    STARTS,
    STOPS,
    override_remote,
    parse_configuration,
    parse_steps,
    split_task_arguments,
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


class Supervisor(Pipeline):
    """A supervisord on the triggerer's host and what it runs, as tasks of a DAG: each can be chained, or replaced.

    It stands for all of them in ``before >> supervisor >> after``: `after` runs when the programs have ended well and
    supervisord is gone. The DAG is made to have one active run at a time, and no catch-up.

    :param dag: the DAG; by default the one of the ``with DAG(...)`` around.
    :param cfg: the configuration, or a dict with its fields. Without a ``working_dir``, that is named after `dag` and
        `name`.
    :param steps: tasks of the same DAG to put in the places of its own, by the name of the step, as
        ``restart-programs``; for ``check-programs``, a HighAvailabilityOperator.
    :param name: what the ids of the tasks begin with; by default the DAG's id.
    :param task_id: the name that airflow-config has for it. It names no task.
    :param kwargs: arguments of an operator, as ``retries``, ``queue`` and ``owner``, for all tasks; ``trigger_rule``,
        ``depends_on_past`` and ``wait_for_downstream`` are the first one's.
    :raises InputError: an argument is wrong; the message names it and the fix.
    """

    configuration_class: ClassVar[type[SupervisorAirflowConfiguration]] = SupervisorAirflowConfiguration

    def __init__(
        self,
        dag: DAG | None = None,
        cfg: SupervisorAirflowConfiguration | Mapping[str, Any] | None = None,
        *,
        steps: Mapping[str, Any] | None = None,
        name: str | None = None,
        task_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        found = dag or DagContext.get_current()
        if found is None:
            raise InputError(
                f"{type(self).__name__} is in no DAG; make it in a `with DAG(...)`, or give dag="
            )
        self.dag = found
        self.name = name or found.dag_id
        given = parse_configuration(self.configuration_class, cfg)
        super().__init__(with_working_dir(given, found, self.name, kwargs.get("task_group")))
        self._steps = parse_steps(steps or {})
        self._arguments, self._of_the_first = split_task_arguments(kwargs, self.cfg.pool)
        self.setup_dag()
        self._make_tasks()
        self._chain()

    def setup_dag(self) -> None:
        """Set what a DAG must have whose runs share one supervisord."""
        self.dag.catchup = False
        self.dag.max_active_runs = 1

    def get_base_operator_kwargs(self) -> dict[str, Any]:
        """Return the arguments that all tasks have."""
        return {"dag": self.dag, **self._arguments}

    def get_step_kwargs(self, step: str) -> dict[str, Any]:
        """Return the arguments that the task of a step has besides.

        :param step: its name; when it is made, those that it refers to are in ``tasks``.
        """
        if step == CHECK:
            return {"cfg": self.cfg}
        own: dict[str, Any] = {"step": step, "cfg": self.cfg, "check_task_id": self.check_programs.task_id}
        if step in STARTS:
            own["rules"] = self.check_programs.rules
        if step == STARTS[0]:
            own |= self._of_the_first
        if step in STOPS:
            own["gate_task_id"] = self.teardown.task_id
        if step == "unconfigure-supervisor" and not self.cfg.cleanup:
            own["skip_because"] = "cleanup=False: the configuration and the working directory stay"
        if step == FORCE_KILL:
            gate = self.task_of("force-kill-dag").task_id
            own |= {"gate_task_id": gate, "trigger_rule": "all_done", "retries": 0}
        return own

    def get_step_operator(self, step: str) -> Any:
        """Return the task of a step, which a subclass may make otherwise.

        :param step: its name, as ``start-supervisor``.
        """
        arguments = {
            "task_id": f"{self.name}-{step}",
            **self.get_base_operator_kwargs(),
            **self.get_step_kwargs(step),
        }
        if step == CHECK:
            return SupervisorCheckOperator(**arguments)
        task = SupervisorStepOperator(**arguments)
        # Airflow lets a teardown run when a user ends the whole run, and skips everything else.
        return task.as_teardown() if step in STOPS else task

    def _make_tasks(self) -> None:
        for step in (CHECK, *STARTS, "restart-programs"):
            self._make_step(step)
        check = self.check_programs
        retriggers = [check.retrigger_pass.task_id, check.retrigger_fail.task_id]
        self.tasks["teardown"] = SupervisorTeardownGate(
            **self._of_gate("teardown"),
            first_task_id=self.configure_supervisor.task_id,
            check_task_id=check.task_id,
            retriggers=retriggers,
            stop_on_exit=self.cfg.stop_on_exit,
        ).as_teardown()
        for step in STOPS:
            self._make_step(step)
        switch = SupervisorSwitch(**self._of_gate("force-kill-dag"), clears="")
        self.tasks["force-kill-dag"] = switch
        self._make_step(FORCE_KILL)
        switch.clears = self.force_kill.task_id
        watched = [*STARTS, "restart-programs", *STOPS]
        self.tasks["check-config-failed"] = SupervisorAlarm(
            **self._of_gate("check-config-failed", "on_failure_callback"),
            task_ids=[self.task_of(step).task_id for step in watched],
            leaf_task_id=f"{check.task_id}-force-dag-fail",
        ).as_teardown(on_failure_fail_dagrun=True)

    def _make_step(self, step: str) -> None:
        made = self._steps.get(step) or self.get_step_operator(step)
        if step == CHECK and not isinstance(made, HighAvailabilityOperator):
            raise InputError(f"steps[{CHECK!r}] must be a HighAvailabilityOperator: its branches are needed")
        self.tasks[step] = made

    def _of_gate(self, suffix: str, *without: str) -> dict[str, Any]:
        shared = {key: value for key, value in self.get_base_operator_kwargs().items() if key not in without}
        return {**shared, "task_id": f"{self.name}-{suffix}"}

    def _chain(self) -> None:
        check = self.check_programs
        starts = [self.task_of(step) for step in STARTS]
        stops = [self.task_of(step) for step in STOPS]
        chain_in_order(*starts, check)
        check.retrigger_fail >> self.restart_programs
        branches = [check.stop_pass, check.stop_fail, check.retrigger_pass, check.retrigger_fail]
        branches >> self.teardown
        chain_in_order(self.teardown, *stops)
        chain_in_order(self.task_of("force-kill-dag"), self.force_kill)
        [*starts, self.restart_programs, *stops] >> self.task_of("check-config-failed")


class SupervisorSSH(Supervisor):
    """A supervisord on a machine that is reached by SSH, and what it runs, as tasks of a DAG.

    :param host: the machine, in place of the connection's: its name, an object with a ``name`` as airflow-pydantic's
        Host, or a function that returns one of them, which is called whenever the DAG is parsed. Whoever logs in, and
        with which key, the connection says.
    :param port: where an inet server listens besides the Unix socket: a number, an object with a ``port``, or such a
        function.
    :param kwargs: also ``ssh_conn_id``, ``remote_host``, ``conn_timeout``, ``cmd_timeout``, ``banner_timeout``,
        ``environment`` and ``command_prefix``, in place of the configuration's.

    The other parameters are those of :class:`Supervisor`.
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
