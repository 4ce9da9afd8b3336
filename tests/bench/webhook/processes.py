"""The processes that the figures are measured in."""

from __future__ import annotations

from bench.common.command import Setting
from bench.common.processes import Child

ENDPOINT = "deferrable_ops.endpoint.serving:create_standalone_app"


def triggerer(setting: Setting, inbox_url: str) -> Child:
    """Start a process that runs triggers; see :mod:`bench.webhook.triggerer`."""
    return Child("bench.webhook.triggerer", environment(inbox_url), output=setting.output)


def environment(inbox_url: str) -> dict[str, str]:
    """Return how a process is told the inbox."""
    return {
        "AIRFLOW__DEFERRABLE_OPS__INBOX_URL": inbox_url,
        "AIRFLOW__DEFERRABLE_OPS__ENDPOINT_URL": "http://bench.example.com/deferrable-ops",
    }
