"""Calls to Airflow's supervisor process, through which a triggerer reads connections and sets XComs.

The supervisor process serves one call at a time, and each call takes 20 to 35 ms. The event that ends a task is sent
only after all earlier calls, so many calls at once delay the end of every task. To keep this delay short, only a few
calls run at the same time, and calls that end a task come before calls that show a task's progress.

A triggerer's first call takes 2 to 100 s, because Airflow then builds an API server inside the supervisor process. So
this module makes a first call that only reads an Airflow Variable. All other calls wait until the first call is
answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from enum import IntEnum
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from deferrable_ops.outages import AIRFLOW, outages
from deferrable_ops.throttle import Throttle

log = logging.getLogger(__name__)
T = TypeVar("T")

_IN_FLIGHT: Final = 3
_WARM_UP_TIMEOUT: Final = 300.0
WARM_UP_VARIABLE: Final = "deferrable_ops_deployment"
"""The Airflow Variable that the first call reads."""

_calls = Throttle(_IN_FLIGHT)
_warm_ups: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[Any]] = WeakKeyDictionary()


class Rank(IntEnum):
    """The rank (priority) of a call to Airflow's supervisor process. Calls with a lower rank are made first."""

    END = 0
    READ = 1
    PROGRESS = 2


async def call_supervisor(call: Callable[[], Awaitable[T]], *, rank: Rank, timeout: float) -> T:
    """Wait until a call may run, make the call, and return its result.

    :param call: the function that makes the call. The function `call` is called at most once.
    :param timeout: the timeout of the call, in seconds, which begins when the call is made.
    :raises TimeoutError: if Airflow did not reply in time. Airflow never replies to a message of an unsupported type.
    """
    with _calls.slot(rank) as granted:
        await granted
        await warm_up()
        async with asyncio.timeout(timeout):
            result = await call()
    outages.recovered(AIRFLOW)
    return result


async def send(message: Any, *, rank: Rank, timeout: float) -> Any:
    """Send a message to the supervisor process and return the reply; see :func:`call_supervisor`."""
    from airflow.sdk.execution_time import task_runner

    return await call_supervisor(
        lambda: task_runner.SUPERVISOR_COMMS.asend(message), rank=rank, timeout=timeout
    )


async def warm_up() -> Any:
    """Make this process's first call to the supervisor process, and return the reply.

    If the first call was already made, return the reply to that call. The reply is None if the supervisor process did
    not answer.
    """
    loop = asyncio.get_running_loop()
    if loop not in _warm_ups:
        # A separate task with an empty context: it is not cancelled with the trigger that comes first, and it does not
        # write to that trigger's log.
        _warm_ups[loop] = loop.create_task(_first_call(), name="deferrable-ops warm-up", context=Context())
    return await asyncio.shield(_warm_ups[loop])


async def _first_call() -> Any:
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import GetVariable

    comms: Any = getattr(task_runner, "SUPERVISOR_COMMS", None)
    if not hasattr(comms, "asend"):
        return None
    began = time.monotonic()
    try:
        async with asyncio.timeout(_WARM_UP_TIMEOUT):
            reply = await comms.asend(GetVariable(key=WARM_UP_VARIABLE))
    except Exception as error:
        log.warning(
            "Airflow's supervisor process did not answer this triggerer's first call; later calls are made anyway: %s",
            type(error).__name__,
        )
        return None
    log.info(
        "Airflow's supervisor process answered this triggerer's first call after %.1f s",
        time.monotonic() - began,
    )
    return reply
