"""Errors of supervisord about its file are shown without the secrets in it."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deferrable_ops.exceptions import MachineUnavailable
from deferrable_ops.supervisord import SupervisorAirflowConfiguration, SupervisorSSHAirflowConfiguration
from deferrable_ops.triggers.supervisor.configuration import mask_secrets
from deferrable_ops.triggers.supervisor.daemon import daemon as daemon_daemon
from deferrable_ops.triggers.supervisor.host import SupervisorHost
from deferrable_ops.upstreams.machine.local import LocalMachine
from deferrable_ops.upstreams.machine.machine import CommandResult

SECRETS = [
    "s3cr%et\\Key",
    "it's 100%% ;secret #too",
    'a "quoted" thing',
    "50%%(here)s off",
    " spaces around%d ",
    "caf\u00e9\u00a0no\u200bbreak\\x41",
    "x%(ENV_NOT_THERE)s%yz",
]


def cfg(folder: Path, value: str, **fields: Any) -> SupervisorAirflowConfiguration:
    return SupervisorAirflowConfiguration(
        working_dir=folder,
        program={
            "test": {"command": "sleep 9", "environment": {"TOKEN": value, "BAD": "x%(ENV_NOT_THERE)s"}}
        },
        **fields,
    )


def error_of(config: SupervisorAirflowConfiguration, text: str | None = None) -> str:
    """Return supervisord's error about the file."""
    for folder in config.directories:
        folder.mkdir(exist_ok=True, parents=True)
    config.config_path.write_text(config.to_cfg() if text is None else text)
    command = [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(config.config_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode
    return ended.stdout + ended.stderr


@pytest.fixture(autouse=True)
def supervisor() -> None:
    pytest.importorskip("supervisor.supervisord")


@pytest.mark.parametrize("where", ["program", "daemon"])
@pytest.mark.parametrize("value", SECRETS)
def test_expansion_error_is_shown_without_secrets(tmp_path: Path, value: str, where: str) -> None:
    environment = {"TOKEN": value, "BAD": "x%(ENV_NOT_THERE)s"}
    config = (
        cfg(tmp_path, value)
        if where == "program"
        else cfg(tmp_path, "1", supervisord={"environment": environment})
    )
    output = error_of(config)
    assert "TOKEN=" in output, "supervisord shows all of it"
    masked = mask_secrets(output, config)
    name = "environment" if where == "program" else "supervisord.environment"
    assert masked.startswith(f"for '{name}' contains names ('ENV_NOT_THERE') which cannot be expanded.")
    assert "TOKEN=" not in masked
    quoted = f"supervisord took longer than 3 s on web, and was killed; it wrote: {output[-8000:]!r}"
    masked = mask_secrets(quoted, config)
    assert masked.startswith("supervisord took longer than 3 s on web, and was killed; it wrote: ")
    assert "contains names (" in masked
    assert "TOKEN=" not in masked


@pytest.mark.parametrize("value", SECRETS)
@pytest.mark.parametrize("where", ["program", "daemon"])
def test_parse_error_is_shown_without_the_value(tmp_path: Path, value: str, where: str) -> None:
    config = cfg(tmp_path, value)
    if where == "daemon":
        config = cfg(tmp_path, "1234", supervisord={"environment": {"TOKEN": value, "OTHER": "it's"}})
    line = next(line for line in config.to_cfg().splitlines() if "TOKEN=" in line and "1234" not in line)
    output = error_of(
        config, f"[supervisord]\n{line.replace('environment=', 'environment ', 1).replace('=', ' ')}\n"
    )
    assert "TOKEN" in output, "supervisord shows the line"
    for text in (output, f"it wrote: {output!r}"):
        masked = mask_secrets(text, config)
        assert "TOKEN" in masked
        assert "***" in masked
        for piece in ("s3cr", "secret", "quoted", "off", "spaces", "caf", "break", "NOT_THERE)s%"):
            assert piece not in masked.split("BAD")[0].split("OTHER")[0]


@pytest.mark.parametrize("value", SECRETS)
@pytest.mark.parametrize("doubled", [1, 2, 4])
def test_value_is_hidden_in_each_form(tmp_path: Path, value: str, doubled: int) -> None:
    config, form = cfg(tmp_path, value), value.replace("%", "%" * doubled)
    for show in (str, repr, ascii):
        assert mask_secrets(f"<{show(form)[1:-1]}>" if show is not str else f"<{form}>", config) == "<***>"
        quoted, hidden = (show(repr("\"'" + text)) for text in (form, "***"))
        assert mask_secrets(quoted, config) == hidden


@pytest.mark.parametrize("value", SECRETS)
def test_truncated_value_at_the_start_is_masked(tmp_path: Path, value: str) -> None:
    config = cfg(tmp_path, value)
    for form in (value, repr(value)[1:-1]):
        for start in range(1, len(form) - 4):
            assert mask_secrets(f'{form[start:]}" is wrong', config) == '***" is wrong'
            masked = mask_secrets(f"sh took longer; it wrote: '{form[start:]} and more'", config)
            assert masked == "sh took longer; it wrote: '*** and more'"


def test_of_two_values_the_longer_is_hidden_first() -> None:
    config = SupervisorSSHAirflowConfiguration(
        working_dir="/srv/s",
        program={"test": {"command": "x", "environment": {"A": "abcd", "B": "abcd%efgh"}}},
        ssh_conn_id="web",
        environment={"C": "one\ntwo", "D": "no"},
    )
    assert mask_secrets("abcd%%efgh, abcd and 'one\\ntwo': no", config) == "***, *** and '***': no"


def test_other_values_are_shown(tmp_path: Path) -> None:
    text = (
        "Error: The directory named as part of the path /x/y.log does not exist\nFor help, use supervisord -h"
    )
    assert mask_secrets(text, cfg(tmp_path, SECRETS[0])) == text
    unread = mask_secrets(
        "Error: Unexpected end of key/value pairs in value 'A=\"1\",B'\nFor help", cfg(tmp_path, "1234")
    )
    assert unread == "Error: Unexpected end of key/value pairs in value '***\nFor help"


@pytest.mark.parametrize("kept", [500, 8192])
async def test_launch_timeout_is_shown_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    secret = "s3cr%et\\Key" * 60
    config = cfg(tmp_path, secret)
    for folder in config.directories:
        folder.mkdir(exist_ok=True, parents=True)
    config.config_path.write_text(config.to_cfg())
    machine = LocalMachine()

    async def takes_too_long(
        arguments: Sequence[str], *, timeout: float, stdin: bytes = b""
    ) -> CommandResult:
        assert str(config.config_path) in arguments
        output = config.to_cfg().partition('",BAD=')[0]
        raise MachineUnavailable(f"sh took longer than {timeout:g} s; it wrote: {output[-kept:]!r}")

    async def nothing(*_: Any, **__: Any) -> None: ...

    monkeypatch.setattr(daemon_daemon, "end_orphans", nothing)
    monkeypatch.setattr(machine, "run", takes_too_long)
    with pytest.raises(MachineUnavailable, match=r"sh took longer than \d+ s; it wrote: '") as raised:
        await daemon_daemon._launch(SupervisorHost(config, machine, None, logging.getLogger()))  # type: ignore[arg-type]
    assert "s3cr" not in str(raised.value)
    assert "***" in str(raised.value)
    assert raised.value.__cause__ is None
