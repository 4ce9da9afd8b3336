"""Converts a launch request from JSON to the message of Dataflow's API."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Literal

from deferrable_ops.exceptions import InputError


def parse_launch_request(
    library: ModuleType, kind: Literal["flex", "classic"], request: dict[str, Any]
) -> Any:
    """Return the API's message for a launch request.

    :param library: the module ``google.cloud.dataflow_v1beta3``.
    :param request: the launch request, in camelCase or snake_case.
    :raises InputError: if the launch request has an unknown field, or a value of the wrong type.
    """
    from google.protobuf.json_format import ParseDict, ParseError

    parsed = (library.LaunchFlexTemplateRequest if kind == "flex" else library.LaunchTemplateRequest)()
    try:
        ParseDict(request, type(parsed).pb(parsed))
    except (ParseError, AttributeError, TypeError, ValueError) as error:
        # If a value has the wrong type, ParseDict may also raise other errors than ParseError.
        raise InputError(f"body= is not a valid {type(parsed).__name__}; correct body=: {error}") from None
    return parsed
