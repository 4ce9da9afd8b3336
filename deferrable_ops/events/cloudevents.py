"""Parses HTTP requests that contain a CloudEvent, in binary or structured mode.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md and
https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from deferrable_ops.events.payloads import decode_payload

_REQUIRED: Final = ("id", "source", "specversion", "type")
_ESCAPED: Final = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """A CloudEvent.

    :param attributes: the values of the CloudEvents context attributes by name, including extension attributes.
    :param data: the event's data: a JSON value, a string if the data is not JSON, or None if the event has no data.
    """

    attributes: dict[str, Any]
    data: Any

    @property
    def identity(self) -> tuple[str, str]:
        """The source and the id of the event, which together are unique."""
        return self.attributes["source"], self.attributes["id"]


@dataclass(frozen=True, slots=True)
class Malformed:
    """A malformed request.

    :param reason: a description of the error, for the sender of the request.
    """

    reason: str


def parse_cloud_event(headers: Mapping[str, str], body: bytes) -> CloudEvent | Malformed | None:
    """Return the CloudEvent in a request, or :class:`Malformed` if the CloudEvent is malformed. Never raises.

    Return None if the request does not contain a CloudEvent.

    :param headers: the request's headers, with names in lower case.
    """
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type.startswith("application/cloudevents-batch"):
        return Malformed("batches of CloudEvents are not supported; send one event per request")
    if media_type == "application/cloudevents+json":
        return _structured(body)
    if media_type.startswith("application/cloudevents"):
        return Malformed(
            f"{media_type} is not supported; send application/cloudevents+json, or use binary mode"
        )
    return _binary(headers, body) if "ce-specversion" in headers else None


def _structured(body: bytes) -> CloudEvent | Malformed:
    envelope = decode_payload(body)
    if not isinstance(envelope, dict):
        return Malformed("the body of a structured CloudEvent must be a JSON object that the inbox can store")
    attributes = {name: value for name, value in envelope.items() if value is not None}
    data, encoded = attributes.pop("data", None), attributes.pop("data_base64", None)
    if encoded is not None:
        if data is not None or not isinstance(encoded, str):
            return Malformed(
                "the CloudEvent has both data and data_base64, or data_base64 is not a string; send only data, or "
                "only data_base64 as a string"
            )
        try:
            data = decode_payload(base64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError):
            return Malformed("data_base64 of the CloudEvent is not valid base64; encode the data again")
    return _checked(CloudEvent(attributes, data))


def _binary(headers: Mapping[str, str], body: bytes) -> CloudEvent | Malformed:
    attributes: dict[str, Any] = {}
    for name, value in headers.items():
        if name.startswith("ce-"):
            try:
                attributes[name.removeprefix("ce-")] = _decoded(value)
            except UnicodeDecodeError:
                return Malformed(f"the percent-encoded header {name} is not UTF-8; encode its value as UTF-8")
    if "content-type" in headers:
        attributes["datacontenttype"] = headers["content-type"]
    return _checked(CloudEvent(attributes, decode_payload(body) if body else None))


def _checked(event: CloudEvent) -> CloudEvent | Malformed:
    for name in _REQUIRED:
        value = event.attributes.get(name)
        if not isinstance(value, str) or not value:
            return Malformed(
                f"the CloudEvent attribute {name} is missing, empty or not a string; send a non-empty string"
            )
    version = event.attributes["specversion"]
    if not version.startswith("1."):
        return Malformed(f"version {version} of CloudEvents is not supported; send version 1.0")
    return event


def _decoded(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = _ESCAPED.sub(r"\1", value[1:-1])
    return unquote(value, errors="strict").replace("\x00", "\\x00")
