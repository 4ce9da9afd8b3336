"""Each scheme is tested with published examples of its vendor: secret, body, headers and signature."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deferrable_ops.events.signatures import (
    SCHEMES,
    TOLERANCE,
    check_secret,
    new_secret,
    refusal_reason,
)
from deferrable_ops.exceptions import InputError


@dataclass(frozen=True)
class Vector:
    """A signed request published by a vendor."""

    scheme: str
    secret: str
    headers: dict[str, str]
    body: bytes
    now: float

    def refused(self, secrets: list[str] | None = None, tolerance: float = TOLERANCE) -> str | None:
        given_secrets = [self.secret] if secrets is None else secrets
        return refusal_reason(
            self.scheme, self.headers, self.body, given_secrets, now=self.now, tolerance=tolerance
        )


# The test `sign function works` of github.com/standard-webhooks/standard-webhooks,
# libraries/javascript/src/webhook.test.ts; the same is in Svix' documentation of manual verification.
STANDARD_WEBHOOKS = Vector(
    "standard-webhooks",
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    },
    b'{"test": 2432232314}',
    1614265330,
)
# The test `test_sign` of the same repository's libraries/rust, here with the header names of Svix.
SVIX = Vector(
    "standard-webhooks",
    "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
    {
        "svix-id": "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
        "svix-timestamp": "1649367553",
        "svix-signature": "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
    },
    b'{"email":"test@example.com","username":"test_user"}',
    1649367553,
)
# docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries, "Testing the webhook payload validation".
GITHUB = Vector(
    "github",
    "It's a Secret to Everybody",
    {"x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"},
    b"Hello, World!",
    0,
)
# github.com/stripe/stripe-dotnet, src/StripeTests/Services/Events/EventUtilityTest.cs, and
# src/StripeTests/Resources/event_test_signature.json at commit 946a380.
STRIPE = Vector(
    "stripe",
    "webhook_secret",
    {
        "stripe-signature": "t=1533204620,v1=2220f87ef101a04665f11cdf770523143f875572008577fa0f20882ddb9cc3c7,"
        "v0=63f3a72374a733066c4be69ed7f8e5ac85c22c9f0a6a612ab9a025a9e4ee7eef"
    },
    b"""{
  "id": "evt_123",
  "object": "event",
  "account": "acct_123",
  "api_version": "2017-05-25",
  "created": 1533204620,
  "data": {
    "object": {
      "id": "cus_123",
      "object": "customer",
      "created": 123456789,
      "email": "test@stripe.com",
      "livemode": false,
      "metadata": {}
    }
  },
  "livemode": false,
  "pending_webhooks": 1,
  "request": {
    "id": "req_123",
    "idempotency_key": "idempotency-key-123"
  },
  "type": "customer.created"
}
""",
    1533204620 + 100,
)
# docs.slack.dev/authentication/verifying-requests-from-slack, the worked example.
SLACK = Vector(
    "slack",
    "8f742231b10e8888abcd99yyyzzz85a5",
    {
        "x-slack-request-timestamp": "1531420618",
        "x-slack-signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
    },
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
    b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
    b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
    b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c",
    1531420618,
)
# RFC 6750, section 2.1.
BEARER = Vector("bearer", "mF_9.B5f-4.1JqM", {"authorization": "Bearer mF_9.B5f-4.1JqM"}, b"{}", 0)

VECTORS = [STANDARD_WEBHOOKS, SVIX, GITHUB, STRIPE, SLACK, BEARER]
SIGNED = [STANDARD_WEBHOOKS, SVIX, GITHUB, STRIPE, SLACK]
TIMED = [STANDARD_WEBHOOKS, SVIX, STRIPE, SLACK]

every = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.scheme)
every_signed = pytest.mark.parametrize("vector", SIGNED, ids=lambda vector: vector.scheme)
every_timed = pytest.mark.parametrize("vector", TIMED, ids=lambda vector: vector.scheme)


@every
def test_published_examples_of_vendors_are_accepted(vector: Vector) -> None:
    assert vector.refused() is None


@every
def test_two_secrets_are_valid_during_a_rotation(vector: Vector) -> None:
    other = STANDARD_WEBHOOKS.secret[:-1] + "A"
    assert vector.refused([other, vector.secret]) is None
    assert vector.refused([vector.secret, other]) is None
    assert vector.refused([other]) is not None


@every
def test_a_channel_without_a_secret_refuses(vector: Vector) -> None:
    assert "the channel has no valid secret" in str(vector.refused([]))
    assert "the channel has no valid secret" in str(vector.refused([""]))


@every_signed
def test_another_body_is_refused(vector: Vector) -> None:
    assert "no signature matches" in str(replace(vector, body=vector.body + b" ").refused())


@every_timed
def test_a_timestamp_beyond_the_tolerance_is_refused(vector: Vector) -> None:
    signed_at = (
        float(next(value for name, value in vector.headers.items() if "timestamp" in name))
        if (vector is not STRIPE)
        else 1533204620.0
    )
    for away in (-TOLERANCE, TOLERANCE):
        assert replace(vector, now=signed_at + away).refused() is None
        assert "a new timestamp" in str(replace(vector, now=signed_at + 1.01 * away).refused())
    assert replace(vector, now=signed_at + 400).refused(tolerance=500) is None


@every_timed
def test_an_unsigned_timestamp_is_refused(vector: Vector) -> None:
    moved = {
        name: value.replace("15332046", "15332047") if name == "stripe-signature" else value
        for name, value in vector.headers.items()
    } | {name: str(int(value) + 1) for name, value in vector.headers.items() if "timestamp" in name}
    assert "no signature matches" in str(replace(vector, headers=moved).refused(tolerance=1e12))


@every
def test_any_missing_header_is_refused(vector: Vector) -> None:
    for name in vector.headers:
        left = {other: value for other, value in vector.headers.items() if other != name}
        assert replace(vector, headers=left).refused() is not None


@pytest.mark.parametrize("scheme", SCHEMES)
@given(
    names=st.sets(st.sampled_from(sorted({name for vector in VECTORS for name in vector.headers}))),
    value=st.text() | st.from_regex(r"(v1,|v0=|sha256=|t=|Bearer )?[\x20-\xff]{0,20}", fullmatch=True),
    body=st.binary(),
    secrets=st.lists(st.text(), max_size=2),
)
def test_garbage_is_refused_and_never_raises(
    scheme: str, names: set[str], value: str, body: bytes, secrets: list[str]
) -> None:
    refused = refusal_reason(scheme, dict.fromkeys(names, value), body, secrets, now=0)
    bearer_guessed = scheme == "bearer" and value.partition(" ")[2].strip() in secrets
    assert (refused is None) is (scheme == "none") or bearer_guessed


@pytest.mark.parametrize(
    "value", ["v1,", "v1", "v1,dawfeoifkpqwoekfpqoekf", "v1a,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="]
)
def test_other_signatures_of_standard_webhooks_are_refused(value: str) -> None:
    headers = STANDARD_WEBHOOKS.headers | {"webhook-signature": value}
    assert replace(STANDARD_WEBHOOKS, headers=headers).refused() is not None


def test_one_of_several_signatures_is_enough() -> None:
    wrong = "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc="
    signature = STANDARD_WEBHOOKS.headers["webhook-signature"]
    several = STANDARD_WEBHOOKS.headers | {"webhook-signature": f"{wrong} v2,x {signature} {wrong}"}
    assert replace(STANDARD_WEBHOOKS, headers=several).refused() is None
    several = {"stripe-signature": STRIPE.headers["stripe-signature"].replace(",v1=", ",v1=deadbeef,v1=")}
    assert replace(STRIPE, headers=several).refused() is None


def test_only_a_few_of_many_signatures_are_compared() -> None:
    signature = STANDARD_WEBHOOKS.headers["webhook-signature"]
    flood = STANDARD_WEBHOOKS.headers | {"webhook-signature": " ".join(["v1,x"] * 1000 + [signature])}
    assert replace(STANDARD_WEBHOOKS, headers=flood).refused() is not None


def test_another_version_of_slacks_scheme_is_refused() -> None:
    other = SLACK.headers | {"x-slack-signature": SLACK.headers["x-slack-signature"].replace("v0=", "v1=")}
    assert replace(SLACK, headers=other).refused() is not None


def test_stripes_old_scheme_is_refused() -> None:
    only_v0 = {"stripe-signature": STRIPE.headers["stripe-signature"].replace("v1=", "v0=")}
    assert replace(STRIPE, headers=only_v0).refused() is not None


@pytest.mark.parametrize(
    "header",
    # The incorrect values of stripe-dotnet's EventUtilityTest.
    [
        "t=,v1=2220f87ef101a04665f11cdf770523143f875572008577fa0f20882ddb9cc3c7",
        "t,v1=,v0=",
        "t,v1=,v0",
        "t,,",
        ",,",
        "t",
    ],
)
def test_malformed_headers_of_stripe_are_refused(header: str) -> None:
    assert replace(STRIPE, headers={"stripe-signature": header}).refused() is not None


def test_an_id_with_a_dot_is_refused() -> None:
    # Signed as id "msg_1", timestamp 1614265330 and a body that begins like a later timestamp.
    key = base64.b64decode(STANDARD_WEBHOOKS.secret.removeprefix("whsec_"))
    signature = base64.b64encode(hmac.digest(key, b"msg_1.1614265330.1999999999.{}", hashlib.sha256)).decode()
    headers = {"webhook-signature": f"v1,{signature}"}
    honest = headers | {"webhook-id": "msg_1", "webhook-timestamp": "1614265330"}
    forged = headers | {"webhook-id": "msg_1.1614265330", "webhook-timestamp": "1999999999"}
    assert replace(STANDARD_WEBHOOKS, headers=honest, body=b"1999999999.{}").refused() is None
    assert replace(STANDARD_WEBHOOKS, headers=forged, body=b"{}", now=1999999999).refused() is not None


def test_digits_of_other_scripts_are_refused_in_a_timestamp() -> None:
    headers = SLACK.headers | {"x-slack-request-timestamp": "１５３１４２０６１８"}  # noqa: RUF001
    assert replace(SLACK, headers=headers).refused() is not None


def test_a_bearer_token_is_compared_whole() -> None:
    for token in ("bearer mF_9.B5f-4.1JqM", "BEARER  mF_9.B5f-4.1JqM"):
        assert replace(BEARER, headers={"authorization": token}).refused() is None
    for token in ("Bearer mF_9.B5f-4.1Jq", "Bearer", "Bearer ", "Basic mF_9.B5f-4.1JqM", "mF_9.B5f-4.1JqM"):
        assert replace(BEARER, headers={"authorization": token}).refused() is not None


def test_an_unknown_scheme_refuses() -> None:
    assert "unknown" in str(refusal_reason("pigeon", {}, b"", ["x"], now=0))


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "none"])
def test_a_new_secret_is_valid_for_its_scheme(scheme: str) -> None:
    secret = new_secret(scheme, bytes(range(32)))
    check_secret(scheme, secret)
    assert len(secret) >= 44


@pytest.mark.parametrize(
    ("scheme", "secret"),
    [
        ("github", ""),
        ("github", " padded "),
        ("github", "gehëim"),
        ("none", "x"),
        ("pigeon", "x"),
        ("standard-webhooks", "whsec_"),
        ("standard-webhooks", "whsec_not base64"),
        ("standard-webhooks", "whsec_c2hvcnQ="),
    ],
)
def test_an_invalid_secret_is_refused(scheme: str, secret: str) -> None:
    with pytest.raises(InputError):
        check_secret(scheme, secret)


def test_a_refused_secret_is_not_in_the_message() -> None:
    with pytest.raises(InputError) as refused:
        check_secret("standard-webhooks", "whsec_c2hvcnQ=")
    assert "c2hvcnQ=" not in str(refused.value)


def test_a_secret_may_lack_its_prefix_and_padding() -> None:
    assert STANDARD_WEBHOOKS.refused([STANDARD_WEBHOOKS.secret.removeprefix("whsec_")]) is None
    unpadded = base64.b64encode(b"0" * 25).decode().rstrip("=")
    check_secret("standard-webhooks", f"whsec_{unpadded}")
