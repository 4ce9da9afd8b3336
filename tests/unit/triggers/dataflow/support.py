"""Helpers of the tests of the Dataflow triggers."""

from __future__ import annotations

from typing import Any

from unit.triggers.support import Run, Runs

from deferrable_ops.inbox import Attempt
from deferrable_ops.triggers.dataflow.triggers import DataflowLaunchTrigger

PLACE = {"project_id": "my-project", "region": "europe-west1", "poll_interval": 0.05}
BODY = {"containerSpecGcsPath": "gs://bucket/template.json", "parameters": {"input": "gs://bucket/in"}}


def launch(runs: Runs, attempt: Attempt | None = None, **arguments: Any) -> Run:
    """Start a trigger that launches a Flex Template and follows its job."""
    return runs.start(DataflowLaunchTrigger(**{**PLACE, "body": BODY, **arguments}), attempt)
