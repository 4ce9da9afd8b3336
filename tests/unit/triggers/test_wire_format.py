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


def test_list_of_classpaths_is_complete() -> None:
    for module in pkgutil.walk_packages(deferrable_ops.triggers.__path__, "deferrable_ops.triggers."):
        importlib.import_module(module.name)
    concrete = [
        one
        for one in _subclasses(BaseTrigger)
        if one.__module__.startswith("deferrable_ops.") and not getattr(one, "__abstractmethods__", None)
    ]
    assert sorted(one().serialize()[0] for one in concrete) == CLASSPATHS


def test_repr_shows_no_argument() -> None:
    assert repr(WebhookTrigger(headers={"Authorization": "Bearer hunter2"})) == "<WebhookTrigger>"


def _subclasses(trigger_class: type) -> list[type]:
    direct = trigger_class.__subclasses__()
    return direct + [one for child in direct for one in _subclasses(child)]
