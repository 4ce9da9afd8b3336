"""Environment variables whose values supervisord's configuration file cannot contain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from integration.supervisor.support import BEGIN, END, SLEEP, Place, command_of

pytest.importorskip("supervisor.supervisord")

PEM = '-----BEGIN PRIVATE KEY-----\nMIIE it\'s "secret" $HOME `id` \\n 100%\n-----END PRIVATE KEY-----\n'
SETTINGS = json.dumps({"name": "it's", "format": "%(levelname)s"}, indent=1)


async def test_values_with_quotes_and_line_breaks_arrive_unchanged(place: Place) -> None:
    environment = {"PEM": PEM, "SETTINGS": SETTINGS, "PLAIN": "plain", "QUOTED": '"x"'}
    cfg = place.cfg(program={"a": {"command": SLEEP, "environment": environment}})
    result = await place.run_steps(cfg, *BEGIN)
    pid = result["programs"]["a:a"]["pid"]
    found = dict(variable.split(b"=", 1) for variable in place.environment(pid) if b"=" in variable)
    assert {name: found[name.encode()].decode() for name in environment} == environment
    assert command_of(pid)[1] == "-c", "the shell has become the program"
    folder = place.folder / "s"
    (file,) = folder.glob("environment-*")
    assert file.stat().st_mode & 0o777 == 0o600
    assert "secret" not in (folder / "supervisord.conf").read_text()
    for process in Path("/proc").glob("[0-9]*"):
        assert not any("BEGIN PRIVATE" in part for part in command_of(int(process.name)))
    await place.run_steps(cfg, *END)
    assert list(place.folder.iterdir()) == []


async def test_changed_value_restarts_the_program(place: Place) -> None:
    for value in ("old '\"", "new '\""):
        program = {"a": {"command": SLEEP, "environment": {"A": value}}}
        cfg = place.cfg(program=program, drift="apply")
        result = await place.run_steps(cfg, *BEGIN)
        assert f"A={value}".encode() in place.environment(result["programs"]["a:a"]["pid"])
