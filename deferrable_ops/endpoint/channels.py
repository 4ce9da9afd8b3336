"""POST of ``/channels/{name}``: events that outside systems post, each verified, and kept once.

The order of the checks is the contract: the channel, the size, the signature over the raw bytes, the form of a
CloudEvent; then the inbox decides whether it is a repetition. Nothing of a request that is refused is stored.
"""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.types import Receive, Scope

from deferrable_ops.endpoint.access import unauthorized
from deferrable_ops.endpoint.answers import Answer, Refused, json_answer
from deferrable_ops.endpoint.paths import is_channel_name
from deferrable_ops.endpoint.resources import Resources
from deferrable_ops.events.cloudevents import Malformed
from deferrable_ops.events.deliveries import Delivery, read_delivery, slack_challenge
from deferrable_ops.events.signatures import refusal_reason
from deferrable_ops.events.specifications import ChannelEvent
from deferrable_ops.inbox.events.channels import Channel
from deferrable_ops.inbox.events.events import NewEvent


async def take_event(resources: Resources, scope: Scope, receive: Receive, name: str) -> Answer:
    """Keep an event, and return its receipt once it is committed: the first one's, when it is a repetition."""
    if not is_channel_name(name):
        raise Refused(404, "no channel can have this name")
    inbox = await resources.inbox.get()
    channel = await inbox.channels.get(name)
    body = await resources.bodies.read(scope, receive, resources.limits.max_payload_bytes)
    delivery = _read(channel, headers_of(scope), body, inbox.channels.now())
    event = delivery.event
    if channel.scheme == "slack" and (challenge := slack_challenge(event.payload)) is not None:
        return json_answer(200, {"challenge": challenge})
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
    return json_answer(200, {"channel": name, "event": appended.number, "received_at": received_at})


def headers_of(scope: Scope) -> dict[str, str]:
    """Return the request's headers, names in lower case; what is given twice stands in one, after commas."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _read(channel: Channel, headers: dict[str, str], body: bytes, now: float) -> Delivery:
    """Return what a request brings.

    :raises Refused: 401, it is not of who it should be; 400, it is no CloudEvent though it says so.
    """
    reason = refusal_reason(channel.scheme, headers, body, channel.secrets, now=now)
    if reason is not None:
        raise unauthorized(reason)
    source = ChannelEvent(channel.name).source
    delivery = read_delivery(source, channel.scheme, headers, body, received_at=now)
    if isinstance(delivery, Malformed):
        raise Refused(400, delivery.reason)
    return delivery
