"""Finds unknown fields in the body of a launch request when Airflow parses a DAG, with Google's Dataflow client."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from deferrable_ops.triggers.dataflow.request import Kind, build_request
from deferrable_ops.upstreams.dataflow.launch_request import parse_launch_request

_CLIENT: Final = "google.cloud.dataflow_v1beta3"


def check_body_fields(kind: Kind, body: Mapping[str, Any]) -> None:
    """Check the names and types of the fields in a body. If Google's Dataflow client is not installed, check nothing.

    :param body: a body that :func:`~deferrable_ops.triggers.dataflow.arguments.validate_launch` accepts, without
        templates.
    :raises InputError: if the body has an unknown field, or a value of the wrong type.
    """
    try:
        library = import_module(_CLIENT)
    except Exception:
        # The triggerer has the client, and checks the body before it sends the request.
        return
    request = build_request(
        kind, project_id="project", region="region", body=body, name="name", labels=None, wait_id=""
    )
    parse_launch_request(library, kind, request)
