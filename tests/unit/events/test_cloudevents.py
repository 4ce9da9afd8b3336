from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deferrable_ops.events.cloudevents import CloudEvent, Malformed, parse_cloud_event

STRUCTURED = {"content-type": "application/cloudevents+json; charset=utf-8"}
# The examples of cloudevents/spec v1.0.2, formats/json-format.md 3.2, each with its binary mode.
ATTRIBUTES = {
    "specversion": "1.0",
    "type": "com.example.someevent",
    "source": "/mycontext",
    "time": "2018-04-05T17:31:00Z",
    "comexampleextension1": "value",
}
BINARY = {f"ce-{name}": value for name, value in ATTRIBUTES.items()}


def structured(**more: Any) -> CloudEvent | Malformed | None:
    return parse_cloud_event(STRUCTURED, json.dumps(ATTRIBUTES | more).encode())


@pytest.mark.parametrize(
    ("more", "content_type", "body", "data"),
    [
        (
            {"datacontenttype": "application/xml", "data": '<much wow="xml"/>'},
            "application/xml",
            b'<much wow="xml"/>',
            '<much wow="xml"/>',
        ),
        (
            {
                "datacontenttype": "application/json",
                "data": {"appinfoA": "abc", "appinfoB": 123},
                "subject": None,
            },
            "application/json",
            b'{"appinfoA" : "abc", "appinfoB" : 123}',
            {"appinfoA": "abc", "appinfoB": 123},
        ),
        (
            {"datacontenttype": "application/json", "data": "I'm just a string"},
            "application/json",
            b'"I\'m just a string"',
            "I'm just a string",
        ),
        (
            {
                "datacontenttype": "application/vnd.apache.thrift.binary",
                "data_base64": base64.b64encode(b"\x80\x01raw").decode(),
            },
            "application/vnd.apache.thrift.binary",
            b"\x80\x01raw",
            "\\x80\x01raw",
        ),
    ],
)
def test_both_modes_carry_the_same_event(
    more: dict[str, Any], content_type: str, body: bytes, data: Any
) -> None:
    found = structured(id="B234-1234-1234", **more)
    binary = parse_cloud_event(BINARY | {"ce-id": "B234-1234-1234", "content-type": content_type}, body)
    assert isinstance(found, CloudEvent)
    assert found == binary
    assert found.data == data
    assert found.attributes == ATTRIBUTES | {"id": "B234-1234-1234", "datacontenttype": content_type}
    assert found.identity == ("/mycontext", "B234-1234-1234")


def test_an_event_without_data_has_none() -> None:
    binary = parse_cloud_event(BINARY | {"ce-id": "1"}, b"")
    assert isinstance(binary, CloudEvent)
    assert binary == structured(id="1")
    assert binary.data is None


@pytest.mark.parametrize(
    ("header", "value"),
    [
        # http-protocol-binding.md 3.1.3.2: the example, its lower-case form, and the quoted string of older senders.
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("Euro%20%e2%82%ac", "Euro €"),
        (r'"a \"quoted\" value"', 'a "quoted" value'),
        ("%41", "A"),
        ("100%", "100%"),
    ],
)
def test_header_values_are_decoded_once(header: str, value: str) -> None:
    found = parse_cloud_event(BINARY | {"ce-id": "1", "ce-subject": header}, b"")
    assert isinstance(found, CloudEvent)
    assert found.attributes["subject"] == value


def test_an_overlong_encoding_is_refused() -> None:
    # The specification's example of a value that MUST be rejected.
    found = parse_cloud_event(BINARY | {"ce-id": "1", "ce-subject": "%C0%A0"}, b"")
    assert found == Malformed("the percent-encoded header ce-subject is not UTF-8; encode its value as UTF-8")


def test_other_requests_carry_no_cloud_event() -> None:
    assert parse_cloud_event({"content-type": "application/json"}, b"{}") is None
    assert parse_cloud_event({"ce-id": "1"}, b"{}") is None


@pytest.mark.parametrize(
    ("headers", "body", "reason"),
    [
        (STRUCTURED, b"[]", "must be a JSON object"),
        (STRUCTURED, b"text", "must be a JSON object"),
        (STRUCTURED, b"{}", "id is missing"),
        (
            STRUCTURED,
            json.dumps(ATTRIBUTES | {"id": 5}).encode(),
            "id is missing, empty or not a string",
        ),
        (STRUCTURED, json.dumps(ATTRIBUTES | {"id": "1", "source": ""}).encode(), "source is missing"),
        (STRUCTURED, json.dumps(ATTRIBUTES | {"id": "1", "specversion": "0.3"}).encode(), "version 0.3"),
        (STRUCTURED, json.dumps(ATTRIBUTES | {"id": "1", "data_base64": "%"}).encode(), "not valid base64"),
        (
            STRUCTURED,
            json.dumps(ATTRIBUTES | {"id": "1", "data": 1, "data_base64": "AA=="}).encode(),
            "both data and data_base64",
        ),
        (BINARY, b"", "id is missing"),
        ({"content-type": "application/cloudevents-batch+json"}, b"[]", "batches"),
        ({"content-type": "application/cloudevents+avro"}, b"", "avro is not supported"),
    ],
)
def test_malformed_cloud_event_is_refused(headers: dict[str, str], body: bytes, reason: str) -> None:
    found = parse_cloud_event(headers, body)
    assert isinstance(found, Malformed)
    assert reason in found.reason


@given(
    headers=st.dictionaries(
        st.sampled_from(["ce-id", "ce-source", "ce-type", "ce-specversion", "ce-x", "content-type"]),
        st.text() | st.sampled_from(["1.0", "application/cloudevents+json"]),
    ),
    body=st.binary()
    | st.dictionaries(st.sampled_from([*ATTRIBUTES, "id", "data"]), st.text()).map(
        lambda value: json.dumps(value).encode()
    ),
)
def test_parsing_never_raises(headers: dict[str, str], body: bytes) -> None:
    found = parse_cloud_event(headers, body)
    if isinstance(found, CloudEvent):
        json.dumps(found.attributes)
