"""Launch a Dataflow job and wait for it, wait for one that runs, or stop some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperatorLink

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.base import TriggererOperator, optional_seconds, seconds
from deferrable_ops.plain_data import is_known_later
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.dataflow.arguments import validate_launch, validate_sensor, validate_stop
from deferrable_ops.triggers.dataflow.follow import DEFAULT_POLL_INTERVAL, JOB_ID, JOB_LINK_KEY, job_link
from deferrable_ops.triggers.dataflow.request import Kind, classic_body
from deferrable_ops.triggers.dataflow.triggers import (
    DataflowJobTrigger,
    DataflowLaunchTrigger,
    DataflowStopTrigger,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = [
    "DataflowFlexTemplateOperator",
    "DataflowJobLink",
    "DataflowJobSensor",
    "DataflowStopJobOperator",
    "DataflowTemplateOperator",
    "DeferrableDataflowOperator",
]


class DataflowJobLink(BaseOperatorLink):
    """The job in the Google Cloud console."""

    name = "Dataflow job"

    @property
    def xcom_key(self) -> str:
        """The XCom that holds the link."""
        return JOB_LINK_KEY

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the link for a worker, which writes it over the trigger's whenever it is done with the task."""
        from airflow.sdk.execution_time.xcom import XCom

        if not getattr(operator, "resumed", False):
            return ""  # no trigger has run yet
        if operator.job_id_of_wait is not None:
            return job_link(operator.project_id, operator.region, operator.job_id_of_wait)
        return str(XCom.get_value(ti_key=ti_key, key=JOB_LINK_KEY) or "")


class _DataflowTask(TriggererOperator):
    """What every task has that asks Dataflow for something. :class:`DataflowJobSensor` describes it."""

    ui_color = "#e1f0fc"
    place_fields: ClassVar[tuple[str, ...]] = ("project_id", "region", "gcp_conn_id", "impersonation_chain")

    def __init__(
        self,
        *,
        project_id: str,
        region: str,
        gcp_conn_id: str | None = None,
        impersonation_chain: str | Sequence[str] | None = None,
        poll_interval: timedelta | float = DEFAULT_POLL_INTERVAL,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.project_id = project_id
        self.region = region
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        self.poll_interval = seconds("poll_interval", poll_interval)

    def _arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.trigger_class.arguments}


class _FollowingTask(_DataflowTask):
    """What every task has that waits for one job. :class:`DataflowJobSensor` describes it."""

    operator_extra_links = (DataflowJobLink(),)

    # On a worker that ends the task: whether it does, and for which job, if that went well.
    resumed = False
    job_id_of_wait: str | None = None

    def __init__(
        self, *, expected_state: str | None = None, log_messages: str | None = "WARNING", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.expected_state = expected_state
        self.log_messages = log_messages

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Take over what the trigger came to, and return the job.

        :raises AirflowException: the wait failed; Airflow retries the task if it has retries.
        """
        self.resumed = True
        value = super().execute_complete(context, event)
        if isinstance(value, dict) and "id" in value:
            self.job_id_of_wait = value["id"]
            if self.do_xcom_push:
                context["ti"].xcom_push(JOB_ID, value["id"])  # in dag.test() no trigger can
        return value

    def trigger_kwargs(self) -> dict[str, Any]:
        """Return what the task's trigger is made with."""
        # None is a choice here, and not what the trigger takes when nothing is said.
        return super().trigger_kwargs() | {"log_messages": self.log_messages}


class _LaunchingTask(_FollowingTask):
    """What the tasks that launch a job have in common."""

    trigger_class: ClassVar[type[TaskTrigger]] = DataflowLaunchTrigger
    kind: ClassVar[Kind]
    template_fields: Sequence[str] = (
        *_DataflowTask.place_fields,
        "body",
        "job_name",
        "labels",
        "expected_state",
        "when_killed",
        "log_messages",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"body": "json", "labels": "json"}

    def __init__(
        self,
        *,
        body: Any = None,
        job_name: str | None = None,
        labels: dict[str, str] | None = None,
        on_kill: str = "cancel",
        wait_until_finished: bool = True,
        launch_timeout: timedelta | float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.body = body
        self.job_name = job_name
        self.labels = labels
        self.when_killed = on_kill  # Airflow calls on_kill() of a task that runs on a worker
        self.wait_until_finished = wait_until_finished
        self.launch_timeout = optional_seconds("launch_timeout", launch_timeout)
        validate_launch(self.kind, self._arguments(), self.task_id, is_known_later)


class DataflowFlexTemplateOperator(_LaunchingTask):
    """Launch a flex template once, and wait for its job in the Triggerer.

    The job becomes the task's XCom, as a dict in the API's JSON; XCom ``job_id`` and the task link "Dataflow job" are
    there as soon as the job is.

    :param project_id: the Google Cloud project of the job.
    :param region: its region, as "europe-west1".
    :param body: the API's LaunchFlexTemplateParameter, or a whole LaunchFlexTemplateRequest, in camelCase or in
        snake_case. The job's name and labels of it count where `job_name` and `labels` say nothing.
    :param job_name: what the job's name begins with; by default the body's job name, else the task's id. A hash of the
        attempt follows, and all of it has at most 63 characters.
    :param labels: labels of the job, besides those in the body.
    :param on_kill: what becomes of the job when a user ends or clears the task, when its deadline passes, or when the
        task fails while the job runs: "cancel" (the default), "drain" (a streaming job that runs; any other is
        cancelled) or "leave".
    :param wait_until_finished: False ends the task once the job is accepted.
    :param launch_timeout: for how long a launch is tried again that Dataflow did not take for want of quota or of an
        answer, as a timedelta or in seconds; by default until the task's deadline.
    :param expected_state: see :class:`DataflowJobSensor`, as `log_messages`, `poll_interval`, `gcp_conn_id` and
        `impersonation_chain`.
    :raises InputError: an argument is wrong; the message names it and the fix.
    """

    kind: ClassVar[Kind] = "flex"

    def __init__(self, *, project_id: str, region: str, body: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(project_id=project_id, region=region, body=body, **kwargs)


class DataflowTemplateOperator(_LaunchingTask):
    """Launch a classic template once, and wait for its job in the Triggerer.

    :param template: the template's path, as "gs://dataflow-templates/latest/Word_Count".
    :param parameters: the template's parameters.
    :param environment: the API's RuntimeEnvironment, in camelCase or in snake_case.
    :param body: instead of these, or for what they do not say: the API's LaunchTemplateParameters with the path as
        ``gcsPath``, or a whole LaunchTemplateRequest.

    The other parameters are those of :class:`DataflowFlexTemplateOperator`.
    """

    kind: ClassVar[Kind] = "classic"

    def __init__(
        self,
        *,
        project_id: str,
        region: str,
        template: str | None = None,
        parameters: dict[str, Any] | None = None,
        environment: dict[str, Any] | None = None,
        body: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        given = {"gcsPath": template, "parameters": parameters, "environment": environment}
        whole = classic_body(body, {name: value for name, value in given.items() if value is not None})
        super().__init__(project_id=project_id, region=region, body=whole, **kwargs)


class DeferrableDataflowOperator(DataflowFlexTemplateOperator):
    """Launch a flex template, written as for the package deferrable_dataflow_operator.

    :param trigger_kwargs: a dict with `project_id`, `region` and `body`; `gcp_conn_id` and every other argument of
        :class:`DataflowFlexTemplateOperator` may be in it or beside it.
    :param start_from_trigger: False makes the task start on a worker, which defers it.
    """

    def __init__(
        self, *, trigger_kwargs: dict[str, Any], start_from_trigger: bool = True, **kwargs: Any
    ) -> None:
        if not isinstance(trigger_kwargs, Mapping):
            raise InputError("trigger_kwargs= must be a dict with project_id, region and body")
        missing = [name for name in ("project_id", "region", "body") if trigger_kwargs.get(name) is None]
        if missing:
            raise InputError(f"trigger_kwargs= lacks {missing[0]!r}; it takes project_id, region and body")
        twice = next((name for name in trigger_kwargs if name in kwargs), None)
        if twice is not None:
            raise InputError(f"{twice}= is given twice: leave it out of trigger_kwargs=")
        super().__init__(**trigger_kwargs, **kwargs)
        self._may_start_from_trigger = start_from_trigger

    @property
    def worker_start_reason(self) -> str | None:
        """What makes this task start on a worker, which then defers it; None when it starts in the triggerer."""
        if not self._may_start_from_trigger:
            return "it has start_from_trigger=False"
        return super().worker_start_reason


class DataflowJobSensor(_FollowingTask):
    """Wait for a job that something else has launched. Its end is not tied to the task's: it is never stopped.

    :param project_id: the Google Cloud project of the job.
    :param region: its region, as "europe-west1".
    :param job_id: the job's id; when it is updated, the job that replaces it is waited for.
    :param expected_state: "done", "running" or "drained"; by default "running" for a streaming job, "done" for any
        other.
    :param log_messages: the least importance of the job's messages that appear in the task's log: "ERROR", "WARNING"
        (the default), "BASIC", "DETAILED" or "DEBUG"; None: none appear.
    :param poll_interval: how often the region's jobs are looked at, as a timedelta or in seconds; 30 s by default. All
        tasks of a region share one look, at the smallest interval among them.
    :param gcp_conn_id: an Airflow connection of the google provider, whose package must then be installed on the
        triggerers; by default the application default credentials.
    :param impersonation_chain: a service account to act as, or a list of them, the last one acting.
    :raises InputError: an argument is wrong; the message names it and the fix.
    """

    trigger_class: ClassVar[type[TaskTrigger]] = DataflowJobTrigger
    template_fields: Sequence[str] = (*_DataflowTask.place_fields, "job_id", "expected_state", "log_messages")

    def __init__(self, *, project_id: str, region: str, job_id: str, **kwargs: Any) -> None:
        super().__init__(project_id=project_id, region=region, **kwargs)
        self.job_id = job_id
        validate_sensor(self._arguments(), is_known_later)


class DataflowStopJobOperator(_DataflowTask):
    """Cancel or drain a job, or all active jobs whose names begin alike, and wait until they have ended.

    A job that has ended already is fine, and so is a prefix that no active job has. The XCom is the job for a
    `job_id`, and a list of jobs for a `job_name_prefix`.

    :param job_id: the job's id.
    :param job_name_prefix: instead of it: what the jobs' names begin with.
    :param how: "cancel" (the default), or "drain": a streaming job that runs; any other is cancelled.
    :param wait_until_finished: False ends the task once the jobs are asked to stop.

    The other parameters are those of :class:`DataflowJobSensor`.
    """

    trigger_class: ClassVar[type[TaskTrigger]] = DataflowStopTrigger
    template_fields: Sequence[str] = (*_DataflowTask.place_fields, "job_id", "job_name_prefix", "how")

    def __init__(
        self,
        *,
        project_id: str,
        region: str,
        job_id: str | None = None,
        job_name_prefix: str | None = None,
        how: str = "cancel",
        wait_until_finished: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(project_id=project_id, region=region, **kwargs)
        self.job_id = job_id
        self.job_name_prefix = job_name_prefix
        self.how = how
        self.wait_until_finished = wait_until_finished
        validate_stop(self._arguments(), is_known_later)
