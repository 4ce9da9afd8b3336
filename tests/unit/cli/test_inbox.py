"""The commands deferrable-ops inbox and keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from airflow.sdk import crypto
from cryptography.fernet import Fernet
from sqlalchemy.exc import OperationalError
from unit.cli.support import CommandInbox

from deferrable_ops import metadata_database
from deferrable_ops.cli.main import main
from deferrable_ops.inbox import WaitState
from deferrable_ops.inbox.database.schema import HEAD
from deferrable_ops.inbox.hosts import Machine


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
    inbox: CommandInbox, inbox_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inbox_file.unlink()
    assert main(["inbox", "upgrade", "--check"]) == 1
    assert "The inbox has schema none" in capsys.readouterr().out
    assert main(["inbox", "upgrade"]) == 0
    capsys.readouterr()
    assert main(["inbox", "upgrade", "--check"]) == 0
    assert f"this release has schema {HEAD}" in capsys.readouterr().out


def test_adopt_gives_the_inbox_to_this_deployment_and_names_the_one_before(
    inbox: CommandInbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__DEPLOYMENT", "blue")
    assert main(["inbox", "adopt"]) == 0
    assert capsys.readouterr().out == "The inbox now belongs to deployment blue\n"
    assert main(["inbox", "adopt", "green"]) == 0
    shown = capsys.readouterr().out
    assert "The inbox now belongs to deployment green" in shown
    assert "The owner before was deployment blue, since 20" in shown
    owner = inbox.owner()
    assert owner is not None
    assert owner.deployment == "green"


def test_adopt_without_an_id_names_what_is_missing(
    inbox: CommandInbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metadata_database, "_read", lambda: None)
    assert main(["inbox", "adopt"]) == 2
    assert "start the API server of this Airflow" in capsys.readouterr().err
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


def test_rotate_signs_new_waits_with_a_new_key(
    inbox: CommandInbox, capsys: pytest.CaptureFixture[str]
) -> None:
    before = inbox.register("before")
    assert main(["keys", "rotate"]) == 0
    after = inbox.register("after")
    assert before.key_id != after.key_id
    assert after.key_id in capsys.readouterr().out


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
