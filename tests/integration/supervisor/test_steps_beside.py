"""Two steps of one supervisord at the same time, such as a force-kill during a teardown."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Sequence
from typing import Any

import pytest
from integration.supervisor.support import BEGIN, Place, alive, until

from deferrable_ops.upstreams.machine.local import LocalMachine
from deferrable_ops.upstreams.machine.machine import CommandResult

pytest.importorskip("supervisor.supervisord")


async def test_step_waits_for_a_lock_that_another_step_holds_briefly(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = place.cfg()
    await place.run_steps(cfg, *BEGIN)
    (daemon,) = place.daemons()
    os.kill(daemon, signal.SIGKILL)
    until(lambda: not alive(daemon))
    real, removals = LocalMachine.run, []

    async def run_beside_another(
        machine: LocalMachine, arguments: Sequence[str], **kwargs: Any
    ) -> CommandResult:
        removes = any("rm -f" in part for part in arguments)
        if not removes or arguments in removals:
            return await real(machine, arguments, **kwargs)
        removals.append(arguments)
        with (place.folder / "s" / "supervisord.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return await real(machine, arguments, **kwargs)

    monkeypatch.setattr(LocalMachine, "run", run_beside_another)
    await place.run_steps(cfg, "stop-supervisor")
    assert not cfg.socket_path.exists()
    await place.run_steps(cfg, "unconfigure-supervisor")
    assert not list(place.folder.iterdir())
    assert len(removals) == 2
