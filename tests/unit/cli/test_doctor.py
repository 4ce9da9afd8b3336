"""deferrable-ops doctor: no finding on a healthy installation, and each planted fault is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from unit.cli.support import CommandInbox

from deferrable_ops import metadata_database
from deferrable_ops.cli.main import main
from deferrable_ops.inbox.hosts import Component, Machine
from deferrable_ops.triggers.lifecycle import unended

Examine = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def examine(
    inbox: CommandInbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Examine:
    """Run the command on an inbox of which Airflow knows all waits and has ended none."""
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__DEPLOYMENT", "mine")
    monkeypatch.setattr(metadata_database, "find_orphaned", lambda attempts: [])

    async def none() -> list[str]:
        return []

    monkeypatch.setattr(unended, "attempts_from_database", none)

    def run() -> list[dict[str, Any]]:
        capsys.readouterr()
        code = main(["doctor", "--json"])
        findings: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
        assert code == int(bool(findings))
        return findings

    return run


def test_healthy_installation_has_no_findings(
    inbox: CommandInbox, examine: Examine, capsys: pytest.CaptureFixture[str]
) -> None:
    inbox.register()
    inbox.announce(Machine.this(), Component.TRIGGERER)
    assert examine() == []
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "No problems found\n"


def test_waits_without_a_triggerer_are_found(inbox: CommandInbox, examine: Examine) -> None:
    assert examine() == [], "nothing waits"
    inbox.register()
    [finding] = examine()
    assert finding["check"] == "triggerers"
    assert "1 tasks wait" in finding["problem"]
    assert "airflow triggerer" in finding["fix"]


def test_answered_task_that_airflow_has_not_ended_is_found(
    inbox: CommandInbox, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = inbox.register()
    main(["send", "success", wait.id, "--reason", "x"])

    async def under_way() -> list[str]:
        return [wait.id]

    monkeypatch.setattr(unended, "attempts_from_database", under_way)
    assert examine() == [], "it may still end"
    inbox.age(wait, 61)
    [finding] = examine()
    assert finding["check"] == "unended"
    assert wait.id in finding["problem"]
    assert "waits --answered" in finding["fix"]


def test_inbox_of_another_airflow_is_found(inbox: CommandInbox, examine: Examine) -> None:
    assert main(["inbox", "adopt", "theirs"]) == 0
    [finding] = examine()
    assert finding["check"] == "owner"
    assert "deployment theirs" in finding["problem"]
    assert "inbox adopt mine" in finding["fix"]


def test_sqlite_file_with_a_remote_executor_is_found(
    inbox: CommandInbox, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    [finding] = examine()
    assert finding["check"] == "hosts"
    assert "CeleryExecutor" in finding["problem"]
    assert "Postgres" in finding["fix"]


def test_sqlite_file_on_two_hosts_is_found(inbox: CommandInbox, examine: Examine) -> None:
    inbox.announce(Machine("elsewhere", "other"))
    [finding] = examine()
    assert finding["check"] == "hosts"
    assert "2 hosts" in finding["problem"]


def test_wait_without_a_task_instance_is_found(
    inbox: CommandInbox, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox.register()
    inbox.announce(Machine.this(), Component.TRIGGERER)
    monkeypatch.setattr(metadata_database, "find_orphaned", lambda attempts: attempts)
    [finding] = examine()
    assert finding["check"] == "orphaned"
    assert finding["problem"].startswith("1 waits")


def test_outage_is_found(inbox: CommandInbox, examine: Examine, capsys: pytest.CaptureFixture[str]) -> None:
    inbox.report_outage("Kafka (kafka_default)", "connection refused")
    [finding] = examine()
    assert finding["check"] == "outage"
    assert "connection refused" in finding["problem"]
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("outage: ")
    assert shown[1].startswith("    Fix: ")
    assert shown[2] == "1 problems found"
