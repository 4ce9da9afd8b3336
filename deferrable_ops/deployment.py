"""The deployment of Airflow that this process belongs to.

An inbox belongs to one deployment of Airflow. The deployment's id is the setting ``[deferrable_ops] deployment``. If
this setting is empty, the deployment's id is in an Airflow Variable. Only the API server's plugin writes this Variable
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
    """The id of the deployment of Airflow to which this process belongs. The process may not know the id of its
    deployment yet.

    :param known_id: the deployment's id, or None if the process does not know the id yet.
    """

    def __init__(self, known_id: str | None = None) -> None:
        self._known_id = known_id
        self._reading: asyncio.Task[str] | None = None
        self.is_awaited = False
        """Whether this process is a triggerer that reads the deployment's id from Airflow.

        Until the triggerer knows the id, it settles no killed waits and cancels no external work.
        """

    @property
    def id(self) -> str | None:
        """The deployment's id, or None while the process does not know the id."""
        return self._known_id or settings.deployment()

    def learn(self, known_id: str) -> None:
        """Set the id of the deployment to which this process belongs."""
        self._known_id = known_id

    def start_reading(self, *, interval: float = _READ_INTERVAL) -> asyncio.Task[str]:
        """In a triggerer, start an asyncio task that reads the deployment's id, and return this asyncio task.

        The asyncio task reads the Airflow Variable until the Variable contains an id, and then returns the id.

        :param interval: seconds between two reads of the Airflow Variable.
        """
        self.is_awaited = True
        self._reading = asyncio.create_task(
            self._read_until_known(interval), name="deferrable-ops deployment"
        )
        return self._reading

    async def pause(self, seconds: float) -> None:
        """Sleep for `seconds`, or until the asyncio task of :meth:`start_reading` has read the deployment's id."""
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
        """On a worker or in ``dag.test()``, read the deployment's id, unless this process already knows the id."""
        if self.id is None and (found := id_in(await asyncio.to_thread(_read_variable))):
            self.learn(found)


def id_in(value: str | None) -> str | None:
    """Return the deployment's id in the value of the Airflow Variable, or None if the value contains no id."""
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
        log.warning("Could not read the Airflow Variable %s; retrying: %s", VARIABLE, type(error).__name__)
        return None


def _read_variable() -> str | None:
    from airflow.sdk import Variable

    try:
        value: str | None = Variable.get(VARIABLE, default=None)
    except Exception as error:
        log.warning(
            "Could not read the Airflow Variable %s, so this process does not know its deployment of Airflow: %s",
            VARIABLE,
            type(error).__name__,
        )
        return None
    return value


this_process: Final = Deployment()
"""The deployment of this process."""
