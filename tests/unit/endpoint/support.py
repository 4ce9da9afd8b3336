"""An outside service that calls the endpoint in tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx

from deferrable_ops.inbox import Attempt, Inbox, NewWait, Wait

LOGICAL_DATE = 1767225600.0  # 2026-01-01T00:00:00+00:00


@dataclass
class Caller:
    """An outside service and the wait that it may settle."""

    inbox: Inbox
    http: httpx.AsyncClient
    wait: Wait
    token: str

    @classmethod
    async def of_new_wait(cls, inbox: Inbox, http: httpx.AsyncClient, **options: Any) -> Caller:
        """Register a wait, and return a service that has its token."""
        attempt = Attempt(
            str(uuid4()),
            options.pop("try_number", 1),
            "sales",
            options.pop("run_id", "manual"),
            "train",
            options.pop("map_index", -1),
            logical_date=LOGICAL_DATE,
        )
        options.setdefault("timeout", 3600.0)
        wait = await inbox.waits.register(NewWait(attempt, "webhook", **options))
        return cls(inbox, http, wait, await inbox.keys.token(wait.id, wait.key_id))

    async def post(self, verb: str = "", **request: Any) -> httpx.Response:
        """Call back."""
        request.setdefault("json", {}) if "content" not in request else None
        return await self.http.post(f"/callbacks/{self.token}{verb and '/' + verb}", **request)

    async def now(self) -> Wait:
        """Return the current wait."""
        return await self.inbox.waits.get(self.wait.id)
