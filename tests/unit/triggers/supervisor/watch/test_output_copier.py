"""A full disk with log files: supervisord reports nothing, so the task does."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from unit.triggers.supervisor.support import Machine, Program, Reader, warned

from deferrable_ops.triggers.supervisor.watch.output_copier import OutputCopier

MB = 2**20


async def test_full_disk_is_reported_once_until_it_has_space_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    space: list[int | None] = [2 * MB, 1000, 0, None, 2 * MB, 0]

    async def free_space(machine: Machine, *paths: Path) -> list[int | None]:
        assert paths == (tmp_path / "a",)
        return [space.pop(0)]

    monkeypatch.setattr(Machine, "free_space", free_space)
    monkeypatch.setattr(OutputCopier, "space_check_interval", 0.0)
    program = Program(tmp_path)
    reader = Reader(program, logging.getLogger("task"))
    reports = []
    while space:
        program.write(b"one\n")
        await reader.look()
        reports.append(len(warned(caplog)))
    # A disk whose space is unknown does not count as full.
    assert reports == [0, 1, 1, 1, 1, 2]
    assert warned(caplog)[0].startswith(f"The disk of {tmp_path / 'a'} on ")


async def test_space_is_read_once_a_minute_and_when_the_program_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0

    async def free_space(machine: Machine, *paths: Path) -> list[int | None]:
        nonlocal reads
        reads += 1
        return [0 for _ in paths]

    monkeypatch.setattr(Machine, "free_space", free_space)
    reader = Reader(Program(tmp_path), logging.getLogger("task"))
    for _ in range(5):
        await reader.look()
    assert reads == 1
    await reader.finish()
    assert reads == 2
