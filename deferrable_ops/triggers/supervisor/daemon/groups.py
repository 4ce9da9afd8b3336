"""The programs that a running supervisord knows, brought to what its file says now, before anything is started."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from deferrable_ops.exceptions import SupervisordRefused
from deferrable_ops.supervisord.processes import ALIVE
from deferrable_ops.triggers.supervisor.daemon.drift import Drift, find_drift
from deferrable_ops.triggers.supervisor.host import POLL, Site, StepFailed

_ALREADY_ADDED: Final = 90  # faults of supervisor's xmlrpc.py
_BAD_NAME: Final = 10


async def bring_up_to_date(site: Site) -> Drift:
    """Let supervisord take over what its file says of groups in which nothing runs; return how it still differs.

    What runs with another configuration is left alone, unless ``drift`` is apply: then it is stopped and replaced.

    :raises StepFailed: it cannot read its file; or something runs with another configuration, and ``drift`` is fail.
    """
    drift = await _replaced(site, await find_drift(site.cfg, site.machine, site.rpc))
    if drift.unreadable:
        raise StepFailed("supervisord cannot read its file; clear the task configure-supervisor")
    if not (drift.changed or drift.removed):
        return drift
    if site.cfg.drift == "fail":
        raise StepFailed(
            f"supervisord runs another configuration than this task's: {drift}. Stop it, or set drift='apply'",
            retryable=False,
        )
    if site.cfg.drift == "warn":
        site.log.warning("supervisord runs another configuration than this task's: %s", drift)
        return drift
    groups = (*drift.changed, *drift.removed)
    await site.check()
    site.log.info("Stopping what runs with another configuration: %s", ", ".join(groups))
    await site.rpc.multicall([("supervisor.stopProcessGroup", (group, False)) for group in groups])
    while drift.changed or drift.removed:
        await asyncio.sleep(POLL)
        drift = await _replaced(site, drift)
    return drift


async def _replaced(site: Site, drift: Drift) -> Drift:
    """Replace the groups in which nothing runs, and return the differences that stay."""
    alive = {process.group for process in await site.processes() if process.state in ALIVE}
    idle = [group for group in (*drift.changed, *drift.removed) if group not in alive]
    fresh = [*drift.added, *(group for group in drift.changed if group not in alive)]
    calls = [("supervisor.removeProcessGroup", (group,)) for group in idle]
    calls += [("supervisor.addProcessGroup", (group,)) for group in fresh]
    if calls:
        await site.check()
    for answer in await site.rpc.multicall(calls) if calls else ():
        if isinstance(answer, SupervisordRefused) and answer.code not in (_ALREADY_ADDED, _BAD_NAME):
            raise StepFailed(str(answer))
    return replace(
        drift,
        added=(),
        changed=tuple(group for group in drift.changed if group in alive),
        removed=tuple(group for group in drift.removed if group in alive),
    )
