from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.events.support import matches

from deferrable_ops.events.cloudevents import Malformed
from deferrable_ops.events.deliveries import DedupeKey, Delivery, read_delivery, slack_challenge
from deferrable_ops.events.signatures import SCHEMES

SOURCE = "channel:github"
CLOUD_EVENT = {"ce-specversion": "1.0", "ce-id": "e1", "ce-source": "/s", "ce-type": "t"}
FORM = {"content-type": "application/x-www-form-urlencoded"}


def delivery(
    scheme: str = "none", headers: dict[str, str] | None = None, body: bytes = b"{}", at: float = 1000.0
) -> Delivery:
    found = read_delivery(SOURCE, scheme, headers or {}, body, received_at=at)
    assert isinstance(found, Delivery)
    return found


def body_key(body: bytes, within: float | None = None) -> DedupeKey:
    return DedupeKey(f"body:{hashlib.sha256(body).hexdigest()}", within)


def test_a_delivery_can_be_matched_by_payload_header_and_metadata() -> None:
    event = delivery(
        "github", {"x-github-event": "push", "x-github-delivery": "d1"}, b'{"ref": "main"}'
    ).event
    assert event.source == SOURCE
    assert event.time == 1000.0
    assert matches({"ref": "main", "headers": {"x-github-event": "push"}}, event)
    assert matches({"metadata": {"verified_by": "github"}}, event)


def test_credentials_in_headers_are_not_stored() -> None:
    secrets = {
        "authorization": "Bearer s3cret",
        "cookie": "s3cret",
        "x-hub-signature-256": "s3cret",
        "stripe-signature": "s3cret",
        "x-gitlab-token": "s3cret",
        "x-api-key": "s3cret",
    }
    event = delivery("bearer", {"x-kept": "1", **secrets}).event
    assert "s3cret" not in json.dumps(event.as_result())
    assert event.attributes["headers"] == {"x-kept": "1"}


@pytest.mark.parametrize(
    ("scheme", "headers", "body", "keys"),
    [
        ("standard-webhooks", {"webhook-id": "m1", "webhook-signature": ""}, b"{}", ["standard-webhooks:m1"]),
        ("standard-webhooks", {"svix-id": "m1"}, b"{}", ["standard-webhooks:m1"]),
        ("stripe", {}, b'{"id": "evt_1"}', ["stripe:evt_1"]),
        ("slack", {}, b'{"event_id": "Ev1"}', ["slack:Ev1"]),
        ("bearer", {"idempotency-key": "k1"}, b"{}", ["bearer:k1"]),
        ("none", CLOUD_EVENT, b"{}", ['cloudevent:["/s", "e1"]']),
        (
            "standard-webhooks",
            {**CLOUD_EVENT, "svix-id": "m1"},
            b"{}",
            ['cloudevent:["/s", "e1"]', "standard-webhooks:m1"],
        ),
    ],
)
def test_a_repetition_is_recognized_by_the_vendors_id(
    scheme: str, headers: dict[str, str], body: bytes, keys: list[str]
) -> None:
    found = delivery(scheme, headers, body)
    assert [(key.key, key.within) for key in found.dedupe_keys] == [(key, None) for key in keys]
    assert found.event.dedupe_key == keys[0]


def test_an_unsigned_id_does_not_hide_a_replay() -> None:
    body = b'{"ref": "main"}'
    first, replay = (delivery("github", {"x-github-delivery": id_}, body) for id_ in ("d1", "d2"))
    assert first.dedupe_keys == (DedupeKey("github:d1"), body_key(body))
    assert set(first.dedupe_keys) & set(replay.dedupe_keys)
    assert body_key(body) in delivery("stripe", CLOUD_EVENT, body).dedupe_keys


@pytest.mark.parametrize("scheme", SCHEMES)
def test_without_an_id_the_same_body_is_a_repetition_for_a_limited_time(scheme: str) -> None:
    found = delivery(scheme, {}, b"done", at=1000.0)
    assert found.dedupe_keys == (body_key(b"done", within=300.0),)
    again, later = (delivery(scheme, {}, b"done", at=at).event.dedupe_key for at in (1100.0, 1700.0))
    assert again == found.event.dedupe_key != later


def test_a_very_long_id_is_shortened() -> None:
    one, other = (delivery("bearer", {"idempotency-key": "k" * 5000 + end}) for end in ("1", "2"))
    assert len(one.event.dedupe_key) < 100
    assert one.event.dedupe_key != other.event.dedupe_key


def test_a_cloud_event_delivers_its_data_and_attributes() -> None:
    event = delivery("none", {**CLOUD_EVENT, "content-type": "application/json"}, b'{"rows": 7}').event
    assert event.payload == {"rows": 7}
    assert matches("rows == `7` && attributes.type == 't'", event)


def test_a_malformed_cloud_event_is_refused() -> None:
    found = read_delivery(SOURCE, "none", {"ce-specversion": "1.0"}, b"{}", received_at=0)
    assert isinstance(found, Malformed)


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        (urlencode({"payload": '{"ref": "main"}'}), {"ref": "main"}),
        (urlencode({"payload": "x", "more": "y"}), {"payload": "x", "more": "y"}),
        ("command=%2Fdeploy&text=", {"command": "/deploy", "text": ""}),
        ("a=1&a=2", {"a": ["1", "2"]}),
        ("a=%00", {"a": "\\x00"}),
        ("a=1&" * 2000, "a=1&" * 2000),
    ],
)
def test_a_form_is_read(body: str, payload: Any) -> None:
    assert delivery("slack", FORM, body.encode()).event.payload == payload


def test_slack_challenge_is_answered() -> None:
    assert slack_challenge({"type": "url_verification", "challenge": "3eZb"}) == "3eZb"
    assert slack_challenge({"type": "url_verification", "challenge": 5}) is None
    assert slack_challenge({"type": "event_callback", "challenge": "x"}) is None
    assert slack_challenge("text") is None


@given(
    scheme=st.sampled_from(SCHEMES),
    headers=st.dictionaries(
        st.sampled_from(
            ["content-type", "webhook-id", "webhook-signature", "x-github-delivery", *CLOUD_EVENT]
        ),
        st.text(st.characters(max_codepoint=255, exclude_categories=["Cc"])) | st.just(FORM["content-type"]),
    ),
    body=st.binary() | st.text().map(lambda text: urlencode({text: text}).encode()),
    at=st.floats(0, 4e9),
)
def test_reading_a_delivery_never_raises(
    scheme: str, headers: dict[str, str], body: bytes, at: float
) -> None:
    found = read_delivery(SOURCE, scheme, headers, body, received_at=at)
    if isinstance(found, Delivery):
        json.dumps(found.event.as_result(), ensure_ascii=False).encode()
        assert found.event.dedupe_key
        assert "\x00" not in json.dumps(found.event.payload)
