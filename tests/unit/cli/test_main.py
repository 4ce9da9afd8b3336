"""The command deferrable-ops: waits, send, serve, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from unit.cli.support import CommandInbox

from deferrable_ops import metadata_database
from deferrable_ops.cli.main import main
from deferrable_ops.inbox.hosts import Machine
from deferrable_ops.outcome import Failure, Skip, Success
from deferrable_ops.triggers.lifecycle import unended

UNKNOWN = "11111111-1111-5111-8111-111111111111"


@pytest.mark.parametrize(
    ("arguments", "outcome"),
    [
        (["success"], Success(None)),
        (["success", "--json", '{"rows": 3}'], Success({"rows": 3})),
        (["failure"], Failure("a test")),
        (["failure", "--json", '{"reason": "disk", "retryable": false}'], Failure("disk", retryable=False)),
        (["skip"], Skip("a test")),
    ],
)
def test_send_settles_a_wait(
    inbox: CommandInbox, capsys: pytest.CaptureFixture[str], arguments: list[str], outcome: Any
) -> None:
    wait = inbox.register()
    verb, *rest = arguments
    assert main(["send", verb, wait.id, *rest, "--reason", "a test"]) == 0
    assert json.loads(capsys.readouterr().out)["wait"] == wait.id
    assert inbox.get(wait).outcome == outcome


@pytest.mark.parametrize("verb", ["success", "failure", "skip", "heartbeat"])
def test_send_leaves_an_audit_row_with_user_and_reason(
    inbox: CommandInbox, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("LOGNAME", "alice")
    assert main(["send", verb, inbox.register().id, "--reason", "the service is down"]) == 0
    (row,) = inbox.audit()
    assert (row.verb, row.source) == (verb, "cli:alice: the service is down")


def test_send_shows_progress(inbox: CommandInbox) -> None:
    wait = inbox.register()
    assert main(["send", "heartbeat", wait.id, "--json", '{"progress": 0.5}', "--reason", "x"]) == 0
    assert inbox.get(wait).progress == {"progress": 0.5}


def test_send_prints_why_it_was_rejected(inbox: CommandInbox, capsys: pytest.CaptureFixture[str]) -> None:
    wait = inbox.register()
    assert main(["send", "success", wait.id, "--reason", "x"]) == 0
    assert main(["send", "failure", wait.id, "--reason", "x"]) == 1
    assert "settled already" in capsys.readouterr().out
    assert main(["send", "success", UNKNOWN, "--reason", "x"]) == 1
    assert "never seen this wait" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["send", "success", UNKNOWN], "--reason"),
        (["send", "success", UNKNOWN, "--reason", " "], "--reason"),
        (["send", "success", "not-a-wait", "--reason", "x"], "UUID"),
        (["send", "explode", UNKNOWN, "--reason", "x"], "explode"),
        (["send", "success", UNKNOWN, "--json", "{", "--reason", "x"], "--json"),
        (["send", "success", UNKNOWN, "--json", "NaN", "--reason", "x"], "NaN"),
        (["send", "failure", UNKNOWN, "--json", "[]", "--reason", "x"], "object"),
        (["send", "heartbeat", UNKNOWN, "--json", '{"progress": 7}', "--reason", "x"], "progress"),
        (["waits", "--state", "tired"], "tired"),
        (["waits", "--limit", "0"], "above 0"),
        (["waits", "--since", "yesterday"], "2h, 7d"),
        (["waits", "--since", "5"], "2h, 7d"),
        (["waits", "--answered", "--state", "all"], "--state"),
        (["inbox", "prune", "--days", "-1"], "above 0"),
        (["inbox", "prune", "--days", "nan"], "above 0"),
        (["inbox"], "required"),
        (["serve", "--port", "http"], "port"),
        (["serve", "--certificate", "/no/such/file"], "--private-key"),
        ([], "COMMAND"),
    ],
)
def test_bad_input_is_exit_code_2_with_the_reason(
    inbox: CommandInbox, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert problem in capsys.readouterr().err


def test_waits_shows_the_outage_of_the_system_that_a_wait_depends_on(
    inbox: CommandInbox, capsys: pytest.CaptureFixture[str]
) -> None:
    inbox.register("orders", sources=("Kafka (logs)",))
    inbox.register("train")
    inbox.report_outage("Kafka (logs)", "no broker answers")
    assert main(["waits"]) == 0
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert "Kafka (logs) since " in lines["sales.orders"]
    assert lines["sales.orders"].endswith(": no broker answers")
    assert "Kafka" not in lines["sales.train"]
    assert main(["waits", "--json", "--task", "orders"]) == 0
    ((outage,),) = [wait["outages"] for wait in json.loads(capsys.readouterr().out)]
    assert (outage["source"], outage["error"]) == ("Kafka (logs)", "no broker answers")


def test_waits_prints_a_table(inbox: CommandInbox, capsys: pytest.CaptureFixture[str]) -> None:
    train = inbox.register("train")
    done = inbox.register("done")
    main(["send", "heartbeat", train.id, "--json", '{"progress": 0.5}', "--reason", "x"])
    main(["send", "success", done.id, "--reason", "x"])
    capsys.readouterr()
    assert main(["waits"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["WAIT", "TASK", "STATE", "SINCE", "DEADLINE", "LAUNCHED", "PROGRESS", "OUTAGE"]
    assert line.startswith(f"{train.id}  sales.train manual try 1  waiting  20")
    assert line.endswith('{"progress": 0.5}')


def test_waits_are_selected_by_state_dag_and_task(
    inbox: CommandInbox, capsys: pytest.CaptureFixture[str]
) -> None:
    waits = [inbox.register("a"), inbox.register("b"), inbox.register("c", dag_id="other")]
    main(["send", "skip", waits[0].id, "--reason", "x"])
    capsys.readouterr()

    def chosen(*arguments: str) -> set[str]:
        assert main(["waits", "--json", *arguments]) == 0
        return {wait["task_id"] for wait in json.loads(capsys.readouterr().out)}

    assert chosen() == {"b", "c"}
    assert chosen("--state", "all") == {"a", "b", "c"}
    assert chosen("--state", "skipped") == {"a"}
    assert chosen("--dag", "other") == {"c"}
    assert chosen("--task", "b", "--dag", "sales") == {"b"}
    assert chosen("--run-id", "none") == set()


def test_waits_warns_when_there_are_more(inbox: CommandInbox, capsys: pytest.CaptureFixture[str]) -> None:
    inbox.register("a")
    inbox.register("b")
    assert main(["waits", "--json", "--limit", "1"]) == 0
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)) == 1
    assert "--limit" in shown.err


def test_waits_are_listed_newest_first_also_with_a_limit(
    inbox: CommandInbox, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "dacb":
        inbox.register(name)

    def listed(*arguments: str) -> list[str]:
        assert main(["waits", "--json", *arguments]) == 0
        return [wait["task_id"] for wait in json.loads(capsys.readouterr().out)]

    assert listed() == ["b", "c", "a", "d"]
    assert listed("--limit", "2") == ["b", "c"]


def test_waits_are_counted_and_selected_by_time(
    inbox: CommandInbox, capsys: pytest.CaptureFixture[str]
) -> None:
    inbox.register("a")
    inbox.register("b")

    def count(*arguments: str) -> int:
        assert main(["waits", "--count", *arguments]) == 0
        shown = capsys.readouterr()
        assert not shown.err
        return int(shown.out)

    assert count("--limit", "1") == 2
    assert count("--task", "a") == 1
    assert count("--state", "failed") == 0
    assert count("--since", "1h") == count("--since", "2020-01-31") == 2
    assert count("--since", "2999-01-31T12:00:00+02:00") == 0


def test_answered_waits_are_those_whose_task_airflow_has_not_ended(
    inbox: CommandInbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting, answered, ended = (inbox.register(name) for name in ("waiting", "answered", "ended"))
    for wait in (answered, ended):
        main(["send", "success", wait.id, "--reason", "x"])
    capsys.readouterr()

    async def under_way() -> list[str]:
        return [waiting.id, answered.id, UNKNOWN]

    monkeypatch.setattr(unended, "attempts_from_database", under_way)
    assert main(["waits", "--answered", "--json"]) == 0
    assert [wait["wait"] for wait in json.loads(capsys.readouterr().out)] == [answered.id]
    assert main(["waits", "--answered", "--count"]) == 0
    assert main(["waits", "--answered", "--count", "--task", "other"]) == 0
    assert capsys.readouterr().out.split() == ["1", "0"]


def test_answered_without_the_metadata_database_is_an_error_without_its_url(
    inbox: CommandInbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def unreadable() -> list[str]:
        raise OperationalError("SELECT", {}, Exception("hunter2"))

    monkeypatch.setattr(unended, "attempts_from_database", unreadable)
    assert main(["waits", "--answered"]) == 2
    shown = capsys.readouterr().err
    assert "sql_alchemy_conn" in shown
    assert "hunter2" not in shown


def test_orphaned_waits_are_those_whose_task_instance_is_missing(
    inbox: CommandInbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known, orphaned = inbox.register("known"), inbox.register("orphaned")
    newest = {known.attempt.ti_id: (1, "deferred")}
    monkeypatch.setattr(metadata_database, "_newest_attempts", lambda attempts: newest)
    assert main(["waits", "--orphaned", "--json"]) == 0
    assert [wait["wait"] for wait in json.loads(capsys.readouterr().out)] == [orphaned.id]


def test_invalid_inbox_url_is_reported_without_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for url in ("mysql://user:hunter2@host/db", "postgresql://user:hunter2@host:port/db"):
        monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", url)
        for command in (["waits"], ["serve"], ["inbox", "upgrade"]):
            assert main(command) == 2
            shown = capsys.readouterr()
            assert "inbox_url" in shown.err
            assert "hunter2" not in shown.out + shown.err


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls that would serve the endpoint."""
    calls: list[Any] = []
    monkeypatch.setattr("uvicorn.run", lambda *arguments, **options: calls.append(options))
    return calls


def test_serve_is_refused_on_a_sqlite_file_in_which_no_airflow_of_this_host_announced_itself(
    inbox: CommandInbox, inbox_file: Path, served: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    inbox_file.unlink()
    assert main(["serve"]) == 2
    assert not inbox_file.exists(), "a file that no Airflow uses is not created"
    inbox.register()
    inbox.announce(Machine("another-host", "another-boot"))
    capsys.readouterr()
    assert main(["serve"]) == 2
    error = capsys.readouterr().err
    assert f"no Airflow on this host uses the SQLite file {inbox_file}" in error
    assert not served
    inbox.announce(Machine.this())
    assert main(["serve", "--port", "8091"]) == 0
    assert [call["port"] for call in served] == [8091]


def test_serve_starts_while_postgres_is_down(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", "postgresql://u:secret@127.0.0.1:1/x")
    assert main(["serve"]) == 0
    assert len(served) == 1


def test_module_runs_the_command() -> None:
    command = [sys.executable, "-m", "deferrable_ops.cli", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("usage: deferrable-ops ")


def test_command_imports_little_of_airflow(inbox: CommandInbox) -> None:
    """With all of Airflow, or with FastAPI, a command takes twice as long."""
    inbox.register()
    script = (
        "import os, sys, deferrable_ops.cli.main as cli\n"
        "assert cli.main(['waits']) == 0\n"
        "assert cli.main(['send', 'success', '11111111-1111-5111-8111-111111111111', '--reason', 'x']) == 1\n"
        "print(sorted({'airflow.sdk.execution_time.task_runner', 'airflow.sdk.bases.operator', 'alembic', "
        "'fastapi', 'airflow.models.taskinstance'} & set(sys.modules)), "
        "'_AIRFLOW__AS_LIBRARY' in os.environ)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.endswith("[] False\n")


def test_help_needs_no_airflow() -> None:
    script = (
        "import sys, deferrable_ops.cli.main as cli\n"
        "try: cli.main(['--help'])\n"
        "finally: print('airflow' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "keys" in shown.stdout
    assert shown.stdout.endswith("False\n")
