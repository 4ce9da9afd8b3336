"""The restart step, if supervisord is gone."""

from __future__ import annotations

import psutil
import pytest
from integration.supervisor.support import BEGIN, Place

pytest.importorskip("supervisor.supervisord")


async def test_restart_without_supervisord_is_left_to_the_next_run(
    place: Place,
) -> None:
    cfg = place.cfg()
    await place.run_steps(cfg, *BEGIN)
    [supervisord] = map(psutil.Process, place.daemons())
    supervisord.kill()
    psutil.wait_procs([supervisord], timeout=5)
    assert (await place.run_steps(cfg, "restart-programs"))["programs"] == {}
    result = await place.run_steps(cfg, *BEGIN)
    assert {name: one["state"] for name, one in result["programs"].items()} == {
        "a:a": "RUNNING",
        "b:b": "RUNNING",
    }
