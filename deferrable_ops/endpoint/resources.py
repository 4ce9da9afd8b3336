"""What the routes share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from deferrable_ops import settings
from deferrable_ops.endpoint.body import BodyReader
from deferrable_ops.endpoint.lazy_inbox import LazyInbox


class Limits:
    """The endpoint's settings, read at the first request: Airflow's configuration is too slow to ask for each."""

    @cached_property
    def max_payload_bytes(self) -> int:
        """The largest body, in bytes."""
        return settings.max_payload_bytes()

    @cached_property
    def auth_token(self) -> str | None:
        """The static bearer token of the route for a task's state; None when it is off."""
        return settings.auth_token()


@dataclass(frozen=True, slots=True)
class Resources:
    """What the routes of one endpoint share."""

    inbox: LazyInbox = field(default_factory=LazyInbox)
    limits: Limits = field(default_factory=Limits)
    bodies: BodyReader = field(default_factory=BodyReader)
