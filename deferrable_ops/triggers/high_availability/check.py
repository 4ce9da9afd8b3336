"""Runs a check in a triggerer with a timeout. A coroutine runs on the event loop, and any other callable runs in a
thread.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import pkgutil
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final

from airflow.sdk.definitions.context import KNOWN_CONTEXT_KEYS
from airflow.sdk.exceptions import AirflowSkipException

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.check_calls import (
    TRIGGERER_CONTEXT,
    accepted_kwargs,
    parse_result,
    require_parameters,
)
from deferrable_ops.high_availability.facts import LimitedNamespace, RunFacts, WorkerOnlyAttribute
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

    async def load(self, context: Mapping[str, Any]) -> None:
        """Import the check in a thread, because an import may block the event loop for seconds.

        :param context: the context with which the check will be called.
        :raises InputError: if the check cannot be imported, its class cannot be instantiated, or the call does not set
            a required parameter.
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
        require_parameters(found, self._args, {*context, *self._kwargs})
        self._function = found

    async def __call__(self, context: Mapping[str, Any]) -> CheckResult:
        """Run the check once and return its result.

        If the check raises an exception or times out, the result is FAIL/RETRIGGER.

        :raises AirflowSkipException: if the check raised this exception.
        :raises InputError: if the check uses a part of Airflow's context that only a worker has.
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
            self._log.error("The check was not run, so its result is FAIL/RETRIGGER: %s", error)
            return Result.FAIL, Action.RETRIGGER
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if (used := _worker_only_use(error)) is not None:
                raise InputError(
                    f"python_callable={self._path!r} uses {used}, which a triggerer does not have; do without it, or "
                    "wrap the call in a function of the DAG file, so that the check runs on a worker"
                ) from error
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
        name="ti",
        id=attempt.ti_id,
        dag_id=attempt.dag_id,
        run_id=attempt.run_id,
        task_id=attempt.task_id,
        map_index=attempt.map_index,
        try_number=attempt.try_number,
    )
    return {**facts.context(), "ti": ti, "task_instance": ti, "templates_dict": templates_dict}


class _TaskInstance(LimitedNamespace):
    def xcom_pull(
        self,
        task_ids: str | Iterable[str] | None = None,
        dag_id: str | None = None,
        key: str = "return_value",
        include_prior_dates: bool = False,
        *,
        map_indexes: int | Iterable[int] | None = None,
        default: Any = None,
        run_id: str | None = None,
    ) -> Any:
        """Return an XCom, or a list of XComs for several tasks or map indexes. By default, read the XCom
        ``return_value`` of this task in this DAG run. By default, the tasks in `task_ids` are treated as tasks that are
        not mapped.

        Airflow's own ``xcom_pull`` would hang in a triggerer.
        """
        from airflow.sdk.execution_time.xcom import XCom

        tasks = (
            [self.task_id] if task_ids is None else [task_ids] if isinstance(task_ids, str) else [*task_ids]
        )
        own_index = self.map_index if task_ids is None else -1
        indexes = [own_index if map_indexes is None else map_indexes]
        if isinstance(map_indexes, Iterable):
            indexes = [*map_indexes]
        found = [
            XCom.get_one(
                key=key,
                dag_id=dag_id or self.dag_id,
                task_id=task_id,
                run_id=run_id or self.run_id,
                map_index=index,
                include_prior_dates=include_prior_dates,
            )
            for task_id in tasks
            for index in indexes
        ]
        values = [default if value is None else value for value in found]
        is_one = (task_ids is None or isinstance(task_ids, str)) and not isinstance(map_indexes, Iterable)
        return values[0] if is_one else values


def _worker_only_use(error: BaseException) -> str | None:
    """Return what the check has used that exists only on a worker; None if the error has another cause."""
    match error:
        case WorkerOnlyAttribute():
            return str(error)
        case KeyError(args=[str(name)]) if name in KNOWN_CONTEXT_KEYS - TRIGGERER_CONTEXT:
            return f"the name {name!r} of Airflow's context"
    return None


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
        # A call such as Variable.get() does not block the loop, but `send` returns only after the call.
        passes: list[bool] = []
        mark = asyncio.get_running_loop().call_soon(passes.append, True)
        try:
            yielded = send(value)
        except StopIteration as stop:
            return stop.value
        finally:
            mark.cancel()
            blocked = time.monotonic() - started_at
            if blocked > _BLOCKED_WARNING_SECONDS and not passes:
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
    # Airflow prepares the task of a trigger in the same way. A check can then call Variable.get() and other functions
    # of the SDK that are not coroutines. Only a triggerer must have greenback.
    with suppress(ImportError):
        if os.environ.get("AIRFLOW_DISABLE_GREENBACK_PORTAL", "").lower() != "true":
            import greenback

            await greenback.ensure_portal()
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
