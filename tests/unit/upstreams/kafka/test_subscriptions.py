"""Subscriptions, their storage and their errors, which contain no secrets."""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
from typing import Any

import pytest
from aiohttp import BasicAuth, web
from aiokafka.errors import SaslAuthenticationFailed, UnsupportedSaslMechanismError
from aiokafka.protocol.admin import SaslAuthenticateRequest

from deferrable_ops.events import KafkaEvent
from deferrable_ops.exceptions import ConfigurationError, KafkaRefused
from deferrable_ops.upstreams.kafka.client import Cluster, _holds_no_credentials, _is_refusal, import_aiokafka
from deferrable_ops.upstreams.kafka.connection import ClusterSettings, OAuthSettings
from deferrable_ops.upstreams.kafka.oauth import token_provider
from deferrable_ops.upstreams.kafka.subscriptions import Batch, Subscription, Subscriptions
from real_kafka import RecordingListener


class Store:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.batches: list[Batch] = []

    async def __call__(self, batch: Batch) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.batches.append(batch)


def subscription(key: str, topic: str = "t", messages: list[str] | None = None) -> Subscription:
    listener = RecordingListener()
    listener.warnings = listener.failures = [] if messages is None else messages
    return Subscription(key, [KafkaEvent(topic)], since=0, offsets=None, listener=listener)


def started(subscriptions: Subscriptions, one: Subscription, offset: int = 0, end: int = 0) -> Subscription:
    subscriptions.add(one)
    subscriptions.start(one, {0: (offset, end)})
    return one


async def test_subscription_is_pending_then_started_then_removed() -> None:
    subscriptions = Subscriptions(Store())
    one = subscription("a")
    subscriptions.add(one)
    assert (list(subscriptions.pending), list(subscriptions.topics)) == (["t"], [])

    subscriptions.start(one, {0: (0, 0)})
    assert (list(subscriptions.pending), list(subscriptions.topics)) == ([], ["t"])

    subscriptions.remove(one)
    subscriptions.remove(one)
    assert not subscriptions


async def test_checkpoint_stores_only_advanced_subscriptions() -> None:
    store = Store()
    subscriptions = Subscriptions(store)
    started(subscriptions, subscription("a"), 5, 10)
    started(subscriptions, subscription("b"), 10, 10)
    topic = subscriptions.topics["t"]
    await subscriptions.checkpoint(topic)
    await subscriptions.checkpoint(topic)
    topic.partitions[0].move_live(20)
    await subscriptions.checkpoint(topic)

    assert [batch.resume_offsets for batch in store.batches] == [
        {"a": {"0": 5}, "b": {"0": 10}},
        {"b": {"0": 20}},
    ]
    assert all(batch.events == () for batch in store.batches)


async def test_storing_is_retried() -> None:
    store = Store(OSError("away"), ValueError("odd"))
    batch = Batch("kafka:c/t", (), {})
    await Subscriptions(store, first_pause=0.001).store(batch)

    assert store.batches == [batch]


async def test_warning_is_passed_once_and_failure_ends_only_its_topic() -> None:
    messages: list[str] = []
    other: list[str] = []
    subscriptions = Subscriptions(Store())
    one = started(subscriptions, subscription("a", messages=messages))
    started(subscriptions, subscription("b", "u", other))
    one.warn("old")
    one.warn("old")
    subscriptions.fail(subscriptions.for_topic("t"), KafkaRefused("no"))
    await asyncio.sleep(0)

    assert messages == ["old", "no"]
    assert other == []
    assert list(subscriptions.topics) == ["u"]


def test_missing_extra_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiokafka.client", None)
    with pytest.raises(ConfigurationError, match=r'pip install "airflow-deferrable-ops\[kafka\]"'):
        import_aiokafka()


@pytest.mark.parametrize(
    ("error", "is_refusal"),
    [
        (SaslAuthenticationFailed("no"), True),
        (UnsupportedSaslMechanismError("no"), True),
        (ssl.SSLCertVerificationError("no"), True),
        (ssl.SSLEOFError("it broke off"), False),
        (ConnectionRefusedError(), False),
        (TimeoutError(), False),
    ],
)
def test_permanent_refusals_are_told_apart_from_transient_errors(error: Exception, is_refusal: bool) -> None:
    assert _is_refusal(error) is is_refusal


def test_refusal_message_contains_no_secret() -> None:
    settings = ClusterSettings("c", "a:1", "SASL_SSL", "PLAIN", "me", "hush")
    messages = Cluster(settings, None)._describe_refusal("a", 1, SaslAuthenticationFailed("hush is wrong"))

    assert "hush" not in messages
    assert "*** is wrong" in messages
    assert "'c'" in messages


def test_sasl_requests_are_not_logged() -> None:
    def record(*arguments: Any) -> logging.LogRecord:
        return logging.LogRecord("aiokafka.conn", logging.DEBUG, "f", 1, "%s: %s", arguments, None)

    request = SaslAuthenticateRequest(b"hush").prepare({36: (0, 1)})

    assert not _holds_no_credentials(record("a", request))
    assert _holds_no_credentials(record("a", "b"))


async def test_token_is_cached_and_a_refusal_is_permanent() -> None:
    requests: list[tuple[str | None, str]] = []

    async def answer(request: web.Request) -> web.Response:
        form = await request.post()
        requests.append((request.headers.get("Authorization"), str(form.get("scope"))))
        if len(requests) > 1:
            return web.json_response({"error": "invalid_client"}, status=401)
        return web.json_response({"access_token": "token", "expires_in": 3_600})

    app = web.Application()
    app.router.add_post("/token", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/token"
    oauth = OAuthSettings(url, "me", "hush", "kafka")
    try:
        tokens = token_provider(oauth)
        assert [await tokens.token(), await tokens.token()] == ["token", "token"]
        assert requests == [(BasicAuth("me", "hush").encode(), "kafka")]
        with pytest.raises(Exception, match="refuses the client me: status 401") as refused:
            await token_provider(oauth).token()
        assert _is_refusal(refused.value)
        assert "hush" not in str(refused.value)
    finally:
        await runner.cleanup()
