"""Converts a request that a channel has received into an event, after the signature of the request was verified.

Dedupe keys identify repeated deliveries of an event.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs

from deferrable_ops.events.cloudevents import CloudEvent, Malformed, parse_cloud_event
from deferrable_ops.events.event import Event
from deferrable_ops.events.payloads import decode_payload, decode_text
from deferrable_ops.events.signatures import TOLERANCE

# Headers that may hold credentials are not stored in the inbox.
_SECRET: Final = re.compile("authorization|cookie|signature|token|secret|password|credential|api-?key")
_FORM: Final = "application/x-www-form-urlencoded"
_BODY_SIGNED: Final = frozenset({"github", "stripe", "slack"})
# The maximum length of a key, in characters. It is limited, because the database has an index over the keys.
_MAX_KEY_LENGTH: Final = 200


@dataclass(frozen=True, slots=True)
class DedupeKey:
    """A key that is the same for repeated deliveries of one event, and different for different events.

    :param key: the key, unique within the channel.
    :param within: for this many seconds after a delivery, another delivery with the same key is a repetition. If
        `within` is None, another delivery is a repetition for as long as the key is stored.
    """

    key: str
    within: float | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A request to a channel.

    :param event: the event in the request.
    :param dedupe_keys: if the channel has received any of these keys before, the delivery is ignored as a repetition.
    """

    event: Event
    dedupe_keys: tuple[DedupeKey, ...]


def read_delivery(
    source: str,
    scheme: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    received_at: float,
    tolerance: float = TOLERANCE,
) -> Delivery | Malformed:
    """Return the delivery in a request whose signature was verified, or :class:`Malformed` if the request is
    malformed. Never raises.

    :param source: the channel's source name, which equals ``source`` of every specification for this channel.
    :param scheme: the signature scheme with which the request was verified.
    :param headers: the request's headers, with names in lower case.
    :param received_at: when the request arrived, in seconds since the epoch, by the database's clock.
    :param tolerance: if the request has no id, another request with the same body within this many seconds is a
        repetition.
    """
    cloud_event = parse_cloud_event(headers, body)
    if isinstance(cloud_event, Malformed):
        return cloud_event
    payload = cloud_event.data if cloud_event else _payload(headers, body)
    keys = _dedupe_keys(scheme, headers, payload, body, cloud_event, tolerance)
    event = Event(
        source,
        dedupe_key=_dedupe_key(keys[0], received_at),
        time=received_at,
        payload=payload,
        attributes={
            "headers": {name: value for name, value in headers.items() if not _SECRET.search(name)},
            "attributes": cloud_event.attributes if cloud_event else {},
            "metadata": {"verified_by": scheme},
        },
    )
    return Delivery(event, keys)


def slack_challenge(payload: Any) -> str | None:
    """Return the challenge that Slack sends when a channel's URL is registered; None for any other request.

    The response must repeat the challenge.

    https://docs.slack.dev/reference/events/url_verification
    """
    if not isinstance(payload, dict) or payload.get("type") != "url_verification":
        return None
    challenge = payload.get("challenge")
    return challenge if isinstance(challenge, str) else None


def _payload(headers: Mapping[str, str], body: bytes) -> Any:
    if headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        return decode_payload(body)
    try:
        form = parse_qs(decode_text(body), keep_blank_values=True, max_num_fields=1000)
    except ValueError:
        return decode_text(body)
    fields = {name: values[0] if len(values) == 1 else values for name, values in form.items()}
    # GitHub and Slack can send JSON as a form with this single field.
    if list(fields) == ["payload"] and isinstance(fields["payload"], str):
        return decode_payload(fields["payload"].encode())
    return {decode_text(name.encode()): _without_nul(value) for name, value in fields.items()}


def _without_nul(value: str | list[str]) -> str | list[str]:
    if isinstance(value, list):
        return [decode_text(item.encode()) for item in value]
    return decode_text(value.encode())


def _dedupe_keys(
    scheme: str,
    headers: Mapping[str, str],
    payload: Any,
    body: bytes,
    cloud_event: CloudEvent | None,
    tolerance: float,
) -> tuple[DedupeKey, ...]:
    digest = f"body:{hashlib.sha256(body).hexdigest()}"
    found = []
    if cloud_event is not None:
        found.append(DedupeKey(_short("cloudevent", json.dumps(cloud_event.identity))))
    identity = _delivery_id(scheme, headers, payload)
    if identity is not None:
        found.append(DedupeKey(_short(scheme, identity)))
    if not found:
        return (DedupeKey(digest, tolerance),)
    if scheme == "github" or (scheme in _BODY_SIGNED and identity is None):
        # The signature does not cover the header with the id, so an attacker could send the same body again with
        # another id. Therefore the body is a key, too.
        found.append(DedupeKey(digest))
    return tuple(found)


def _delivery_id(scheme: str, headers: Mapping[str, str], payload: Any) -> str | None:
    match scheme:
        case "standard-webhooks":
            return headers.get("webhook-id") if "webhook-signature" in headers else headers.get("svix-id")
        case "github":
            return headers.get("x-github-delivery") or None
        case "stripe":
            return _text_at(payload, "id")
        case "slack":
            return _text_at(payload, "event_id")
    return headers.get("webhook-id") or headers.get("idempotency-key") or None


def _text_at(payload: Any, key: str) -> str | None:
    value = payload.get(key) if isinstance(payload, dict) else None
    return value if isinstance(value, str) and value else None


def _short(kind: str, identity: str) -> str:
    if len(identity) > _MAX_KEY_LENGTH:
        identity = f"sha256:{hashlib.sha256(identity.encode(errors='backslashreplace')).hexdigest()}"
    return f"{kind}:{identity}"


def _dedupe_key(key: DedupeKey, received_at: float) -> str:
    # After the time limit, a delivery with the same key is a new event.
    return key.key if key.within is None else f"{key.key}:{int(received_at // key.within)}"
