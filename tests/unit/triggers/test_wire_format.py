"""Airflow's database and the inbox store a trigger's classpath and kwargs: each must be importable in every release."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
from airflow.triggers.base import BaseTrigger

import deferrable_ops.triggers
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.webhook import WebhookTrigger

# Stored triggers have these classpaths. Do not change them; only add to them.
CLASSPATHS = [
    "deferrable_ops.triggers.dataflow.DataflowJobTrigger",
    "deferrable_ops.triggers.dataflow.DataflowLaunchTrigger",
    "deferrable_ops.triggers.dataflow.DataflowStopTrigger",
    "deferrable_ops.triggers.events.EventsTrigger",
    "deferrable_ops.triggers.events.PublishEventTrigger",
    "deferrable_ops.triggers.high_availability.HighAvailabilityGateTrigger",
    "deferrable_ops.triggers.high_availability.HighAvailabilityPauseTrigger",
    "deferrable_ops.triggers.high_availability.HighAvailabilityTrigger",
    "deferrable_ops.triggers.supervisor.SupervisorAlarmTrigger",
    "deferrable_ops.triggers.supervisor.SupervisorCheckTrigger",
    "deferrable_ops.triggers.supervisor.SupervisorDueStepTrigger",
    "deferrable_ops.triggers.supervisor.SupervisorStepTrigger",
    "deferrable_ops.triggers.supervisor.SupervisorSwitchTrigger",
    "deferrable_ops.triggers.supervisor.SupervisorTeardownTrigger",
    "deferrable_ops.triggers.webhook.WebhookTrigger",
]

# A serialized DAG and Airflow's database do not contain arguments that have their default. Do not change a default.
ALL_DEFAULTS = {"timeout": 604_800.0, "do_xcom_push": True}
DEFAULTS: dict[str, dict[str, object]] = {
    "deferrable_ops.triggers.dataflow.DataflowJobTrigger": {
        "job_id": "",
        "log_messages": "WARNING",
        "poll_interval": 30.0,
        "project_id": "",
        "region": "",
        "result": "job",
    },
    "deferrable_ops.triggers.dataflow.DataflowLaunchTrigger": {
        "append_job_name": True,
        "kind": "flex",
        "log_messages": "WARNING",
        "poll_interval": 30.0,
        "project_id": "",
        "region": "",
        "result": "job",
        "update": False,
        "wait_until_finished": True,
        "when_killed": "cancel",
    },
    "deferrable_ops.triggers.dataflow.DataflowStopTrigger": {
        "how": "cancel",
        "poll_interval": 30.0,
        "project_id": "",
        "region": "",
        "wait_until_finished": True,
    },
    "deferrable_ops.triggers.events.EventsTrigger": {
        "keep": "first",
        "single": False,
        "soft_fail": False,
        "timezone": "UTC",
    },
    "deferrable_ops.triggers.events.PublishEventTrigger": {
        "kafka_conn_id": "kafka_default",
        "relaunch_when_lost": False,
        "transactional": True,
    },
    "deferrable_ops.triggers.high_availability.HighAvailabilityGateTrigger": {
        "check_task_id": "",
        "fails": False,
        "result": "",
    },
    "deferrable_ops.triggers.high_availability.HighAvailabilityTrigger": {
        "check": "",
        "check_timeout": 300.0,
        "soft_fail": False,
    },
    "deferrable_ops.triggers.supervisor.SupervisorAlarmTrigger": {
        "check_task_id": "",
        "leaf_task_id": "",
        "task_ids": (),
    },
    "deferrable_ops.triggers.supervisor.SupervisorCheckTrigger": {
        "check": "",
        "check_timeout": 300.0,
        "configuration": "",
        "soft_fail": False,
    },
    "deferrable_ops.triggers.supervisor.SupervisorDueStepTrigger": {
        "check_task_id": "",
        "configuration": "",
        "step": "",
    },
    "deferrable_ops.triggers.supervisor.SupervisorStepTrigger": {
        "check_task_id": "",
        "configuration": "",
        "step": "",
    },
    "deferrable_ops.triggers.supervisor.SupervisorSwitchTrigger": {"clears": ""},
    "deferrable_ops.triggers.supervisor.SupervisorTeardownTrigger": {
        "check_task_id": "",
        "first_task_id": "",
        "retriggers": (),
        "stop_on_exit": True,
    },
    "deferrable_ops.triggers.webhook.WebhookTrigger": {
        "launch_timeout": 300.0,
        "method": "POST",
        "publish_url": False,
        "registered": False,
        "relaunch_when_lost": False,
    },
}


@pytest.mark.parametrize("classpath", CLASSPATHS)
def test_classpath_imports_back_to_the_class_that_stores_it(classpath: str) -> None:
    trigger_class: type[BaseTrigger] = pkgutil.resolve_name(classpath)
    stored, kwargs = trigger_class().serialize()
    assert stored == classpath
    assert trigger_class(**kwargs).serialize() == (classpath, kwargs)


@pytest.mark.parametrize("classpath", CLASSPATHS)
def test_unknown_kwargs_of_an_older_or_newer_release_are_ignored(classpath: str) -> None:
    trigger = pkgutil.resolve_name(classpath)(argument_that_was_dropped={"a": 1})
    assert isinstance(trigger, BaseTrigger)
    if isinstance(trigger, TaskTrigger):
        again = type(trigger)(timeout=5, argument_that_was_dropped={"a": 1})
        assert again.serialize()[1]["timeout"] == 5


@pytest.mark.parametrize("classpath", DEFAULTS)
def test_defaults_stay_the_same(classpath: str) -> None:
    defaults = pkgutil.resolve_name(classpath).defaults()
    given = {name: value for name, value in defaults.items() if value is not None}
    assert given == ALL_DEFAULTS | DEFAULTS[classpath]


def test_list_of_classpaths_is_complete() -> None:
    for module in pkgutil.walk_packages(deferrable_ops.triggers.__path__, "deferrable_ops.triggers."):
        importlib.import_module(module.name)
    concrete = [
        one
        for one in _subclasses(BaseTrigger)
        if one.__module__.startswith("deferrable_ops.") and not getattr(one, "__abstractmethods__", None)
    ]
    assert sorted(one().serialize()[0] for one in concrete) == CLASSPATHS
    assert sorted(one.classpath for one in concrete if issubclass(one, TaskTrigger)) == sorted(DEFAULTS)


@pytest.mark.parametrize("classpath", DEFAULTS)
def test_instances_share_the_keys_of_their_attributes(classpath: str) -> None:
    trigger = pkgutil.resolve_name(classpath)()
    trigger.triggerer_job_id = trigger.timeout_after = None  # as Airflow does
    assert len(vars(trigger)) <= 29, "each wait needs 1.3 kB more; use slots"


def test_repr_shows_no_argument() -> None:
    assert repr(WebhookTrigger(headers={"Authorization": "Bearer hunter2"})) == "<WebhookTrigger>"


def _subclasses(trigger_class: type) -> list[type]:
    direct = trigger_class.__subclasses__()
    return direct + [one for child in direct for one in _subclasses(child)]
