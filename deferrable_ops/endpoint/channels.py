"""POST of ``/channels/{name}``: verifies the events that outside systems post, and stores each event once.

A request is checked in this order: the channel's name, the size of the body, the signature of the body, and the form
of the CloudEvent, if the request contains a CloudEvent. After these checks, the inbox decides whether the event is a
duplicate. A rejected request stores nothing in the inbox.
"""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.types import Receive, Scope

from deferrable_ops.endpoint.authentication import unauthorized
from deferrable_ops.endpoint.paths import is_channel_name
from deferrable_ops.endpoint.resources import Resources
from deferrable_ops.endpoint.responses import JsonResponse, RequestRejected, json_response
from deferrable_ops.events.cloudevents import Malformed
from deferrable_ops.events.deliveries import Delivery, read_delivery, slack_challenge
from deferrable_ops.events.signatures import refusal_reason
from deferrable_ops.events.specifications import ChannelEvent
from deferrable_ops.inbox.events.channels import Channel
from deferrable_ops.inbox.events.events import NewEvent


async def accept_event(resources: Resources, scope: Scope, receive: Receive, name: str) -> JsonResponse:
    """Store an event, and return its receipt once the event is committed.

    If the event is a duplicate, return the receipt of the first event.
    """
    if not is_channel_name(name):
        raise RequestRejected(
            404,
            "the channel name in the URL is invalid; give 1 to 128 letters, digits, '.', '_' and '-', starting with a "
            "letter or digit",
        )
    inbox = await resources.inbox.get()
    channel = await inbox.channels.get(name)
    body = await resources.bodies.read(scope, receive, resources.settings.max_payload_bytes)
    delivery = _read(channel, headers_of(scope), body, inbox.channels.now())
    event = delivery.event
    if channel.scheme == "slack" and (challenge := slack_challenge(event.payload)) is not None:
        return json_response(200, {"challenge": challenge})
    appended = await inbox.events.append(
        NewEvent(
            event.source,
            event.dedupe_key,
            event.payload,
            event.attributes,
            dedupe_keys=delivery.dedupe_keys,
        )
    )
    received_at = datetime.fromtimestamp(appended.received_at, UTC).isoformat()
    return json_response(200, {"channel": name, "event": appended.number, "received_at": received_at})


def headers_of(scope: Scope) -> dict[str, str]:
    """Return the request's headers, with names in lower case; the values of a repeated header are joined by commas."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _read(channel: Channel, headers: dict[str, str], body: bytes, now: float) -> Delivery:
    """Verify a request, and return the event in it.

    :raises RequestRejected: with status 401, if the signature or token is wrong; with status 400, if the request is a
        malformed CloudEvent.
    """
    reason = refusal_reason(channel.scheme, headers, body, channel.secrets, now=now)
    if reason is not None:
        raise unauthorized(reason)
    source = ChannelEvent(channel.name).source
    delivery = read_delivery(source, channel.scheme, headers, body, received_at=now)
    if isinstance(delivery, Malformed):
        raise RequestRejected(400, delivery.reason)
    return delivery
