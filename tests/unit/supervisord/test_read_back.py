"""Supervisor's own parser reads back every rendered value unchanged."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from unit.supervisord.parsing import processes, read_by_supervisor, read_by_supervisorctl

from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord import (
    EventListenerConfiguration,
    FcgiProgramConfiguration,
    GroupConfiguration,
    InetHttpServerConfiguration,
    ProgramConfiguration,
    RpcInterfaceConfiguration,
    SupervisorConfiguration,
    SupervisorctlConfiguration,
    SupervisordConfiguration,
    UnixHttpServerConfiguration,
)
from deferrable_ops.supervisord.rendering import IN_PROCESS, IN_SERVER, render_value

NOT_IN_A_LINE = ("Cc", "Cs", "Zl", "Zp")
CHARACTERS = st.characters(exclude_categories=NOT_IN_A_LINE)
TRICKY = st.sampled_from([*" %;#'\"=:[](),\\$", " ;", " #", "%%", "%s", "%d", "%(x)s", "%(here)d", "(here)s"])
WITHOUT_PERCENT = st.sampled_from(["a", " ", ";", " ;", "(here)s", "é", "[x]"])
# Pairs of a text in the configuration, and its value for the first process of the program p (None: unchanged).
PIECES = st.one_of(
    st.tuples(CHARACTERS, st.none()),
    st.tuples(TRICKY, st.none()),
    st.sampled_from(
        [
            ("%(program_name)s", "p"),
            ("%(group_name)s", "p"),
            ("%(process_num)02d", "00"),
            ("%(numprocs)s", "1"),
            ("%(host_node_name)s", platform.node()),
            ("%%(program_name)s", "%(program_name)s"),
            ("%%%(process_num)02d", "%%(process_num)02d"),
            ("%(process_num)q", None),
        ]
    ),
)


@st.composite
def texts(draw: st.DrawFn) -> tuple[str, str]:
    """Draw a text that may contain supervisor's expressions, and its expansion."""
    given_text = expected = ""
    for piece, expanded in draw(st.lists(PIECES, min_size=1, max_size=12)):
        # Two pieces must not form an expression together.
        between = draw(WITHOUT_PERCENT) if given_text.endswith("%") else ""
        given_text += between + piece
        expected += between + (piece if expanded is None else expanded)
    return given_text, expected


@pytest.fixture(scope="module")
def folder() -> Any:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def config(**fields: Any) -> SupervisorConfiguration:
    return SupervisorConfiguration(**fields)


@given(text=texts())
@settings(max_examples=150, deadline=None)
def test_command_is_read_back_unchanged(folder: Path, text: tuple[str, str]) -> None:
    command, expected = text
    assume("(here)" not in command)
    rendered = config(program={"p": {"command": command}}).to_cfg()
    assert processes(rendered, folder)["p"].command == expected


@given(text=texts())
@settings(max_examples=100, deadline=None)
def test_environment_is_read_back_unchanged(folder: Path, text: tuple[str, str]) -> None:
    value, expected = text
    assume("(here)" not in value and not ("'" in value and '"' in value))
    assume(not {value[0], value[-1]} & {"'", '"'})
    rendered = config(program={"p": {"command": "x", "environment": {"A": value, "B.c-d": "", "_E": "é;#="}}})
    assert processes(rendered.to_cfg(), folder)["p"].environment == {"A": expected, "B.c-d": "", "_E": "é;#="}


@given(value=st.text(st.one_of(CHARACTERS, st.sampled_from(" %;#'")), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_daemon_environment_is_read_back_unchanged_although_expanded_twice(folder: Path, value: str) -> None:
    assume(not ("'" in value and '"' in value) and not {value[0], value[-1]} & {"'", '"'})
    rendered = config(supervisord={"environment": {"A": value}}, program={"p": {"command": "x"}}).to_cfg()
    assert read_by_supervisor(rendered, folder).environment == {"A": value}


@given(name=st.text(st.one_of(CHARACTERS, st.sampled_from(" %;#'\"")), min_size=1, max_size=20))
@settings(max_examples=80, deadline=None)
def test_paths_are_read_back_unchanged(folder: Path, name: str) -> None:
    assume("/" not in name and name not in (".", "..") and len(name.encode()) < 100)
    own = folder / name
    own.mkdir(exist_ok=True)
    rendered = config(
        supervisord={
            "logfile": own / "s.log",
            "pidfile": own / "s.pid",
            "childlogdir": own,
            "directory": own,
        },
        program={
            "p": {"command": "x", "directory": own, "stdout_logfile": own / name, "stderr_logfile": own / "e"}
        },
    ).to_cfg()
    section = read_by_supervisor(rendered, folder)
    assert (section.logfile, section.pidfile) == (f"{own}/s.log", f"{own}/s.pid")
    assert (section.childlogdir, section.directory) == (str(own), str(own))
    process = section.process_group_configs[0].process_configs[0]
    assert (process.directory, process.stdout_logfile) == (str(own), f"{own}/{name}")
    assert process.stderr_logfile == f"{own}/e"


@given(password=st.text(st.one_of(CHARACTERS, st.sampled_from(" %;#'\"")), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_password_is_read_back_unchanged_or_refused(folder: Path, password: str) -> None:
    server = {"port": "*:9001", "username": "airflow", "password": password}
    cut = any(f"{space}{mark}" in password for space in SPACES for mark in ";#")
    if cut or password.strip() != password:
        with pytest.raises(ValidationError, match="remove the space"):
            config(inet_http_server=server)
    else:
        rendered = config(inet_http_server=server, program={"p": {"command": "x"}}).to_cfg()
        (found,) = read_by_supervisor(rendered, folder).server_configs
        assert (found["host"], found["port"]) == ("", 9001)
        assert (found["username"], found["password"]) == ("airflow", password)


SPACES = [character for character in map(chr, range(0x3001)) if character.isspace()]


@given(text=st.text(st.characters(categories=NOT_IN_A_LINE), min_size=1), around=st.text(CHARACTERS))
@settings(deadline=None)
def test_control_characters_are_refused(text: str, around: str) -> None:
    for refused in (around + text, text + around):
        with pytest.raises(ValidationError, match=r"control character|unicode"):
            ProgramConfiguration(command=refused)
        with pytest.raises(InputError, match="control character"):
            render_value("x", refused, IN_SERVER)


@given(fields=st.data())
@settings(deadline=None)
def test_every_field_of_a_program_is_read_back_unchanged(folder: Path, fields: st.DataObject) -> None:
    number, flag = st.integers(0, 10**6), st.booleans()
    values = fields.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "priority": st.integers(-1000, 1000),
                "autostart": flag,
                "startsecs": number,
                "startretries": number,
                "exitcodes": st.lists(st.integers(0, 255), min_size=1),
                "stopwaitsecs": number,
                "redirect_stderr": flag,
                "stdout_logfile_backups": number,
                "stdout_events_enabled": flag,
                "stderr_events_enabled": flag,
                "stdout_syslog": flag,
                "stderr_syslog": flag,
            },
        )
    )
    model = ProgramConfiguration(command="x", **values)
    process = processes(config(program={"p": model}).to_cfg(), folder)["p"]
    for name in (
        *(
            "priority",
            "autostart",
            "startsecs",
            "startretries",
            "exitcodes",
            "stopwaitsecs",
            "redirect_stderr",
        ),
        *("stdout_logfile_backups", "stdout_events_enabled", "stderr_events_enabled", "stdout_syslog"),
        "stderr_syslog",
    ):
        assert getattr(process, name) == getattr(model, name), name


def test_every_default_is_supervisors_own(folder: Path) -> None:
    """Rendering omits defaults, so they must be the same as those of the parser."""
    minimal = "[supervisord]\n[supervisorctl]\n[program:p]\ncommand=x\n"
    every = config(program={"p": {"command": "x"}})
    assert every.to_cfg().replace("\n\n", "\n") == minimal
    section = read_by_supervisor(minimal, folder)
    daemon = every.supervisord
    for name in (
        "logfile_backups",
        "minfds",
        "minprocs",
        "nodaemon",
        "silent",
        "nocleanup",
        "strip_ansi",
        "identifier",
    ):
        assert getattr(section, name) == getattr(daemon, name), name
    assert (section.logfile, section.pidfile) == (str(daemon.logfile), str(daemon.pidfile))
    assert (section.logfile_maxbytes, section.umask) == (50 * 1024**2, int(daemon.umask, 8))
    process, model = section.process_group_configs[0].process_configs[0], every.program["p"]
    for name in (
        *(
            "priority",
            "autostart",
            "startsecs",
            "startretries",
            "stopwaitsecs",
            "stopasgroup",
            "redirect_stderr",
        ),
        *("exitcodes", "directory", "umask", "environment", "serverurl", "stdout_logfile_backups"),
        *(
            "stderr_logfile_backups",
            "stdout_events_enabled",
            "stderr_events_enabled",
            "stdout_syslog",
            "stderr_syslog",
        ),
    ):
        assert getattr(process, name) == getattr(model, name), name
    assert process.autorestart.__name__ == "RestartWhenExitUnexpected"
    assert (process.stopsignal.name, process.killasgroup) == ("SIGTERM", False)
    assert process.stdout_logfile.__name__ == process.stderr_logfile.__name__ == "Automatic"
    assert process.stdout_logfile_maxbytes == process.stderr_logfile_maxbytes == 50 * 1024**2
    assert process.stdout_capture_maxbytes == process.stderr_capture_maxbytes == 0


def test_all_other_sections_are_read(folder: Path) -> None:
    rendered = config(
        unix_http_server=UnixHttpServerConfiguration(file=folder / "s.sock", username="u", password="100%;"),
        inet_http_server=InetHttpServerConfiguration(port=9001, username="v", password="{SHA}abc"),
        supervisord=SupervisordConfiguration(
            umask="027", loglevel="debug", logfile_maxbytes="1MB", minfds=99
        ),
        supervisorctl=SupervisorctlConfiguration(
            serverurl="unix:///x%y.sock", prompt="100%", password="p", username="u"
        ),
        program={
            "a": {"command": "x", "autorestart": True, "stopsignal": "SIGUSR2", "umask": "002"},
            "b": {"command": "y"},
        },
        group={"g": GroupConfiguration(programs="a,b", priority=7)},
        fcgiprogram={
            "f": FcgiProgramConfiguration(command="z", socket="tcp://localhost:9002", socket_backlog=9)
        },
        eventlistener={
            "e": EventListenerConfiguration(command="w", events="TICK_5, PROCESS_STATE", buffer_size=3)
        },
        rpcinterface={"supervisor": RpcInterfaceConfiguration(kwargs={"retries": 1, "text": "5%"})},
    ).to_cfg()
    section = read_by_supervisor(rendered, folder)
    assert (section.umask, section.logfile_maxbytes, section.minfds) == (0o27, 1024**2, 99)
    inet, unix = section.server_configs
    assert (inet["port"], inet["username"], inet["password"]) == (9001, "v", "{SHA}abc")
    assert (unix["file"], unix["chmod"], unix["password"]) == (str(folder / "s.sock"), 0o700, "100%;")
    ((name, _, extras),) = section.rpcinterface_factories
    assert (name, extras) == ("supervisor", {"retries": "1", "text": "5%"})
    listener, group, fcgi = section.process_group_configs
    assert (listener.name, listener.buffer_size, listener.priority) == ("e", 3, -1)
    assert {event.__name__ for event in listener.pool_events} == {"Tick5Event", "ProcessStateEvent"}
    assert (group.name, group.priority, [p.name for p in group.process_configs]) == ("g", 7, ["a", "b"])
    assert group.process_configs[0].autorestart.__name__ == "RestartUnconditionally"
    assert group.process_configs[0].stopsignal.name == "SIGUSR2"
    assert (fcgi.name, str(fcgi.socket_config), fcgi.socket_config.get_backlog()) == (
        "f",
        "tcp://localhost:9002",
        9,
    )
    client = read_by_supervisorctl(rendered, folder)
    assert (client.serverurl, client.prompt, client.password) == ("unix:///x%y.sock", "100%", "p")


def test_included_files_are_read(folder: Path) -> None:
    (folder / "more").mkdir(exist_ok=True)
    (folder / "more" / "b.ini").write_text("[program:b]\ncommand=y\n")
    rendered = config(program={"a": {"command": "100%"}}, include={"files": "%(here)s/more/*.ini"}).to_cfg()
    assert {name: process.command for name, process in processes(rendered, folder).items()} == {
        "a": "100%",
        "b": "y",
    }


def test_text_that_include_would_expand_is_refused(folder: Path) -> None:
    literal = {"program": {"a": {"command": "echo %%(here)s"}}}
    assert processes(config(**literal).to_cfg(), folder)["a"].command == "echo %(here)s"
    with pytest.raises(InputError, match=r"%%\(here\)s"):
        config(**literal, include={"files": "x"}).to_cfg()


def test_processes_of_one_program_have_different_names(folder: Path) -> None:
    program = ProgramConfiguration(
        command="run --port=80%(process_num)02d",
        process_name="%(program_name)s_%(process_num)d",
        numprocs=2,
        numprocs_start=3,
        stdout_logfile="%(here)s/%(program_name)s-%(process_num)s.log",
    )
    found = processes(config(program={"p": program}).to_cfg(), folder)
    assert {name: item.command for name, item in found.items()} == {
        "p_3": "run --port=8003",
        "p_4": "run --port=8004",
    }
    assert found["p_4"].stdout_logfile == f"{folder}/p-4.log"


def test_unknown_expression_is_plain_text() -> None:
    assert (
        render_value("x", "%(process_num)s %(nobody)s %(here)i", IN_PROCESS)
        == "%(process_num)s %%(nobody)s %%(here)i"
    )
    assert render_value("x", "%(process_num)s %(ENV_HOME)s", IN_SERVER) == "%%(process_num)s %(ENV_HOME)s"
