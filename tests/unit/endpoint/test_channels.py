"""The contract of channels, over HTTP: each status, in the order of the checks, for every scheme."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from deferrable_ops.endpoint.resources import LazyInbox
from deferrable_ops.exceptions import InboxUnavailable
from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.database.database import Database
from deferrable_ops.inbox.events.events import StoredEvent

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
BODY = b'{"action": "closed", "number": 7}'
Sign = Callable[[bytes, float], dict[str, str]]


def _hmac(key: bytes, signed: bytes) -> bytes:
    return hmac.digest(key, signed, hashlib.sha256)


def standard_webhooks(body: bytes, now: float) -> dict[str, str]:
    signature = base64.b64encode(_hmac(b"k" * 32, b"msg_1.%d." % now + body)).decode()
    return {"webhook-id": "msg_1", "webhook-timestamp": str(int(now)), "webhook-signature": f"v1,{signature}"}


def github(body: bytes, _now: float) -> dict[str, str]:
    signature = _hmac(SECRET.encode(), body).hex()
    return {"X-Hub-Signature-256": f"sha256={signature}", "X-GitHub-Delivery": "delivery-1"}


def stripe(body: bytes, now: float) -> dict[str, str]:
    return {"Stripe-Signature": f"t={int(now)},v1={_hmac(SECRET.encode(), b'%d.' % now + body).hex()}"}


def slack(body: bytes, now: float) -> dict[str, str]:
    signature = _hmac(SECRET.encode(), b"v0:%d:" % now + body).hex()
    return {"X-Slack-Request-Timestamp": str(int(now)), "X-Slack-Signature": f"v0={signature}"}


def bearer(_body: bytes, _now: float) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRET}"}


SIGNED: dict[str, Sign] = {
    "standard-webhooks": standard_webhooks,
    "github": github,
    "stripe": stripe,
    "slack": slack,
    "bearer": bearer,
}
every_scheme = pytest.mark.parametrize("scheme", SIGNED)


async def kept(inbox: Inbox, name: str = "orders") -> list[StoredEvent]:
    newest = await inbox.events.newest()
    return await inbox.events.read([f"channel:{name}"], after=0, upto=newest, limit=1000)


async def post(
    http: httpx.AsyncClient, body: bytes = BODY, headers: Any = None, name: str = "orders"
) -> httpx.Response:
    return await http.post(f"/channels/{name}", content=body, headers=headers)


@every_scheme
async def test_a_signed_event_is_stored_before_it_is_answered(
    inbox: Inbox, http: httpx.AsyncClient, scheme: str
) -> None:
    await inbox.channels.add("orders", scheme, SECRET)
    answer = await post(http, BODY, SIGNED[scheme](BODY, await inbox.database.now()))
    assert answer.status_code == 200
    (event,) = await kept(inbox)
    assert answer.json()["event"] == event.number
    assert event.payload == {"action": "closed", "number": 7}
    assert event.attributes["metadata"] == {"verified_by": scheme}
    assert event.time == event.received_at
    assert SECRET not in json.dumps(event.attributes)


@every_scheme
async def test_an_unsigned_event_is_401_and_not_stored(
    inbox: Inbox, http: httpx.AsyncClient, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await inbox.channels.add("orders", scheme, SECRET)
    now = await inbox.database.now()

    async def written(*_: object) -> None:
        raise AssertionError("the database was written to")

    monkeypatch.setattr(Database, "write", written)
    good = SIGNED[scheme](BODY, now)
    forgeries: list[tuple[bytes, dict[str, str]]] = [(BODY, {}), (b"", {})]
    forgeries += [(BODY, {name: value[:-2] + "zz" for name, value in good.items()})]
    if scheme != "bearer":
        forgeries.append((BODY + b" ", good))
    if scheme not in ("bearer", "github"):
        forgeries += [(BODY, SIGNED[scheme](BODY, now - 600)), (BODY, SIGNED[scheme](BODY, now + 600))]
    for body, headers in forgeries:
        answer = await post(http, body, headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert SECRET not in answer.text
    assert await kept(inbox) == []


@every_scheme
async def test_a_replay_gets_the_same_receipt_byte_for_byte_and_is_kept_once(
    inbox: Inbox, http: httpx.AsyncClient, scheme: str
) -> None:
    await inbox.channels.add("orders", scheme, SECRET)
    headers = SIGNED[scheme](BODY, await inbox.database.now())
    answers = await asyncio.gather(*(post(http, BODY, headers) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len(await kept(inbox)) == 1


async def test_a_github_delivery_under_another_id_is_a_replay_too(
    inbox: Inbox, http: httpx.AsyncClient
) -> None:
    await inbox.channels.add("orders", "github", SECRET)
    first = await post(http, BODY, github(BODY, 0))
    again = await post(http, BODY, {**github(BODY, 0), "X-GitHub-Delivery": "delivery-2"})
    assert first.content == again.content


async def test_both_secrets_are_valid_during_a_rotation(inbox: Inbox, http: httpx.AsyncClient) -> None:
    await inbox.channels.add("orders", "bearer", "old")
    await inbox.channels.rotate("orders", "new", old_for=60)
    for number, secret in enumerate(("old", "new")):
        answer = await post(http, b"%d" % number, {"Authorization": f"Bearer {secret}"})
        assert answer.status_code == 200
    await inbox.channels.rotate("orders", "newest", old_for=0)
    assert (await post(http, b"3", {"Authorization": "Bearer new"})).status_code == 401


async def test_an_unknown_channel_is_404_with_the_fix(inbox: Inbox, http: httpx.AsyncClient) -> None:
    for name in ("nowhere", "ü", "a%20b", "x" * 129, "%00"):
        answer = await post(http, name=name)
        assert answer.status_code == 404
        assert "channel" in answer.json()["error"]


async def test_a_removed_channel_is_404(inbox: Inbox, http: httpx.AsyncClient) -> None:
    await inbox.channels.add("orders", "none", None)
    assert (await post(http)).status_code == 200
    await inbox.channels.remove("orders")
    assert (await post(http)).status_code == 404
    assert len(await kept(inbox)) == 1


async def test_checks_are_made_in_the_order_of_the_contract(inbox: Inbox, http: httpx.AsyncClient) -> None:
    await inbox.channels.add("orders", "github", SECRET)
    large, malformed = b"x" * 262_145, {"ce-specversion": "1.0"}
    assert (await http.get("/channels/nowhere")).status_code == 405
    assert (await post(http, large, name="nowhere")).status_code == 404
    assert (await post(http, large, malformed)).status_code == 413
    assert (await post(http, BODY, malformed)).status_code == 401
    refused = await post(http, BODY, malformed | github(BODY, 0))
    assert refused.status_code == 400
    assert "CloudEvent" in refused.json()["error"]
    assert await kept(inbox) == []


@pytest.mark.parametrize("body", [b"", b"text", b"\xff\x00", b"[1]", b'"a"', b"NaN", b'{"a": "\\u0000"}'])
async def test_any_body_is_stored(inbox: Inbox, http: httpx.AsyncClient, body: bytes) -> None:
    await inbox.channels.add("orders", "none", None)
    assert (await post(http, body)).status_code == 200
    assert len(await kept(inbox)) == 1


async def test_a_duplicate_cloud_event_is_detected_by_source_and_id(
    inbox: Inbox, http: httpx.AsyncClient
) -> None:
    await inbox.channels.add("orders", "none", None)
    envelope = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": {"a": 1}}
    structured = {"content-type": "application/cloudevents+json"}
    binary = {f"ce-{name}": str(value) for name, value in envelope.items() if name != "data"}
    first = await post(http, json.dumps(envelope).encode(), structured)
    again = await post(http, b'{"a": 2}', {**binary, "content-type": "application/json"})
    assert first.status_code == 200
    assert again.content == first.content
    (event,) = await kept(inbox)
    assert (event.payload, event.attributes["attributes"]["type"]) == ({"a": 1}, "t")


async def test_slack_gets_its_challenge_only_with_a_valid_signature(
    inbox: Inbox, http: httpx.AsyncClient
) -> None:
    await inbox.channels.add("orders", "slack", SECRET)
    await inbox.channels.add("other", "bearer", SECRET)
    body = b'{"type": "url_verification", "challenge": "3eZbrw1aB"}'
    answer = await post(http, body, slack(body, await inbox.database.now()))
    assert (answer.status_code, answer.json()) == (200, {"challenge": "3eZbrw1aB"})
    assert (await post(http, body)).status_code == 401
    assert await kept(inbox) == []
    assert "event" in (await post(http, body, bearer(body, 0), name="other")).json()


async def test_a_repeated_signature_header_is_401(inbox: Inbox, http: httpx.AsyncClient) -> None:
    await inbox.channels.add("orders", "bearer", SECRET)
    twice = [("Authorization", "Bearer x"), ("Authorization", f"Bearer {SECRET}")]
    assert (await post(http, headers=twice)).status_code == 401


async def test_an_unavailable_inbox_is_503_and_the_event_can_be_sent_again(
    inbox: Inbox, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await inbox.channels.add("orders", "none", None)
    assert (await post(http, b"1")).status_code == 200
    real = Database.write

    async def away(*_: object) -> None:
        raise InboxUnavailable("the inbox does not answer")

    monkeypatch.setattr(Database, "write", away)
    answer = await post(http, b"2")
    assert (answer.status_code, 2 <= int(answer.headers["retry-after"]) <= 4) == (503, True)
    monkeypatch.setattr(Database, "write", real)
    assert (await post(http, b"2")).status_code == 200
    assert [event.payload for event in await kept(inbox)] == [1, 2]


async def test_an_invalid_name_is_404_even_without_an_inbox(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def opened(*_: object) -> None:
        raise AssertionError("the inbox was opened")

    monkeypatch.setattr(LazyInbox, "_enter", opened)
    assert (await post(http, name="a:b")).status_code == 404


async def test_every_answer_is_private_json(inbox: Inbox, http: httpx.AsyncClient) -> None:
    await inbox.channels.add("orders", "none", None)
    for answer in (await post(http), await post(http, name="nowhere"), await http.put("/channels/orders")):
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        answer.json()
