"""What goes wrong in the fake when it is told to."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.cloud.dataflow_v1beta3 import InvalidTemplateParameters
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.status_pb2 import Status

METHODS = ("LaunchFlexTemplate", "LaunchTemplate", "GetJob", "ListJobs", "UpdateJob", "ListJobMessages")


@dataclass
class _Error:
    code: str
    message: str
    times: int | None  # None: until it is mended
    parameters: dict[str, str] = field(default_factory=dict)


class Trouble:
    """Errors, lost replies and slowness, for each method."""

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
        message: str = "the fake was told to fail",
        times: int | None = 1,
        parameters: dict[str, str] | None = None,
    ) -> None:
        """Answer the next calls with an error, and do nothing else.

        :param method: as ``GetJob``.
        :param code: a gRPC status.
        :param times: None goes on until `mend`.
        :param parameters: a template's invalid parameters, and why.
        """
        self._errors[_known(method)].append(_Error(_status(code).name, message, times, parameters or {}))

    def lose_replies(self, method: str, times: int | None = 1, code: str = "") -> None:
        """Do what the next calls ask for, and never tell.

        :param code: a gRPC status, which they get instead; empty never answers at all.
        """
        self._lost[_known(method)].append(
            _Error(_status(code).name if code else "", "connection reset", times)
        )

    def delay(self, method: str, before: float = 0.0, after: float = 0.0) -> None:
        """Be slow from now on.

        :param before: seconds before anything is done. A call whose deadline has passed by then is not done.
        :param after: seconds between that and the reply.
        """
        self._before[_known(method)] = before
        self._after[method] = after

    def mend(self, method: str = "") -> None:
        """Let nothing go wrong any more; empty means in every method."""
        for methods in (self._errors, self._lost, self._before, self._after):
            for name in [method] if method else METHODS:
                methods.pop(name, None)

    async def arrive(self, method: str, context: Any) -> None:
        """Count a call, and let go wrong what has to before it is carried out."""
        self.calls[method] += 1
        if error := _next(self._errors[method]):
            await _abort(context, error)
        await asyncio.sleep(self._before.get(method, 0))
        remaining = context.time_remaining()
        if remaining is not None and remaining <= 0:  # nobody waits for it
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline has passed")

    async def leave(self, method: str, context: Any) -> None:
        """Let go wrong what has to after a call was carried out."""
        if lost := _next(self._lost[method]):
            if not lost.code:
                await asyncio.Event().wait()  # until the client goes
            await _abort(context, lost)
        await asyncio.sleep(self._after.get(method, 0))


def _next(errors: list[_Error]) -> _Error | None:
    if not errors:
        return None
    error = errors[0]
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


def _known(method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"{method!r} is none of {', '.join(METHODS)}")
    return method


def _status(code: str) -> grpc.StatusCode:
    return grpc.StatusCode[code]
