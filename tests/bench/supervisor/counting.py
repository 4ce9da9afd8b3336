"""supervisord's own XML-RPC, which counts the calls that it is asked."""

from __future__ import annotations

from collections import Counter
from typing import Any

from supervisor.rpcinterface import SupervisorNamespaceRPCInterface

# supervisor's getAllProcessInfo calls it once for each process.
_WITHIN_ANOTHER = "getProcessInfo"

_calls: Counter[str] = Counter()  # supervisord makes an interface for its socket and another one for its port


class CountingInterface(SupervisorNamespaceRPCInterface):  # type: ignore[misc]
    """The calls of one supervisord."""

    def _update(self, method: str) -> None:
        _calls[method] += 1
        super()._update(method)

    def countCalls(self) -> int:  # noqa: N802 - supervisor's style
        """Return how many calls came, without this one."""
        return _calls.total() - _calls[_WITHIN_ANOTHER]


def make_interface(supervisord: Any, **_: str) -> CountingInterface:
    """Return what answers the calls of the namespace ``supervisor``."""
    return CountingInterface(supervisord)
