"""The command deferrable-ops channels: its output, and the secrets that it must not show."""

from __future__ import annotations

import asyncio
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from deferrable_ops.cli import channels as cli_channels
from deferrable_ops.cli.main import main
from deferrable_ops.events.signatures import SCHEMES, check_secret
from deferrable_ops.exceptions import UnknownChannel
from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.events.channels import Channel

STANDARD = "whsec_" + "c2VjcmV0" * 4


@pytest.fixture
def url(inbox_file: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", f"sqlite:///{inbox_file}")
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__ENDPOINT_URL", "https://hooks.example.com/deferrable-ops/")
    return f"sqlite+aiosqlite:///{inbox_file}"


def channel(url: str, name: str) -> Channel:
    async def run() -> Any:
        inbox = await Inbox.open(url, retry_timeout=5)
        try:
            return await inbox.channels.get(name)
        finally:
            await inbox.close()

    return asyncio.run(run())


def shown_secret(output: str) -> str:
    found = re.search(r"not shown again: (\S+)$", output, re.MULTILINE)
    assert found is not None
    return found[1]


def test_schemes_of_the_parser_are_all_schemes_that_can_be_verified() -> None:
    assert cli_channels._SCHEMES == SCHEMES


@pytest.mark.parametrize("scheme", ["standard-webhooks", "github", "bearer"])
def test_a_generated_secret_is_shown_once(url: str, capsys: pytest.CaptureFixture[str], scheme: str) -> None:
    assert main(["channels", "add", "orders", "--verify", scheme]) == 0
    output = capsys.readouterr().out
    assert "https://hooks.example.com/deferrable-ops/channels/orders" in output
    secret = shown_secret(output)
    check_secret(scheme, secret)
    assert channel(url, "orders").secrets == (secret,)
    for command in (["list"], ["list", "--json"]):
        assert main(["channels", *command]) == 0
        shown = capsys.readouterr()
        assert "orders" in shown.out
        assert secret not in shown.out + shown.err


@pytest.mark.parametrize("scheme", ["stripe", "slack"])
def test_a_vendor_secret_is_read_from_standard_input_and_not_shown(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hunter2\nmore\n"))
    assert main(["channels", "add", "orders", "--verify", scheme]) == 0
    assert "hunter2" not in capsys.readouterr().out
    assert channel(url, "orders").secrets == ("hunter2",)
    monkeypatch.setattr("sys.stdin", io.StringIO("hunter3"))
    assert main(["channels", "rotate", "orders"]) == 0
    assert "hunter3" not in capsys.readouterr().out
    assert channel(url, "orders").secrets == ("hunter3", "hunter2")


def test_own_secret_is_read_from_standard_input(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{STANDARD}\r\n"))
    assert main(["channels", "add", "orders", "--verify", "standard-webhooks", "--own-secret"]) == 0
    assert channel(url, "orders").secrets == (STANDARD,)


def test_a_terminal_is_prompted_for_the_secret(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("getpass.getpass", lambda _prompt: "typed")
    assert main(["channels", "add", "orders", "--verify", "slack"]) == 0
    assert channel(url, "orders").secrets == ("typed",)


def test_rotating_keeps_the_old_secret_for_the_given_hours(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["channels", "add", "orders", "--verify", "bearer"])
    first = shown_secret(capsys.readouterr().out)
    assert main(["channels", "rotate", "orders"]) == 0
    output = capsys.readouterr().out
    assert "24 hours" in output
    assert channel(url, "orders").secrets == (shown_secret(output), first)
    assert main(["channels", "rotate", "orders", "--old-valid-for", "0"]) == 0
    output = capsys.readouterr().out
    assert "stops accepting the old secret of orders within 5 s" in output
    assert channel(url, "orders").secrets == (shown_secret(output),)


def test_a_channel_can_be_removed(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["channels", "add", "orders", "--verify", "github"])
    assert main(["channels", "remove", "orders"]) == 0
    with pytest.raises(UnknownChannel):
        channel(url, "orders")
    capsys.readouterr()
    for command in (["remove", "orders"], ["rotate", "orders"]):
        assert main(["channels", *command]) == 1
        assert "no channel orders" in capsys.readouterr().err


def test_list_prints_a_table_or_json(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["channels", "add", "open", "--verify", "none", "--allow-unauthenticated"])
    main(["channels", "add", "builds", "--verify", "github"])
    main(["channels", "rotate", "builds"])
    capsys.readouterr()
    assert main(["channels", "list"]) == 0
    header, builds, opened = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["CHANNEL", "VERIFY", "SINCE"]
    assert re.match(r"builds +github +20\S+Z +20\S+Z +20\S+Z +https://\S+/channels/builds$", builds)
    assert re.match(r"open +none +20\S+Z +https://\S+/channels/open$", opened)
    main(["channels", "list", "--json"])
    assert [one["verify"] for one in json.loads(capsys.readouterr().out)] == ["github", "none"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["add", "orders"], "--verify"),
        (["add", "orders", "--verify", "hope"], "hope"),
        (["add", "orders", "--verify", "none"], "--allow-unauthenticated"),
        (["add", "orders", "--verify", "github", "--allow-unauthenticated"], "only with --verify none"),
        (["add", "orders", "--verify", "none", "--allow-unauthenticated", "--own-secret"], "--own-secret"),
        (["add", "a/b", "--verify", "github"], "a/b"),
        (["add", "{{ x }}", "--verify", "github"], "is not a channel name"),
        (["add", "orders", "--verify", "slack"], "empty"),
        (["add", "orders", "--verify", "standard-webhooks", "--own-secret"], "empty"),
        (["add", "known", "--verify", "github"], "the channel known already exists"),
        (["rotate", "open"], "no secret to rotate"),
        (["rotate", "known", "--old-valid-for", "-1"], "hours"),
        (["rotate", "known", "--old-valid-for", "nan"], "hours"),
        ([], "COMMAND"),
    ],
)
def test_bad_input_is_exit_code_2_with_the_reason(
    url: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    problem: str,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    main(["channels", "add", "known", "--verify", "github"])
    main(["channels", "add", "open", "--verify", "none", "--allow-unauthenticated"])
    try:
        code = main(["channels", *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert problem in capsys.readouterr().err


def test_a_missing_fernet_key_is_reported_by_name(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_key() -> None:
        raise ValueError("Fernet key must be 32 url-safe base64-encoded bytes.")

    monkeypatch.setattr("deferrable_ops.inbox.database.encryption.get_fernet", no_key)
    assert main(["channels", "add", "orders", "--verify", "github"]) == 2
    shown = capsys.readouterr()
    assert "fernet_key" in shown.err
    assert "not shown again" not in shown.out
