"""``/health`` shows that the process is running. ``/health/ready`` shows that the endpoint can store callbacks.

Triggerers are not checked, because an endpoint must store callbacks even while no triggerer is running.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from deferrable_ops.endpoint.resources import LazyInbox
from deferrable_ops.endpoint.responses import JsonResponse, json_response
from deferrable_ops.exceptions import DeferrableOpsError
from deferrable_ops.inbox.database.shared_call import SharedCall

HEALTHY: Final = json_response(200, {"status": "ok"})
READY: Final = json_response(200, {"status": "ready"})

_CACHE_SECONDS = 1.0


class Readiness:
    """Checks whether the inbox can be read and written. Requests that arrive at the same time share one check.

    :param cache_seconds: the result of a check is reused for this many seconds, so that frequent requests do not
        overload the database.
    :param clock: a function that returns the time of a monotonic clock, in seconds.
    """

    def __init__(
        self,
        inbox: LazyInbox,
        *,
        cache_seconds: float = _CACHE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inbox = inbox
        self._cache_seconds = cache_seconds
        self._clock = clock
        self._check = SharedCall(self._check_now)
        self._valid_until = float("-inf")
        self._problem: Exception | None = None

    async def response(self) -> JsonResponse:
        """Check the inbox, and return the response of ``/health/ready`` for an endpoint that is ready.

        :raises ConfigurationError: if the inbox is set up wrongly.
        :raises InboxError: if the inbox cannot be read or written.
        :raises TimeoutError: if the inbox does not answer in time.
        """
        if self._clock() >= self._valid_until:
            await self._check()
        if self._problem is not None:
            # A raised exception keeps its traceback, and would grow with each request.
            raise self._problem.with_traceback(None)
        return READY

    async def _check_now(self) -> None:
        self._problem = None
        try:
            await (await self._inbox.get()).check()
        except (DeferrableOpsError, TimeoutError) as error:
            self._problem = error
        self._valid_until = self._clock() + self._cache_seconds
