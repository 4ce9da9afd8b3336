"""The command deferrable-ops: waits, send, inbox, keys, exit codes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import pytest
from airflow.sdk import crypto
from cryptography.fernet import Fernet
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from deferrable_ops import metadata_database
from deferrable_ops.cli.main import main
from deferrable_ops.inbox import Attempt, Inbox, NewWait, Wait, WaitState
from deferrable_ops.inbox.database.schema import HEAD, callbacks
from deferrable_ops.inbox.hosts import Component, Hosts, Machine
from deferrable_ops.inbox.outages import OutageRows
from deferrable_ops.inbox.owner import OwnerRow
from deferrable_ops.outages import Outages
from deferrable_ops.outcome import Failure, Skip, Success
from deferrable_ops.triggers.lifecycle import unended

UNKNOWN = "11111111-1111-5111-8111-111111111111"


class CommandInbox:
    """The inbox of the command, read and filled by the test."""

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite+aiosqlite:///{path}"

    def register(self, task_id: str = "train", **options: Any) -> Wait:
        attempt = Attempt(
            str(uuid5(NAMESPACE_OID, task_id)), 1, options.pop("dag_id", "sales"), "manual", task_id
        )
        options.setdefault("timeout", 3600.0)
        return self._run(lambda inbox: inbox.waits.register(NewWait(attempt, "webhook", **options)))

    def get(self, wait: Wait) -> Wait:
        return self._run(lambda inbox: inbox.waits.get(wait.id))

    def audit(self) -> list[Any]:
        async def read(inbox: Inbox) -> list[Any]:
            return await inbox.database.read(_all_callbacks)

        return self._run(read)

    def announce(self, machine: Machine) -> None:
        async def announce(inbox: Inbox) -> None:
            hosts = Hosts(inbox.database, machine)
            task = asyncio.create_task(hosts.announce(Component.API_SERVER))
            while machine not in [host.machine for host in await hosts.all()]:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._run(announce)

    def owner(self) -> OwnerRow | None:
        return self._run(lambda inbox: inbox.owner.current())

    def report_outage(self, source: str, error: str) -> None:
        now = [0.0]
        outages = Outages(lambda: now[0])
        outages.failed(source, error)
        now[0] = 60.0
        self._run(lambda inbox: OutageRows(inbox.database, outages).store())

    def _run(self, work: Any) -> Any:
        async def run() -> Any:
            inbox = await Inbox.open(self.url, retry_timeout=5)
            try:
                return await work(inbox)
            finally:
                await inbox.close()

        return asyncio.run(run())


async def _all_callbacks(connection: Any) -> list[Any]:
    return list(await connection.execute(select(callbacks).order_by(callbacks.c.number)))


@pytest.fixture
def inbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandInbox:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", f"sqlite:///{tmp_path / 'inbox.db'}")
    return CommandInbox(tmp_path / "inbox.db")


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


def test_prune_deletes_waits_older_than_their_retention(
    inbox: CommandInbox, capsys: pytest.CaptureFixture[str]
) -> None:
    wait = inbox.register()
    main(["send", "success", wait.id, "--reason", "x"])
    assert main(["inbox", "prune"]) == 0
    assert inbox.get(wait).state is WaitState.SUCCESS
    assert main(["inbox", "prune", "--days", "0.0000001"]) == 0
    shown = capsys.readouterr().out
    assert "Deleted 1 waits" in shown
    assert "Deleted 0 events that were received more than 40 days ago" in shown
    assert main(["send", "success", wait.id, "--reason", "x"]) == 1


def test_upgrade_creates_the_tables(inbox: CommandInbox, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inbox", "upgrade"]) == 0
    assert "schema" in capsys.readouterr().out


def test_upgrade_check_changes_nothing_and_tells_outdated_tables_by_its_exit_status(
    inbox: CommandInbox, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inbox", "upgrade", "--check"]) == 1
    assert "The inbox has schema none" in capsys.readouterr().out
    assert main(["inbox", "upgrade"]) == 0
    capsys.readouterr()
    assert main(["inbox", "upgrade", "--check"]) == 0
    assert f"this release has {HEAD}" in capsys.readouterr().out


def test_adopt_gives_the_inbox_to_this_deployment_and_names_the_one_before(
    inbox: CommandInbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__DEPLOYMENT", "blue")
    assert main(["inbox", "adopt"]) == 0
    assert capsys.readouterr().out == "The inbox belongs to deployment blue\n"
    assert main(["inbox", "adopt", "green"]) == 0
    shown = capsys.readouterr().out
    assert "The inbox belongs to deployment green" in shown
    assert "it belonged to deployment blue since 20" in shown
    owner = inbox.owner()
    assert owner is not None
    assert owner.deployment == "green"


def test_adopt_without_an_id_names_what_is_missing(
    inbox: CommandInbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metadata_database, "_read", lambda: None)
    assert main(["inbox", "adopt"]) == 2
    assert "start its API server" in capsys.readouterr().err
    assert inbox.owner() is None


def test_adopt_without_a_metadata_database_asks_for_the_id(
    inbox: CommandInbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise OperationalError("SELECT 1", {}, Exception("host db, password hunter2"))

    monkeypatch.setattr(metadata_database, "_read", refuse)
    assert main(["inbox", "adopt"]) == 2
    shown = capsys.readouterr().err
    assert "give the id of the deployment" in shown
    assert "hunter2" not in shown


def test_orphaned_waits_are_those_whose_task_instance_is_missing(
    inbox: CommandInbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known, orphaned = inbox.register("known"), inbox.register("orphaned")
    newest = {known.attempt.ti_id: (1, "deferred")}
    monkeypatch.setattr(metadata_database, "_newest_attempts", lambda attempts: newest)
    assert main(["waits", "--orphaned", "--json"]) == 0
    assert [wait["wait"] for wait in json.loads(capsys.readouterr().out)] == [orphaned.id]


def test_rotate_signs_new_waits_with_a_new_key(
    inbox: CommandInbox, capsys: pytest.CaptureFixture[str]
) -> None:
    before = inbox.register("before")
    assert main(["keys", "rotate"]) == 0
    after = inbox.register("after")
    assert before.key_id != after.key_id
    assert after.key_id in capsys.readouterr().out


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


def test_inbox_is_exported_to_a_private_file_and_imported_into_another_database(
    inbox: CommandInbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wait = inbox.register()
    file = tmp_path / "inbox.jsonl"
    assert main(["inbox", "export", str(file)]) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert "1 waits" in capsys.readouterr().out
    assert main(["inbox", "export", str(file)]) == 2, "an existing file is kept"
    assert main(["inbox", "import", str(file)]) == 2
    assert "is not empty" in capsys.readouterr().err
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", f"sqlite:///{tmp_path / 'other.db'}")
    assert main(["inbox", "import", str(tmp_path / "missing")]) == 2
    assert main(["inbox", "import", str(file)]) == 0
    assert CommandInbox(tmp_path / "other.db").get(wait) == inbox.get(wait)


def test_stats_shows_rows_and_hosts(inbox: CommandInbox, capsys: pytest.CaptureFixture[str]) -> None:
    inbox.register()
    inbox.announce(Machine("web-1", "boot"))
    assert main(["inbox", "stats"]) == 0
    shown = capsys.readouterr().out
    assert "waits: 1 waiting" in shown
    assert "web-1  api-server" in shown
    assert main(["inbox", "stats", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["waits"] == {"waiting": 1}


def test_rotate_fernet_reports_values_of_an_unknown_key(
    inbox: CommandInbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = Fernet.generate_key()
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", key.decode())
    crypto.get_fernet.cache_clear()
    try:
        inbox.register("known", trigger=Fernet(key).encrypt(b"x"))
        assert main(["inbox", "rotate-fernet"]) == 0
        inbox.register("unknown", trigger=Fernet(Fernet.generate_key()).encrypt(b"x"))
        assert main(["inbox", "rotate-fernet"]) == 1
    finally:
        monkeypatch.undo()
        crypto.get_fernet.cache_clear()
    shown = capsys.readouterr()
    assert "Encrypted 1 stored triggers and 0 secrets" in shown.out
    assert "1 values were encrypted with a key that is not in" in shown.err


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls that would serve the endpoint."""
    calls: list[Any] = []
    monkeypatch.setattr("uvicorn.run", lambda *arguments, **options: calls.append(options))
    return calls


def test_serve_is_refused_on_a_sqlite_file_in_which_no_airflow_of_this_host_announced_itself(
    inbox: CommandInbox, tmp_path: Path, served: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve"]) == 2
    assert not (tmp_path / "inbox.db").exists(), "a file that no Airflow uses is not created"
    inbox.register()
    inbox.announce(Machine("another-host", "another-boot"))
    capsys.readouterr()
    assert main(["serve"]) == 2
    error = capsys.readouterr().err
    assert f"has announced itself in the inbox, the SQLite file {tmp_path / 'inbox.db'}" in error
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
