"""The commands that render supervisord's file from YAML: what they print, write and refuse."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deferrable_ops import supervisord
from deferrable_ops.cli.main import main as deferrable_ops_main
from deferrable_ops.supervisord.__main__ import main as module_main

SECRET = "correct horse"
PLAIN = "program:\n  test: {command: sleep 9}\n"
RENDERED = "[supervisord]\n\n[supervisorctl]\n\n[program:test]\ncommand=sleep 9\n"
FOR_A_DAG = "working_dir: /data/s\n" + PLAIN

Run = Callable[..., int]


@pytest.fixture(params=["deferrable-ops supervisord", "python -m deferrable_ops.supervisord"])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param.startswith("python"):
        return lambda *arguments: module_main([str(item) for item in arguments])
    return lambda *arguments: deferrable_ops_main(["supervisord", *(str(item) for item in arguments)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "s.yaml"
    path.write_text(PLAIN)
    return path


def test_file_is_printed(run: Run, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("render", file) == 0
    assert capsys.readouterr().out == RENDERED


def test_render_as_airflow_adds_what_a_dag_would(
    run: Run, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(FOR_A_DAG)
    assert run("render", file, "--as", "airflow") == 0
    rendered = capsys.readouterr().out
    file.write_text("_target_: deferrable_ops.supervisord.SupervisorAirflowConfiguration\n" + FOR_A_DAG)
    assert run("render", file) == 0
    assert capsys.readouterr().out == rendered
    assert "[unix_http_server]\nfile=/data/s/supervisor.sock\n" in rendered


def test_password_is_written_with_mode_600_and_never_printed(
    run: Run, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(FOR_A_DAG + f"port: 9001\nusername: a\npassword: {SECRET}\n")
    target = file.with_name("supervisord.conf")
    assert run("render", file, "--as", "airflow") == 2
    assert run("check", file, "--as", "airflow") == 0
    target.write_text("old")
    target.chmod(0o644)
    assert run("render", file, "--as", "airflow", "--output", target) == 0
    assert f"password={SECRET}" in target.read_text()
    assert target.stat().st_mode & 0o777 == 0o600
    assert list(file.parent.iterdir()) == [file, target] or list(file.parent.iterdir()) == [target, file]
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err
    assert "give --output PATH" in printed.err


def test_check_prints_kind_programs_and_address(
    run: Run, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(FOR_A_DAG + 'airflow: {port: "*:9091"}\n')
    assert run("check", file, "--as", "ssh") == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"{file} is a SupervisorSSHAirflowConfiguration",
        "programs: test",
        "supervisord listens on: the socket /data/s/supervisor.sock",
    ]
    assert printed.err.count("without a password") == 1
    assert printed.err.startswith(f"{file}: port='*:9091'")


@pytest.mark.parametrize(
    "text, message",
    [
        ("program: {test: {comand: x}}", "program.test.comand"),
        ('program: {test: {command: "a\\nb"}}', "control character"),
        ("_target_: builtins.exec", "not a configuration of supervisord"),
        ("- 1", "must contain a mapping"),
    ],
)
@pytest.mark.parametrize("command", ["render", "check"])
def test_bad_input_is_explained(
    run: Run, file: Path, capsys: pytest.CaptureFixture[str], command: str, text: str, message: str
) -> None:
    file.write_text(text)
    assert run(command, file) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def test_unwritable_output_is_named(run: Run, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("render", file, "--output", file.parent / "none" / "s.conf") == 2
    assert "none/s.conf cannot be written: No such file" in capsys.readouterr().err


def test_the_command_starts_without_pydantic() -> None:
    code = "import sys, deferrable_ops.cli.main as cli; cli._parser(); sys.exit('pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_exported_names_exist() -> None:
    aliases = {"SupervisorConvenienceConfiguration": "SupervisorAirflowConfiguration", "load_config": "load"}
    assert {name: getattr(supervisord, name).__name__ for name in supervisord.__all__} == {
        name: aliases.get(name, name) for name in supervisord.__all__
    }
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        supervisord.Nothing  # noqa: B018
