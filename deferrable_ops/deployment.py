"""The deployment of Airflow that this process belongs to.

An inbox belongs to one deployment. The deployment's id is the setting ``[deferrable_ops] deployment``. If the setting
is empty, the id is in an Airflow Variable, which only the API server's plugin writes
(:mod:`deferrable_ops.metadata_database`).
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any, Final

from deferrable_ops import settings
from deferrable_ops.supervisor_calls import WARM_UP_VARIABLE, Rank, send, warm_up

log = logging.getLogger(__name__)

VARIABLE: Final = WARM_UP_VARIABLE
"""The Airflow Variable with the deployment's id: a JSON object with the keys ``id`` and ``made_for``."""

_READ_INTERVAL = 5.0
_READ_TIMEOUT = 30.0


class Deployment:
    """What a process knows about its deployment.

    :param known_id: the id, if it is known already.
    """

    def __init__(self, known_id: str | None = None) -> None:
        self._known_id = known_id
        self._reading: asyncio.Task[str] | None = None
        self.is_awaited = False
        """Whether this process is a triggerer that reads its id from Airflow. Until it knows the id, it kills and
        cancels nothing."""

    @property
    def id(self) -> str | None:
        """The id; None as long as it is unknown."""
        return self._known_id or settings.deployment()

    def learn(self, known_id: str) -> None:
        """Set the id."""
        self._known_id = known_id

    def start_reading(self, *, interval: float = _READ_INTERVAL) -> asyncio.Task[str]:
        """In a triggerer, start to read the id, and return the task that returns the id.

        The Variable is read once. Only while there is no id, the Variable is read again.

        :param interval: seconds between two reads.
        """
        self.is_awaited = True
        self._reading = asyncio.create_task(
            self._read_until_known(interval), name="deferrable-ops deployment"
        )
        return self._reading

    async def pause(self, seconds: float) -> None:
        """Sleep, but only until a triggerer has read its id."""
        if self.id is None and self._reading is not None and not self._reading.done():
            await asyncio.wait([self._reading], timeout=seconds)
        else:
            await asyncio.sleep(seconds)

    async def _read_until_known(self, interval: float) -> str:
        reply = await warm_up()
        while self.id is None:
            if found := id_in(getattr(reply, "value", None)):
                self.learn(found)
                break
            await asyncio.sleep(interval)
            reply = await _request_variable()
        return str(self.id)

    async def read_elsewhere(self) -> None:
        """Read the id on a worker or in ``dag.test()``, unless it is known."""
        if self.id is None and (found := id_in(await asyncio.to_thread(_read_variable))):
            self.learn(found)


def id_in(value: str | None) -> str | None:
    """Return the id in the value of the Variable; None if there is none."""
    try:
        found = json.loads(value or "{}")["id"]
    except (KeyError, TypeError, ValueError):
        return None
    return found if isinstance(found, str) and found else None


async def _request_variable() -> Any:
    from airflow.sdk.execution_time.comms import GetVariable

    try:
        return await send(GetVariable(key=VARIABLE), rank=Rank.READ, timeout=_READ_TIMEOUT)
    except Exception as error:
        log.warning("Could not read the Airflow Variable %s: %s", VARIABLE, type(error).__name__)
        return None


def _read_variable() -> str | None:
    from airflow.sdk import Variable

    try:
        value: str | None = Variable.get(VARIABLE, default=None)
    except Exception as error:
        log.warning("Could not read the Airflow Variable %s: %s", VARIABLE, type(error).__name__)
        return None
    return value


this_process: Final = Deployment()
"""The deployment of this process."""
