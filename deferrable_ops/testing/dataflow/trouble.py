"""Injects errors, lost replies and delays into the fake Dataflow."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.cloud.dataflow_v1beta3 import InvalidTemplateParameters
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.status_pb2 import Status

METHODS = (
    "LaunchFlexTemplate",
    "LaunchTemplate",
    "GetJob",
    "GetJobMetrics",
    "ListJobs",
    "UpdateJob",
    "ListJobMessages",
)


@dataclass
class _Error:
    code: str
    message: str
    # None: all calls fail until mend() is called.
    times: int | None
    # How many calls succeed before the first call fails.
    skip: int = 0
    parameters: dict[str, str] = field(default_factory=dict)


class Trouble:
    """The errors, lost replies and delays that a test has set for each method of Dataflow's API.

    This class also counts the calls of each method.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._errors: dict[str, list[_Error]] = defaultdict(list)
        self._lost: dict[str, list[_Error]] = defaultdict(list)
        self._before: dict[str, float] = {}
        self._after: dict[str, float] = {}

    def fail(
        self,
        method: str,
        code: str = "UNAVAILABLE",
        message: str = "injected error",
        times: int | None = 1,
        parameters: dict[str, str] | None = None,
        skip: int = 0,
    ) -> None:
        """Make the next calls of a method fail, without executing the calls.

        :param method: the name of a method of Dataflow's API, such as ``GetJob``.
        :param code: the gRPC status that the client receives.
        :param times: the number of calls that fail. If `times` is None, all calls fail until :meth:`mend` is called.
        :param parameters: a dict with the name of each invalid template parameter, and why the parameter is invalid.
        :param skip: how many calls succeed before the first failure. Each page of a list is one call, so with
            ``skip=1`` the second page fails.
        """
        self._errors[_checked(method)].append(
            _Error(_status(code).name, message, times, skip, parameters or {})
        )

    def lose_replies(self, method: str, times: int | None = 1, code: str = "") -> None:
        """Execute the next calls of a method, but do not send the replies of these calls to the client.

        :param code: the gRPC status that the client receives; an empty string sends no reply at all.
        """
        self._lost[_checked(method)].append(
            _Error(_status(code).name if code else "", "connection reset", times)
        )

    def delay(self, method: str, before: float = 0.0, after: float = 0.0) -> None:
        """Delay all later calls of a method.

        :param before: how many seconds pass before a call is executed. If the call's deadline passes during this delay,
            the call is not executed.
        :param after: how many seconds pass between the execution of a call and its reply.
        """
        self._before[_checked(method)] = before
        self._after[method] = after

    def mend(self, method: str = "") -> None:
        """Remove all errors, lost replies and delays.

        :param method: the method whose errors, lost replies and delays are removed. If `method` is "", those of all
            methods are removed.
        """
        for methods in (self._errors, self._lost, self._before, self._after):
            for name in [method] if method else METHODS:
                methods.pop(name, None)

    async def arrive(self, method: str, context: Any) -> None:
        """Count a call of a method, and apply the errors and delays that a test has set for before the call."""
        self.calls[method] += 1
        if error := _next(self._errors[method]):
            await _abort(context, error)
        await asyncio.sleep(self._before.get(method, 0))
        remaining = context.time_remaining()
        if remaining is not None and remaining <= 0:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline has passed")

    async def leave(self, method: str, context: Any) -> None:
        """Apply the lost replies and delays that a test has set for the time after the execution of a call."""
        if lost := _next(self._lost[method]):
            if not lost.code:
                # Wait until the client cancels the call.
                await asyncio.Event().wait()
            await _abort(context, lost)
        await asyncio.sleep(self._after.get(method, 0))


def _next(errors: list[_Error]) -> _Error | None:
    if not errors:
        return None
    error = errors[0]
    if error.skip > 0:
        error.skip -= 1
        return None
    if error.times is not None:
        error.times -= 1
        if error.times <= 0:
            errors.pop(0)
    return error


async def _abort(context: Any, error: _Error) -> None:
    code = _status(error.code)
    if not error.parameters:
        await context.abort(code, error.message)
    violations = [{"parameter": name, "description": why} for name, why in error.parameters.items()]
    detail = AnyMessage()
    invalid = InvalidTemplateParameters(parameter_violations=violations)
    detail.Pack(InvalidTemplateParameters.pb(invalid))
    status = Status(code=code.value[0], message=error.message, details=[detail])
    metadata = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(code, error.message, metadata)


def _checked(method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}; give one of {', '.join(METHODS)}")
    return method


def _status(code: str) -> grpc.StatusCode:
    return grpc.StatusCode[code]
