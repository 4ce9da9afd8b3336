"""Operators that launch Dataflow jobs, wait for existing jobs, and stop jobs."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperatorLink

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.base import TriggererOperator, optional_seconds, seconds
from deferrable_ops.operators.dataflow.provider_names import (
    check_deferrable,
    environment_of,
    given_once,
    how_of,
    on_kill_of,
    refuse_cancel_timeout,
    refuse_job_name,
    states_of,
)
from deferrable_ops.operators.templates import renders_unchanged
from deferrable_ops.plain_data import is_known_later
from deferrable_ops.triggers.base import DEFAULT_TIMEOUT, TaskTrigger
from deferrable_ops.triggers.dataflow.arguments import validate_launch, validate_sensor, validate_stop
from deferrable_ops.triggers.dataflow.body_fields import check_body_fields
from deferrable_ops.triggers.dataflow.follow import DEFAULT_POLL_INTERVAL, JOB_ID, JOB_LINK_KEY, job_link
from deferrable_ops.triggers.dataflow.request import Kind, classic_body
from deferrable_ops.triggers.dataflow.states import awaits_drained
from deferrable_ops.triggers.dataflow.triggers import (
    DataflowJobTrigger,
    DataflowLaunchTrigger,
    DataflowStopTrigger,
)

if TYPE_CHECKING:
    from airflow.sdk import Context


class DataflowJobLink(BaseOperatorLink):
    """The link in Airflow's UI from a task to its job in the Google Cloud console."""

    name = "Dataflow job"

    @property
    def xcom_key(self) -> str:
        """The key of the XCom that contains the link."""
        return JOB_LINK_KEY

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """Return the link to the job.

        Airflow calls this method when a task ends on a worker. The returned link then replaces the link that the
        trigger has stored.
        """
        from airflow.sdk.execution_time.xcom import XCom

        if not getattr(operator, "resumed", False):
            # No trigger of the task has run yet.
            return ""
        if operator.job_id_of_wait is not None and operator.project_id:
            return job_link(operator.project_id, operator.region, operator.job_id_of_wait)
        return str(XCom.get_value(ti_key=ti_key, key=JOB_LINK_KEY) or "")


class _DataflowTask(TriggererOperator):
    """Base class with the arguments that all Dataflow operators have. :class:`DataflowJobSensor` documents these
    arguments.

    The arguments `location`, `poll_sleep` and `deferrable` have the google provider's names, so that DAGs for the
    google provider need few changes.
    """

    target_fields: ClassVar[tuple[str, ...]] = ("project_id", "region", "gcp_conn_id", "impersonation_chain")

    def __init__(
        self,
        *,
        project_id: str | None = None,
        region: str | None = None,
        location: str | None = None,
        gcp_conn_id: str | None = None,
        impersonation_chain: str | Sequence[str] | None = None,
        poll_interval: timedelta | float | None = None,
        poll_sleep: float | None = None,
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_deferrable(deferrable)
        self.project_id = project_id
        self.region: Any = given_once("region", region, "location", location)
        self.gcp_conn_id = gcp_conn_id
        self.impersonation_chain = impersonation_chain
        poll_interval = given_once("poll_interval", poll_interval, "poll_sleep", poll_sleep)
        self.poll_interval = (
            DEFAULT_POLL_INTERVAL if poll_interval is None else seconds("poll_interval", poll_interval)
        )

    def _arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.trigger_class.arguments}


class _FollowingTask(_DataflowTask):
    """Base class with the arguments of the operators that wait for one Dataflow job. :class:`DataflowJobSensor`
    documents these arguments.
    """

    operator_extra_links = (DataflowJobLink(),)

    # A worker that ends the task after its trigger sets both attributes. `resumed` is then True, and the other
    # attribute is the job's id after a success.
    resumed = False
    job_id_of_wait: str | None = None

    default_result: ClassVar[str] = "job"

    def __init__(
        self,
        *,
        expected_state: str | None = None,
        expected_states: Collection[str] | None = None,
        log_messages: str | None = "WARNING",
        result: str | None = None,
        expected_terminal_state: str | None = None,
        expected_statuses: Collection[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.expected_state = expected_state
        self.expected_states = states_of(expected_states, expected_terminal_state, expected_statuses)
        self.log_messages = log_messages
        self.result = result or self.default_result

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Return the task's result. Airflow calls this method when the trigger has resumed the task on a worker.

        :raises AirflowException: if the wait failed; Airflow retries the task if it has retries.
        """
        self.resumed = True
        value = super().execute_complete(context, event)
        job_id = value.get("id") if isinstance(value, dict) else value
        if job_id is not None:
            self.job_id_of_wait = job_id
            if self.do_xcom_push:
                # In dag.test() the trigger cannot set the XCom.
                context["ti"].xcom_push(JOB_ID, job_id)
        return value

    def trigger_kwargs(self) -> dict[str, Any]:
        """Return the arguments of the task's trigger."""
        # None means that no messages are logged. It must be passed on, because the trigger's default is "WARNING".
        return super().trigger_kwargs() | {"log_messages": self.log_messages}


class _LaunchingTask(_FollowingTask):
    """Base class with the arguments of the operators that launch a Dataflow job."""

    trigger_class: ClassVar[type[TaskTrigger]] = DataflowLaunchTrigger
    kind: ClassVar[Kind]
    template_fields: Sequence[str] = (
        *_DataflowTask.target_fields,
        "body",
        "job_name",
        "labels",
        "expected_state",
        "expected_states",
        "result",
        "when_killed",
        "on_timeout",
        "transform_name_mapping",
        "log_messages",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"body": "json", "labels": "json"}

    def __init__(
        self,
        *,
        body: Any = None,
        job_name: str | None = None,
        labels: dict[str, str] | None = None,
        on_kill: str | None = None,
        on_timeout: str | None = None,
        wait_until_finished: bool | None = True,
        launch_timeout: timedelta | float | None = None,
        append_job_name: bool = True,
        update: bool = False,
        transform_name_mapping: dict[str, str] | None = None,
        drain_pipeline: bool | None = None,
        cancel_on_kill: bool | None = None,
        cancel_timeout: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        refuse_cancel_timeout(cancel_timeout)
        self.body = body
        self.job_name = job_name
        self.labels = labels
        # `on_kill` itself cannot be the name, because Airflow calls the method `on_kill` on a worker.
        self.when_killed = on_kill_of(on_kill, drain_pipeline, cancel_on_kill) or "cancel"
        self.on_timeout = on_timeout
        self.append_job_name = append_job_name
        self.update = update
        self.transform_name_mapping = transform_name_mapping
        self.wait_until_finished = wait_until_finished is not False
        self.launch_timeout = optional_seconds("launch_timeout", launch_timeout)
        validate_launch(self.kind, self._arguments(), self.task_id, is_known_later)
        if renders_unchanged(body):
            check_body_fields(self.kind, body)
        if self._awaits_drained() and on_timeout is None and self._deadline_seconds() == DEFAULT_TIMEOUT:
            warnings.warn(
                f"the task {self.task_id!r} fails if its job is not drained after {DEFAULT_TIMEOUT / 86_400:g} days, "
                "but the job keeps running. To change this time, set timeout=. To stop the job after this time, set "
                "on_timeout='drain' or 'cancel'. To keep the job running without this warning, set on_timeout='leave'",
                UserWarning,
                stacklevel=2,
            )

    def _awaits_drained(self) -> bool:
        states = self.expected_states
        known = states is None or not any(map(is_known_later, states))
        return known and awaits_drained(self.expected_state, states)


class DataflowFlexTemplateOperator(_LaunchingTask):
    """Launch a flex template once, and wait for its job in the Triggerer.

    The task's return value is the job, as a dict in the JSON format of the Dataflow API. The XCom ``job_id`` and the
    task link "Dataflow job" are set as soon as the job exists.

    :param project_id: the Google Cloud project of the job; by default the project of the credentials.
    :param region: the region of the job, e.g. "europe-west1".
    :param body: the launch parameters: the API's LaunchFlexTemplateParameter, or a whole LaunchFlexTemplateRequest, in
        camelCase or in snake_case. The arguments `job_name` and `labels` take precedence over the job name and the
        labels in the body.
    :param job_name: the prefix of the job's name; by default the body's job name, or the task's id. The operator
        appends a hash of the task attempt to this prefix. The job's name has at most 63 characters.
    :param labels: labels of the job, in addition to those in the body.
    :param on_kill: what happens to the job when a user ends or clears the task, or when the task fails while the job
        runs. "cancel" (the default) cancels the job. "drain" drains a running streaming job, and cancels other jobs.
        "leave" does not stop the job.
    :param on_timeout: what happens to the job when the task's deadline passes: "cancel", "drain" or "leave". By
        default, a streaming job keeps running, and `on_kill` applies to other jobs.
    :param append_job_name: with False, the job's name is `job_name` without a hash. The task fails if another job with
        this name is active, unless `update` is True.
    :param update: with True, the launch replaces the running streaming job with the name `job_name`, if there is such a
        job. `update` needs ``append_job_name=False``.
    :param transform_name_mapping: for `update`, a dict with the transforms that have new names. Each key is the name
        of a transform in the replaced job, and each value is the transform's name in the new job.
    :param wait_until_finished: with False, the task ends as soon as Dataflow has accepted the job.
    :param launch_timeout: for how long a launch is retried if the quota is used up or Dataflow does not respond, as a
        timedelta or in seconds. By default, a launch is retried until the task's deadline. After the errors INTERNAL,
        UNKNOWN and ABORTED, however, a launch is retried for at most one hour by default.
    :param expected_state: see :class:`DataflowJobSensor`, which also describes the parameters `expected_states`,
        `result`, `log_messages`, `poll_interval`, `gcp_conn_id` and `impersonation_chain`.
    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """

    kind: ClassVar[Kind] = "flex"

    def __init__(self, *, body: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(body=body, **kwargs)


class DataflowTemplateOperator(_LaunchingTask):
    """Launch a classic template once, and wait for its job in the Triggerer.

    The task's return value is the job's id, as in the google provider. The XCom ``job`` is the job, as a dict in the
    JSON format of the Dataflow API.

    :param template: the template's path, e.g. "gs://dataflow-templates/latest/Word_Count".
    :param parameters: the values of the template's parameters, by parameter name.
    :param environment: the settings with which the job runs: the API's RuntimeEnvironment, in camelCase or in
        snake_case.
    :param body: the launch parameters: the API's LaunchTemplateParameters with the template's path as ``gcsPath``, or
        a whole LaunchTemplateRequest. Use `body` instead of `template`, `parameters` and `environment`, or for fields
        that these three arguments do not set.

    The other arguments are those of :class:`DataflowFlexTemplateOperator`.
    """

    kind: ClassVar[Kind] = "classic"
    default_result: ClassVar[str] = "id"

    def __init__(
        self,
        *,
        template: str | None = None,
        parameters: dict[str, Any] | None = None,
        environment: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        dataflow_default_options: dict[str, Any] | None = None,
        body: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        environment = environment_of(environment, dataflow_default_options, options)
        given = {"gcsPath": template, "parameters": parameters, "environment": environment}
        whole = classic_body(body, {name: value for name, value in given.items() if value is not None})
        super().__init__(body=whole, **kwargs)


class DeferrableDataflowOperator(DataflowFlexTemplateOperator):
    """Launch a flex template. The arguments are those of the class with this name in the package
    deferrable_dataflow_operator.

    :param trigger_kwargs: a dict with `project_id`, `region` and `body`. `gcp_conn_id` and the other arguments of
        :class:`DataflowFlexTemplateOperator` may be in this dict, or be given as separate arguments.
    :param start_from_trigger: with False, the task starts on a worker, which defers the task.
    """

    def __init__(
        self, *, trigger_kwargs: dict[str, Any], start_from_trigger: bool = True, **kwargs: Any
    ) -> None:
        if not isinstance(trigger_kwargs, Mapping):
            raise InputError("trigger_kwargs= must be a dict with region and body")
        names = {"region": ("region", "location"), "body": ("body",)}
        missing = [
            name
            for name, aliases in names.items()
            if all(trigger_kwargs.get(alias) is None for alias in aliases)
        ]
        if missing:
            raise InputError(f"trigger_kwargs= has no {missing[0]!r}; add region and body to this dict")
        twice = next((name for name in trigger_kwargs if name in kwargs), None)
        if twice is not None:
            raise InputError(
                f"{twice}= is given twice, as an argument and in trigger_kwargs=; remove it from trigger_kwargs="
            )
        super().__init__(**trigger_kwargs, **kwargs)
        self._may_start_from_trigger = start_from_trigger

    @property
    def worker_start_reason(self) -> str | None:
        """The reason why the task starts on a worker and is then deferred; None if it starts in the triggerer."""
        if not self._may_start_from_trigger:
            return "it has start_from_trigger=False"
        return super().worker_start_reason


class DataflowJobSensor(_FollowingTask):
    """Wait for a job that another task or system has launched. The task never stops the job.

    :param project_id: the Google Cloud project of the job; by default the project of the credentials.
    :param region: the region of the job, e.g. "europe-west1".
    :param job_id: the id of the job to wait for. If Dataflow replaces the job by an updated job, the task waits for
        the updated job.
    :param expected_state: the state of the job for which the task waits: "done", "running" or "drained"; by default
        "running" for a streaming job, otherwise "done".
    :param expected_states: the states of the job with which the task succeeds: a set with the API's names, e.g.
        {"JOB_STATE_DONE", "JOB_STATE_CANCELLED"}. The task fails if the job ends in another state. Give either
        `expected_states` or `expected_state`.
    :param result: the return value of the task: "job" is the job in the JSON format of the Dataflow API, and "id" is
        the job's id. "metrics" is the job with its metrics as the list ``metrics``. The default is "job", except for
        classic templates.
    :param log_messages: messages of the job with at least this importance are written to the task's log: "ERROR",
        "WARNING" (the default), "BASIC", "DETAILED" or "DEBUG". With ``log_messages=None``, no messages are written.
    :param poll_interval: the time between two polls of the region's jobs, as a timedelta or in seconds; 30 s by
        default. All tasks of a region share the polls. The smallest `poll_interval` of these tasks is used.
    :param gcp_conn_id: the id of the Airflow connection (of the google provider) with which the Dataflow API is
        called. If a connection is given, the google provider must be installed on the triggerers. By default, the
        connection ``google_cloud_default`` is used. Without this connection or without the google provider, the
        application default credentials are used.
    :param impersonation_chain: the service account to impersonate, or a chain of service accounts as a list that ends
        with the account to impersonate.
    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """

    trigger_class: ClassVar[type[TaskTrigger]] = DataflowJobTrigger
    template_fields: Sequence[str] = (
        *_DataflowTask.target_fields,
        "job_id",
        "expected_state",
        "expected_states",
        "result",
        "log_messages",
    )

    def __init__(self, *, job_id: str | None = None, job_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if job_name is not None:
            refuse_job_name()
        self.job_id = job_id
        validate_sensor(self._arguments(), is_known_later)


class DataflowStopJobOperator(_DataflowTask):
    """Drain or cancel one job, or all unfinished jobs with a name prefix, and wait until these jobs are finished.

    The task also succeeds if the job is finished already, or if no unfinished job has the prefix. With `job_id`, the
    return value is the job. With `job_name_prefix`, the return value is a list of jobs.

    :param job_id: the id of the job to stop.
    :param job_name_prefix: the task stops all unfinished jobs whose names begin with this prefix, including jobs
        that have not started or are draining. Give either `job_name_prefix` or `job_id`.
    :param how: how to stop the jobs: "drain" (the default) drains running streaming jobs, and cancels other jobs.
        "cancel" cancels all jobs.
    :param wait_until_finished: with False, the task ends as soon as Dataflow has accepted the requests to stop the
        jobs.

    The other arguments are those of :class:`DataflowJobSensor`.
    """

    trigger_class: ClassVar[type[TaskTrigger]] = DataflowStopTrigger
    template_fields: Sequence[str] = (*_DataflowTask.target_fields, "job_id", "job_name_prefix", "how")

    def __init__(
        self,
        *,
        job_id: str | None = None,
        job_name_prefix: str | None = None,
        how: str | None = None,
        wait_until_finished: bool = True,
        drain_pipeline: bool | None = None,
        stop_timeout: timedelta | float | None = None,
        **kwargs: Any,
    ) -> None:
        if stop_timeout is not None:
            kwargs["timeout"] = given_once("timeout", kwargs.get("timeout"), "stop_timeout", stop_timeout)
        super().__init__(**kwargs)
        self.job_id = job_id
        self.job_name_prefix = job_name_prefix
        self.how = how_of("how", how, drain_pipeline) or "drain"
        self.wait_until_finished = wait_until_finished
        validate_stop(self._arguments(), is_known_later)
