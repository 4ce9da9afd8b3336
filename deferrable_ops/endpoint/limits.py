"""The endpoint's settings, read at the first request: Airflow's configuration is too slow to ask for each."""

from __future__ import annotations

from functools import cached_property

from deferrable_ops import settings


class Limits:
    """What the endpoint accepts."""

    @cached_property
    def max_payload_bytes(self) -> int:
        """The largest body, in bytes."""
        return settings.max_payload_bytes()

    @cached_property
    def auth_token(self) -> str | None:
        """The static bearer token of the route for a task's state; None when it is off."""
        return settings.auth_token()
