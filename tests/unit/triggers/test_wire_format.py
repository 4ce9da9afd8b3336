"""A trigger's classpath and kwargs are kept in other people's databases: they must be understood for ever."""

from __future__ import annotations

import pkgutil

import pytest
from airflow.triggers.base import BaseTrigger

from deferrable_ops.inbox import Attempt
from deferrable_ops.triggers.base import TaskTrigger
from deferrable_ops.triggers.dataflow.triggers import (
    DataflowJobTrigger,
    DataflowLaunchTrigger,
    DataflowStopTrigger,
)
from deferrable_ops.triggers.events.publish.trigger import PublishEventTrigger
from deferrable_ops.triggers.events.trigger import EventsTrigger
from deferrable_ops.triggers.lifecycle.stored_trigger import seal, unseal
from deferrable_ops.triggers.supervisor.check_trigger import SupervisorCheckTrigger
from deferrable_ops.triggers.supervisor.step_trigger import SupervisorStepTrigger
from deferrable_ops.triggers.webhook.trigger import WebhookTrigger

TRIGGERS = [
    WebhookTrigger,
    DataflowLaunchTrigger,
    DataflowJobTrigger,
    DataflowStopTrigger,
    EventsTrigger,
    PublishEventTrigger,
    SupervisorStepTrigger,
    SupervisorCheckTrigger,
]


@pytest.mark.parametrize("trigger_class", TRIGGERS)
def test_classpath_imports_back_to_the_class(trigger_class: type[TaskTrigger]) -> None:
    classpath, kwargs = trigger_class().serialize()
    assert pkgutil.resolve_name(classpath) is trigger_class
    assert trigger_class(**kwargs).serialize() == (classpath, kwargs)


@pytest.mark.parametrize("trigger_class", TRIGGERS)
def test_kwargs_of_an_older_or_newer_version_still_make_a_trigger(trigger_class: type[TaskTrigger]) -> None:
    trigger = trigger_class(timeout=5, argument_that_was_dropped={"a": 1})
    assert isinstance(trigger, BaseTrigger)
    assert trigger.serialize()[1]["timeout"] == 5


def test_nothing_that_a_trigger_holds_is_in_its_repr() -> None:
    assert repr(WebhookTrigger(headers={"Authorization": "Bearer hunter2"})) == "<WebhookTrigger>"


def test_sealed_trigger_is_the_same_trigger_and_shows_nothing() -> None:
    attempt = Attempt("01a1fd9a-991e-7f0c-8071-3e438f570c00", 1, "dag", "run", "task")
    trigger = WebhookTrigger(cancel_request={"url": "https://x", "headers": {"X": "hunter2"}})
    sealed = seal(trigger, attempt)
    again = unseal(sealed)
    assert again.identify() == attempt
    assert again.serialize()[1]["cancel_request"] == trigger.cancel_request
    assert b"hunter2" not in sealed
