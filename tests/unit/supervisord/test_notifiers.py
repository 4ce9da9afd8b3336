"""The field on_program_event, and the field rolling."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import AsyncCallback, SyncCallback

from deferrable_ops.supervisord import SupervisorAirflowConfiguration
from deferrable_ops.triggers.supervisor.configuration import (
    load_configuration,
    serialize_configuration,
)


def cfg(**fields: Any) -> SupervisorAirflowConfiguration:
    return SupervisorAirflowConfiguration(
        working_dir=Path("/data"), program={"a": {"command": "true"}}, **fields
    )


async def notify(context: Any) -> None: ...


@pytest.mark.parametrize(
    "given",
    [
        AsyncCallback(notify, kwargs={"url": "https://token"}),
        {"path": f"{__name__}.notify", "kwargs": {"url": "https://token"}},
    ],
)
def test_notifier_reaches_the_trigger_and_its_kwargs_are_secret(given: Any) -> None:
    found = cfg(on_program_event=given)
    text = serialize_configuration(found)
    assert text.startswith("sealed:")
    assert [(one.path, one.kwargs) for one in load_configuration(text).on_program_event] == [
        (f"{__name__}.notify", {"url": "https://token"})
    ]
    assert "token" not in repr(found)


@pytest.mark.parametrize(
    "given, message",
    [
        (object(), "cannot be sent to the Triggerer"),
        (lambda context: None, "cannot be imported in the Triggerer"),
        ("Notifier", "cannot be imported in the Triggerer"),
        ("a b.notify", "cannot be imported in the Triggerer"),
        (SyncCallback("a.b.notify"), "an object of the class SyncCallback"),
        ("unusual_prefix_1_dag.notify", "cannot be imported in the Triggerer"),
        ({"path": "a.b", "kwargs": {"x": object()}}, "must be a dict of JSON data"),
        ({"path": "a.b", "kwargs": {"context": 1}}, "without the key 'context'"),
        ({"path": "a.b", "args": 1}, "unknown key 'args'"),
    ],
)
def test_notifier_that_cannot_be_serialized_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cfg(on_program_event=given)


def test_unused_notifiers_and_rolling_are_not_stored() -> None:
    text = serialize_configuration(cfg())
    assert "on_program_event" not in text
    assert "rolling" not in text


@pytest.mark.parametrize(
    "fields, name",
    [
        (
            {"program": {"a": {"command": "x", "numprocs": 2, "process_name": "%(process_num)d"}}},
            "program['a']",
        ),
        (
            {"program": {"a": {"command": "x"}, "b": {"command": "y"}}, "group": {"g": {"programs": "a,b"}}},
            "group['g']",
        ),
    ],
)
def test_rolling_refuses_processes_that_supervisord_replaces_together(
    fields: dict[str, Any], name: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"the processes of {name} one after another")):
        SupervisorAirflowConfiguration(working_dir=Path("/data"), rolling=True, drift="apply", **fields)


def test_rolling_needs_apply() -> None:
    with pytest.raises(ValueError, match="rolling=True needs drift='apply'"):
        cfg(rolling=True)
    assert cfg(rolling=True, drift="apply").rolling
