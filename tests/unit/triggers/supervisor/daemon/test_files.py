"""The configuration file is compared without reading more than the configuration's length."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from unit.triggers.supervisor.fakes import FakeSupervisord, two
from unit.triggers.supervisor.support import Machine

from deferrable_ops.triggers.supervisor.daemon.drift import find_drift
from deferrable_ops.triggers.supervisor.daemon.files import configure
from deferrable_ops.triggers.supervisor.host import SupervisorHost

OTHERS = {"same": "", "longer": "\n", "huge": "#" * 2**23}


@pytest.mark.parametrize("what", OTHERS)
async def test_longer_file_is_drift_at_any_length(tmp_path: Path, what: str) -> None:
    cfg, machine, daemon = two(tmp_path), Machine("always"), FakeSupervisord()
    cfg.config_path.write_text(cfg.to_cfg() + OTHERS[what])
    drift = await find_drift(cfg, machine, daemon)  # type: ignore[arg-type]
    assert drift.other_file == (what != "same")
    assert machine.bytes_read <= len(cfg.to_cfg().encode()) + 1


@pytest.mark.parametrize("what", OTHERS)
async def test_longer_file_is_replaced(tmp_path: Path, what: str) -> None:
    cfg, machine = two(tmp_path), Machine("always")
    cfg.config_path.write_text(cfg.to_cfg() + OTHERS[what])
    site = SupervisorHost(cfg, machine, None, logging.getLogger())  # type: ignore[arg-type]
    assert await configure(site) == (what != "same")
    assert cfg.config_path.read_text() == cfg.to_cfg()
    assert machine.bytes_read <= len(cfg.to_cfg().encode()) + 1


async def test_truncated_file_is_drift(tmp_path: Path) -> None:
    cfg, daemon = two(tmp_path), FakeSupervisord()
    cfg.config_path.write_text(cfg.to_cfg()[:-1])
    drift = await find_drift(cfg, Machine("always"), daemon)  # type: ignore[arg-type]
    assert drift.other_file
