"""Runs a check in a triggerer with a timeout. A coroutine runs on the event loop, and any other callable runs in a
thread.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import pkgutil
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, Final

from airflow.sdk.exceptions import AirflowSkipException

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.check_calls import accepted_kwargs, parse_result
from deferrable_ops.high_availability.facts import RunFacts
from deferrable_ops.high_availability.results import Action, CheckResult, Result
from deferrable_ops.inbox import Attempt
from deferrable_ops.triggers.high_availability.threads import (
    MAX_HANGING,
    TooManyHangingChecks,
    call_in_thread,
)

_IMPORT_SECONDS: Final = 120.0
_BLOCKED_WARNING_SECONDS: Final = 0.5

# Tasks that continue although they were cancelled. They are kept here, because asyncio keeps no strong references.
_abandoned: set[asyncio.Task[Any]] = set()


class CheckRunner:
    """Imports a check and runs it.

    :param path: the dotted path of a function, or of a class whose instances are callable.
    :param op_args: positional arguments of the function, or of the class when it is instantiated.
    :param op_kwargs: keyword arguments of the function, or of the class when it is instantiated.
    :param timeout: the timeout of each call of the check, in seconds.
    :param log: the task's log.
    """

    max_hanging: ClassVar[int] = MAX_HANGING
    """If this many checks hang in this process, further checks are not run, and their result is FAIL/RETRIGGER."""

    def __init__(
        self, path: str, op_args: Sequence[Any], op_kwargs: Mapping[str, Any], timeout: float, log: Any
    ) -> None:
        self._path = path
        self._args = tuple(op_args)
        self._kwargs = dict(op_kwargs)
        self._timeout = timeout
        self._log = log
        self._function: Callable[..., Any]

    async def load(self) -> None:
        """Import the check in a thread, because an import may block the event loop for seconds.

        :raises InputError: if the check cannot be imported, or its class cannot be instantiated.
        """
        try:
            find = functools.partial(pkgutil.resolve_name, self._path)
            found = await call_in_thread(find, _IMPORT_SECONDS, always=True)
            if inspect.isclass(found):
                make = functools.partial(found, *self._args, **self._kwargs)
                found = await call_in_thread(make, self._timeout, always=True)
                self._args, self._kwargs = (), {}
        except (Exception, SystemExit) as error:
            raise InputError(
                f"python_callable={self._path!r} could not be imported in the triggerer "
                f"({type(error).__name__}: {error}); install its package there, or put its module into the plugins "
                "folder. A triggerer cannot import from the DAGs folder. If the function is in the DAGs folder, pass "
                "the function and not its path; the check then runs on a worker"
            ) from error
        if not callable(found):
            raise InputError(
                f"python_callable={self._path!r} is a {type(found).__name__}, which cannot be called; give a function, "
                "or a class whose instances can be called"
            )
        self._function = found

    async def __call__(self, context: Mapping[str, Any]) -> CheckResult:
        """Run the check once and return its result.

        If the check raises an exception or times out, the result is FAIL/RETRIGGER.

        :raises AirflowSkipException: if the check raised this exception.
        """
        call = functools.partial(
            self._function,
            *self._args,
            **accepted_kwargs(self._function, self._args, {**context, **self._kwargs}),
        )
        try:
            returned = await self._returned_by(call)
        except AirflowSkipException:
            raise
        except TimeoutError as error:
            reason = str(error) or f"it did not return within check_timeout={self._timeout:g} s"
            self._log.error("The check failed (%s), so its result is FAIL/RETRIGGER", reason)
            return Result.FAIL, Action.RETRIGGER
        except TooManyHangingChecks as error:
            self._log.error("The check was not run and is treated as failed: %s", error)
            return Result.FAIL, Action.RETRIGGER
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            self._log.error(
                "The check failed with %s, so its result is FAIL/RETRIGGER",
                type(error).__name__,
                exc_info=error,
            )
            return Result.FAIL, Action.RETRIGGER
        return parse_result(returned, self._log)

    async def _returned_by(self, call: Callable[[], Any]) -> Any:
        function = self._function
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            # `callable()` is not enough: it does not show whether a call returns a coroutine.
            getattr(function, "__call__", None)  # noqa: B004
        ):
            return await self._on_loop(call())
        returned = await call_in_thread(call, self._timeout, max_hanging=self.max_hanging)
        return await self._on_loop(returned) if inspect.iscoroutine(returned) else returned

    async def _on_loop(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        # The coroutine runs in a separate task, because it may continue although it was cancelled.
        task = asyncio.create_task(_guarded(_Timed(coroutine, self._log)))
        try:
            done, _ = await asyncio.wait([task], timeout=self._timeout)
        finally:
            if not task.done():
                task.cancel()
                _abandoned.add(task)
                task.add_done_callback(_forget)
        if not done:
            raise TimeoutError
        if task.cancelled():
            raise RuntimeError("the check raised CancelledError itself, although it was not cancelled")
        value, error = task.result()
        if error is not None:
            raise error
        return value


def check_context(facts: RunFacts, attempt: Attempt, templates_dict: Any) -> dict[str, Any]:
    """Return the values of Airflow's context that a check can use in a triggerer."""
    ti = _TaskInstance(
        id=attempt.ti_id,
        dag_id=attempt.dag_id,
        run_id=attempt.run_id,
        task_id=attempt.task_id,
        map_index=attempt.map_index,
        try_number=attempt.try_number,
    )
    return {**facts.context(), "ti": ti, "task_instance": ti, "templates_dict": templates_dict}


class _TaskInstance(SimpleNamespace):
    def xcom_pull(self, task_ids: str, key: str = "return_value", *, map_indexes: int = -1) -> Any:
        """Return one XCom of this DAG run. Airflow's own ``xcom_pull`` would hang in a triggerer."""
        from airflow.sdk.execution_time.xcom import XCom

        return XCom.get_one(
            key=key, dag_id=self.dag_id, task_id=task_ids, run_id=self.run_id, map_index=map_indexes
        )


class _Timed:
    """Awaits a coroutine, and logs a warning if the coroutine blocks the event loop and thus all other triggers."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], log: Any) -> None:
        self._coroutine = coroutine
        self._log = log

    def __await__(self) -> Any:
        steps = self._coroutine.__await__()
        return (yield from _timed(steps, self._log))


def _timed(steps: Any, log: Any) -> Any:
    send, value = steps.send, None
    while True:
        started_at = time.monotonic()
        try:
            yielded = send(value)
        except StopIteration as stop:
            return stop.value
        finally:
            blocked = time.monotonic() - started_at
            if blocked > _BLOCKED_WARNING_SECONDS:
                log.warning(
                    "The check blocked the triggerer, and every task in it, for %.1f s; use `await` for slow calls, or "
                    "make the check a plain function, which runs in a thread",
                    blocked,
                )
        try:
            value = yield yielded
        except GeneratorExit:
            steps.close()
            raise
        except BaseException as error:
            send, value = steps.throw, error
        else:
            send = steps.send


async def _guarded(timed: _Timed) -> tuple[Any, BaseException | None]:
    try:
        return await timed, None
    except asyncio.CancelledError:
        raise
    # Catch SystemExit too: if a task raised it, the whole triggerer would end.
    except BaseException as error:
        return None, error


def _forget(task: asyncio.Task[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled():
        task.exception()
