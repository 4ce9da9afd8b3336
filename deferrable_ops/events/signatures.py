"""Verifies the signatures of requests to a channel, with the signature schemes of common vendors."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from deferrable_ops.exceptions import InputError

TOLERANCE: Final = 300.0
"""How many seconds a signed timestamp may differ from the receiver's clock. Stripe, Slack and Standard Webhooks
recommend this value."""

# At most this many signatures of a header are compared. Senders send two during a rotation of secrets.
_MAX_SIGNATURES: Final = 16
_TIMESTAMP: Final = re.compile("[0-9]{1,12}")
# The smallest and the largest length of a key, in bytes, that Standard Webhooks allows.
_MIN_KEY_LENGTH, _MAX_KEY_LENGTH = 24, 64

Headers = Mapping[str, str]
"""The request's headers, with names in lower case."""


def refusal_reason(
    scheme: str,
    headers: Headers,
    body: bytes,
    secrets: Sequence[str],
    *,
    now: float,
    tolerance: float = TOLERANCE,
) -> str | None:
    """Return the reason why a request is rejected, or None if its signature is valid. Never raises.

    :param scheme: the channel's signature scheme, with which the request is verified: one of :data:`SCHEMES`.
    :param headers: the request's headers, with names in lower case.
    :param body: the bytes of the body, exactly as they were received.
    :param secrets: the channel's valid secrets, in the form that the command line prints or accepts. During a rotation,
        the channel has two secrets, and the signature may match either of them.
    :param now: the current time, in seconds since the epoch.
    :param tolerance: a request is rejected if its signed timestamp is more than this many seconds before or after
        `now`.
    """
    if scheme == "none":
        return None
    verify = _VERIFIERS.get(scheme)
    if verify is None:
        return f"the channel's scheme {scheme!r} is unknown to this version; upgrade airflow-deferrable-ops"
    if not any(secrets):
        return "the channel has no valid secret; give it a new secret with `deferrable-ops channels rotate`"
    timestamp, reason = verify(headers, body, [secret for secret in secrets if secret])
    if reason is not None:
        return reason
    if timestamp is not None and abs(now - timestamp) > tolerance:
        return (
            f"the signed timestamp differs by more than {tolerance:g} s from the endpoint's clock; send the request "
            "with a new timestamp, and correct a clock that is wrong"
        )
    return None


def check_secret(scheme: str, secret: str) -> None:
    """Check a secret that a vendor issued.

    :raises InputError: if the secret is empty, or if the secret does not have the form that the scheme requires.
    """
    if scheme not in SCHEMES or scheme == "none":
        raise InputError(
            f"the verification scheme {scheme!r} uses no secret; remove the secret, or choose another scheme"
        )
    if not secret or not secret.isascii() or secret != secret.strip():
        raise InputError("the secret is empty, not ASCII, or has spaces around it; copy the secret again")
    if scheme == "standard-webhooks":
        key = _standard_key(secret)
        if key is None or not _MIN_KEY_LENGTH <= len(key) <= _MAX_KEY_LENGTH:
            raise InputError(
                "the secret is not valid for Standard Webhooks; give whsec_ followed by 24 to 64 bytes in base64"
            )


def new_secret(scheme: str, random: bytes) -> str:
    """Return a new secret in the form that a scheme requires.

    :param random: 32 random bytes from the operating system. The secret is an encoding of these bytes.
    """
    if scheme == "standard-webhooks":
        return f"whsec_{base64.b64encode(random).decode()}"
    return random.hex()


# The signed timestamp (None if the scheme signs no timestamp), and the reason for a refusal (None if the request is
# accepted).
_Verification = tuple[float | None, str | None]
_MISMATCH: Final = "no signature matches the channel's secret; check that the sender uses this secret"


def _standard_webhooks(headers: Headers, body: bytes, secrets: Sequence[str]) -> _Verification:
    """https://github.com/standard-webhooks/standard-webhooks. The older header names of Svix are also accepted."""
    prefix = "webhook" if "webhook-signature" in headers else "svix"
    message, timestamp = headers.get(f"{prefix}-id", ""), headers.get(f"{prefix}-timestamp", "")
    # In the signed bytes, dots separate the id, the timestamp and the body. If the id could contain a dot, an attacker
    # could pass another part of the signed bytes as the timestamp.
    if not message or "." in message or not _TIMESTAMP.fullmatch(timestamp):
        return None, "webhook-id or webhook-timestamp is missing or malformed; send both headers"
    given = [
        signature
        for version, _, signature in (
            part.partition(",") for part in headers.get(f"{prefix}-signature", "").split()
        )
        if version == "v1"
    ]
    keys = [key for key in map(_standard_key, secrets) if key]
    signed = b".".join((_bytes(message), _bytes(timestamp), body))
    expected = [base64.b64encode(_hmac(key, signed)) for key in keys]
    return float(timestamp), None if _any_equal(expected, given) else _MISMATCH


def _github(headers: Headers, body: bytes, secrets: Sequence[str]) -> _Verification:
    """https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries.

    GitHub's signature scheme signs no timestamp.
    """
    scheme, _, signature = headers.get("x-hub-signature-256", "").partition("=")
    if scheme != "sha256":
        return (
            None,
            "the header x-hub-signature-256 is missing or malformed; enter the channel's secret in GitHub",
        )
    return None, None if _any_equal(_hex_hmacs(secrets, body), [signature]) else _MISMATCH


def _stripe(headers: Headers, body: bytes, secrets: Sequence[str]) -> _Verification:
    """https://docs.stripe.com/webhooks#verify-manually."""
    parts = [part.strip().partition("=") for part in headers.get("stripe-signature", "").split(",")]
    timestamp = next((value for name, _, value in parts if name == "t"), "")
    if not _TIMESTAMP.fullmatch(timestamp):
        return (
            None,
            "the header stripe-signature is missing or has no timestamp; send it as Stripe defines it",
        )
    given = [value for name, _, value in parts if name == "v1"]
    expected = _hex_hmacs(secrets, _bytes(timestamp) + b"." + body)
    return float(timestamp), None if _any_equal(expected, given) else _MISMATCH


def _slack(headers: Headers, body: bytes, secrets: Sequence[str]) -> _Verification:
    """https://docs.slack.dev/authentication/verifying-requests-from-slack."""
    timestamp = headers.get("x-slack-request-timestamp", "")
    version, _, signature = headers.get("x-slack-signature", "").partition("=")
    if version != "v0" or not _TIMESTAMP.fullmatch(timestamp):
        return (
            None,
            "x-slack-signature or x-slack-request-timestamp is missing or malformed; send both headers",
        )
    expected = _hex_hmacs(secrets, b":".join((b"v0", _bytes(timestamp), body)))
    return float(timestamp), None if _any_equal(expected, [signature]) else _MISMATCH


def _bearer(headers: Headers, body: bytes, secrets: Sequence[str]) -> _Verification:
    """RFC 6750. The header ``Authorization`` contains the channel's secret."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return (
            None,
            "the header authorization is missing or has no bearer token; send Authorization: Bearer <secret>",
        )
    # Compare digests instead of secrets. All digests have the same length, so the duration of the comparison does not
    # reveal the length of the secret.
    expected = [hashlib.sha256(_bytes(secret)).digest() for secret in secrets]
    given = hashlib.sha256(_bytes(token.strip())).digest()
    return None, None if _any_equal(
        expected, [given]
    ) else "the bearer token does not match the channel's secret; send this secret as the token"


_VERIFIERS: Final[dict[str, Callable[[Headers, bytes, Sequence[str]], _Verification]]] = {
    "standard-webhooks": _standard_webhooks,
    "github": _github,
    "stripe": _stripe,
    "slack": _slack,
    "bearer": _bearer,
}
SCHEMES: Final = (*_VERIFIERS, "none")
"""The schemes with which a channel can verify requests."""


def _any_equal(expected: Iterable[bytes], given: Iterable[str | bytes]) -> bool:
    """Return True if an expected signature equals a given signature.

    All pairs are compared, each pair in constant time.
    """
    found = False
    received = [value if isinstance(value, bytes) else _bytes(value) for value in given][:_MAX_SIGNATURES]
    for own in expected:
        for value in received:
            found |= hmac.compare_digest(own, value)
    return found


def _hex_hmacs(secrets: Iterable[str], signed: bytes) -> list[bytes]:
    return [_hmac(_bytes(secret), signed).hex().encode() for secret in secrets]


def _hmac(key: bytes, signed: bytes) -> bytes:
    return hmac.digest(key, signed, "sha256")


def _standard_key(secret: str) -> bytes | None:
    text = secret.removeprefix("whsec_")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
