"""The processes that the figures are measured in."""

from __future__ import annotations

import logging

from starlette.types import ASGIApp

from bench.common.command import Setting
from bench.common.processes import Child
from deferrable_ops.endpoint.logs import access_log
from deferrable_ops.endpoint.serving import create_standalone_app

ENDPOINT = "bench.webhook.processes:create_endpoint"


def create_endpoint() -> ASGIApp:
    """Create the endpoint of `deferrable-ops serve` without its access log, as the rival has none."""
    app = create_standalone_app()
    access_log.setLevel(logging.WARNING)
    return app


def triggerer(setting: Setting, inbox_url: str) -> Child:
    """Start a process that runs triggers; see :mod:`bench.webhook.triggerer`."""
    return Child("bench.webhook.triggerer", environment(inbox_url), output=setting.output)


def environment(inbox_url: str) -> dict[str, str]:
    """Return how a process is told the inbox."""
    return {
        "AIRFLOW__DEFERRABLE_OPS__INBOX_URL": inbox_url,
        "AIRFLOW__DEFERRABLE_OPS__ENDPOINT_URL": "http://bench.example.com/deferrable-ops",
    }
