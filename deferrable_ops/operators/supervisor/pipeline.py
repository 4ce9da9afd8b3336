"""Gives access to the tasks of a Supervisor by name. In a DAG, other tasks can be chained with a whole Supervisor."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.definitions._internal.mixins import DependencyMixin

from deferrable_ops.operators.high_availability.operator import HighAvailabilityOperator
from deferrable_ops.operators.supervisor.arguments import CHECK, FORCE_KILL
from deferrable_ops.supervisord import SupervisorAirflowConfiguration
from deferrable_ops.triggers.supervisor.client import SupervisorClient

if TYPE_CHECKING:
    from airflow.sdk.definitions.edges import EdgeModifier


class Pipeline(DependencyMixin):
    """The tasks that a Supervisor adds to a DAG.

    :param cfg: configuration of the supervisord that the tasks manage.
    """

    def __init__(self, cfg: SupervisorAirflowConfiguration) -> None:
        self.cfg = cfg
        self.tasks: dict[str, BaseOperator] = {}
        """The tasks. The keys are names of steps, for example ``start-programs``."""

    def task_of(self, name: str) -> BaseOperator:
        """Return the task of this Supervisor that has the given name, for example ``start-programs``."""
        return self.tasks[name]

    @property
    def configure_supervisor(self) -> BaseOperator:
        """The task that writes supervisord's configuration file."""
        return self.task_of("configure-supervisor")

    @property
    def start_supervisor(self) -> BaseOperator:
        """The task that starts supervisord. If supervisord is already running, the task uses the running
        supervisord.
        """
        return self.task_of("start-supervisor")

    @property
    def start_programs(self) -> BaseOperator:
        """The task that starts the programs."""
        return self.task_of("start-programs")

    @property
    def check_programs(self) -> HighAvailabilityOperator:
        """The task that watches the programs.

        The gate tasks downstream of ``check_programs`` are attributes of ``check_programs``, for example
        ``check_programs.stop_pass``.
        """
        check = self.task_of(CHECK)
        assert isinstance(check, HighAvailabilityOperator)
        return check

    @property
    def restart_programs(self) -> BaseOperator:
        """The task that restarts the programs.

        The task ``restart_programs`` runs after the gate task ``check_programs.retrigger_fail``.
        """
        return self.task_of("restart-programs")

    @property
    def teardown(self) -> BaseOperator:
        """The task that decides whether supervisord must stop at the end of this DAG run.

        If supervisord must keep running, this task is skipped.
        """
        return self.task_of("teardown")

    @property
    def stop_programs(self) -> BaseOperator:
        """The task that stops the programs."""
        return self.task_of("stop-programs")

    @property
    def stop_supervisor(self) -> BaseOperator:
        """The task that stops supervisord."""
        return self.task_of("stop-supervisor")

    @property
    def unconfigure_supervisor(self) -> BaseOperator:
        """The task that removes supervisord's configuration file and working directory."""
        return self.task_of("unconfigure-supervisor")

    @property
    def force_kill(self) -> BaseOperator:
        """The task that kills supervisord and its programs.

        This task runs only after a user has cleared it in Airflow.
        """
        return self.task_of(FORCE_KILL)

    @property
    def supervisor_client(self) -> SupervisorClient:
        """An XML-RPC client with which another task on a worker can call supervisord."""
        return SupervisorClient(self.cfg)

    @property
    def roots(self) -> Sequence[DependencyMixin]:
        """A list with the first task of this Supervisor."""
        return [self.configure_supervisor]

    @property
    def leaves(self) -> Sequence[DependencyMixin]:
        """The last tasks of this Supervisor, after which downstream tasks can run: the gate task ``stop_pass``, and the
        last teardown task.
        """
        stopped = [self.stop_supervisor] if self.cfg.stop_on_exit else []
        last = [self.unconfigure_supervisor] if self.cfg.stop_on_exit and self.cfg.cleanup else stopped
        return [self.check_programs.stop_pass, *last]

    def set_upstream(
        self,
        other: DependencyMixin | Sequence[DependencyMixin],
        edge_modifier: EdgeModifier | None = None,
    ) -> None:
        """Run the task or the list of tasks `other` before the tasks of this Supervisor."""
        self.configure_supervisor.set_upstream(other, edge_modifier)

    def set_downstream(
        self,
        other: DependencyMixin | Sequence[DependencyMixin],
        edge_modifier: EdgeModifier | None = None,
    ) -> None:
        """Run the task or the list of tasks `other` after the tasks of this Supervisor."""
        for leaf in self.leaves:
            leaf.set_downstream(other, edge_modifier)


def chain_in_order(*tasks: Any) -> None:
    """Set each given task upstream of the next one, so that the tasks run in the given order."""
    for before, after in pairwise(tasks):
        before >> after
