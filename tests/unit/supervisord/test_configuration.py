"""The configuration for a DAG: defaults, validation, and secrets."""

from __future__ import annotations

import json
import warnings
from datetime import time, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord import (
    Action,
    AirflowConfiguration,
    InetHttpServerConfiguration,
    ProgramConfiguration,
    ProgramPolicy,
    SSHOperatorArgs,
    SupervisorAirflowConfiguration,
    SupervisorConfiguration,
    SupervisorSSHAirflowConfiguration,
    UnixHttpServerConfiguration,
)

SECRET = "correct horse"


def config(**fields: Any) -> SupervisorAirflowConfiguration:
    return SupervisorAirflowConfiguration(
        **{"working_dir": "/data/s", "program": {"test": {"command": "sleep 9"}}} | fields
    )


def test_open_port_of_the_original_example_becomes_a_socket_with_one_warning() -> None:
    with pytest.warns(UserWarning, match=r"port='\*:9091' without a password") as caught:
        cfg = SupervisorAirflowConfiguration(
            airflow=AirflowConfiguration(port="*:9091"),
            working_dir="/data/airflow/supervisor",
            config_path="/data/airflow/supervisor/supervisor.conf",
            program={"test": ProgramConfiguration(command="bash -c 'sleep 14400; exit 1'")},
        )
    assert [warning.filename for warning in caught] == [__file__]
    assert cfg.inet_http_server is None
    assert cfg.airflow.port is None
    assert cfg.socket_path == Path("/data/airflow/supervisor/supervisor.sock")
    assert cfg.supervisorctl.serverurl == "unix:///data/airflow/supervisor/supervisor.sock"
    assert cfg.config_path == Path("/data/airflow/supervisor/supervisor.conf")
    assert "inet_http_server" not in cfg.to_cfg()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SupervisorAirflowConfiguration(**cfg.with_secrets()) == cfg


@pytest.mark.parametrize(
    "port", ["*:9001", "0.0.0.0:9001", ":9001", "9001", 9001, "10.1.2.3:9001", "db.internal:9001"]
)
def test_reachable_port_without_a_password_is_removed_or_refused(port: str | int) -> None:
    with pytest.warns(UserWarning, match="Unix socket"):
        assert config(port=port).inet_http_server is None
    with pytest.raises(ValidationError, match="set username and password"):
        InetHttpServerConfiguration(port=port)


@pytest.mark.parametrize("port", ["127.0.0.1:9001", "127.8.8.8:9001", "localhost:9001", "LOCALHOST:9001"])
def test_loopback_port_needs_no_password(port: str) -> None:
    server = config(port=port).inet_http_server
    assert server is not None
    assert server.port == port.lower()


def test_port_with_a_password_is_opened_beside_the_socket() -> None:
    cfg = config(port=9001, username="airflow", password=SECRET)
    assert cfg.inet_http_server is not None
    assert cfg.inet_http_server.port == "*:9001"
    assert f"password={SECRET}" in cfg.to_cfg()
    assert cfg.has_secrets
    assert cfg.unix_http_server is not None
    assert cfg.unix_http_server.chmod == "0700"


@pytest.mark.parametrize("missing", ["username", "password"])
def test_username_or_password_alone_is_refused(missing: str) -> None:
    login = {"username": "a", "password": SECRET}
    del login[missing]
    for refused in (AirflowConfiguration, config):
        with pytest.raises(ValidationError, match=f"{missing} is missing"):
            refused(**login)
    with pytest.raises(ValidationError, match=f"{missing} is missing"):
        UnixHttpServerConfiguration(file="/x", **login)


def test_two_ports_are_refused() -> None:
    with pytest.raises(ValidationError, match="differ; give only one of them"):
        config(port="127.0.0.1:1", inet_http_server={"port": "127.0.0.1:2"})


def test_secrets_are_never_shown() -> None:
    cfg = config(
        port=9001, username="a", password=SECRET, supervisorctl={"username": "a", "password": SECRET}
    )
    cfg = SupervisorAirflowConfiguration(
        **cfg.with_secrets() | {"program": {"p": {"command": "x", "environment": {"TOKEN": SECRET}}}}
    )
    assert SECRET not in repr(cfg) + str(cfg)
    assert cfg.model_dump_json().count(SECRET) == 1  # the program's environment is not masked
    assert json.dumps(cfg.with_secrets()).count(SECRET) == 4
    assert cfg.to_cfg().count(SECRET) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"password": [SECRET]},
        {"password": f"{SECRET}\n", "username": "a", "port": 9001},
        {"program": {"p": {"command": "x", "environment": {"A.B": f"'{SECRET}'"}}}},
        {"program": {"p": {"command": "x", "environment": f"A={SECRET}=,,"}}},
        {"environment": SECRET},
    ],
)
def test_errors_contain_no_secret(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        config(**wrong)
    assert SECRET not in str(caught.value)


def test_masked_password_is_refused() -> None:
    hidden = config(port=9001, username="a", password=SECRET).model_dump(mode="json")
    with pytest.raises(ValidationError, match="with_secrets"):
        SupervisorAirflowConfiguration(**hidden)


def test_fields_may_be_given_beside_airflow_or_in_it() -> None:
    flat = config(startsecs=5, exitcodes="0,2", stopsignal="int", command_timeout=9)
    nested = config(
        airflow={"startsecs": 5, "exitcodes": [0, 2], "stopsignal": "SIGINT", "command_timeout": 9}
    )
    mixed = config(
        airflow=AirflowConfiguration(startsecs=5, exitcodes=[0, 2]), stopsignal=2, command_timeout=9
    )
    assert flat == nested == mixed
    assert (flat.program["test"].startsecs, flat.program["test"].stopsignal) == (5, "INT")
    with pytest.raises(ValidationError, match="startsecs is given both inside and outside"):
        config(startsecs=5, airflow={"startsecs": 5})


def test_fields_of_a_program_take_precedence() -> None:
    own = ProgramConfiguration(
        command="x", autorestart="unexpected", startsecs=3, stopwaitsecs=1, stdout_logfile="/var/log/x.log"
    )
    program = config(program={"p": own}, startsecs=7, stopwaitsecs=50).program["p"]
    assert (program.autorestart, program.startsecs, program.stopwaitsecs) == ("unexpected", 3, 1)
    assert program.stdout_logfile == Path("/var/log/x.log")
    assert program.stderr_logfile == Path("/data/s/p/error.log")
    assert (program.autostart, program.stopasgroup, program.directory) == (False, True, Path("/data/s/p"))
    assert own.directory is None, "the user's object is not changed"


def test_supervisord_starts_no_program_by_itself_and_is_a_daemon() -> None:
    cfg = config(supervisord={"nodaemon": True, "loglevel": "debug"})
    assert (cfg.program["test"].autostart, cfg.program["test"].autorestart) == (False, False)
    assert (cfg.supervisord.nodaemon, cfg.supervisord.loglevel) == (False, "debug")


def test_stopping_without_the_group_is_possible() -> None:
    program = config(program={"p": {"command": "x", "stopasgroup": False}}).program["p"]
    assert (program.stopasgroup, program.killasgroup) == (False, None)
    assert config(stopasgroup=False, killasgroup=False).program["test"].killasgroup is False


def test_startsecs_is_zero_with_exit_codes() -> None:
    """supervisord does not report the exit code of a program that ends within startsecs."""
    policies = {"test": ProgramPolicy(exit_codes={99: "skip"})}
    assert config(policies=policies).program["test"].startsecs == 0
    assert config(policies=policies, startsecs=1).program["test"].startsecs == 1
    assert config().program["test"].startsecs == 1
    assert config(policies=policies).policy_of("test").exit_codes == {99: Action.SKIP}


def test_each_process_of_a_program_has_its_own_log() -> None:
    program = {"command": "x", "numprocs": 2, "process_name": "%(program_name)s_%(process_num)s"}
    logs = config(program={"p": program}).program["p"]
    assert str(logs.stdout_logfile) == "/data/s/p/output-%(process_num)s.log"


def test_directories_come_after_their_parents() -> None:
    cfg = config(program={"b": {"command": "x"}, "a": {"command": "y", "stdout_logfile": "/var/log/a.log"}})
    assert cfg.directories == (Path("/data/s"), Path("/data/s/a"), Path("/data/s/b"))


def test_default_directory_is_stable_and_short() -> None:
    many = {f"program-{number}": {"command": "x"} for number in range(20)}
    first, again = (SupervisorAirflowConfiguration(program=many) for _ in range(2))
    assert first.working_dir == again.working_dir
    assert len(str(first.socket_path)) <= 95
    assert first.working_dir != SupervisorAirflowConfiguration(program={"x": {"command": "x"}}).working_dir


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"program": {}}, "program is empty"),
        ({"working_dir": "data"}, "must be an absolute path"),
        ({"working_dir": "/" + "d" * 80}, "95 bytes"),
        ({"unix_http_server": {"file": "/" + "d" * 95}}, "95"),
        ({"program": {"a:b": {"command": "x"}}}, "not allowed as a name"),
        ({"program": {"..": {"command": "x"}}}, "not allowed as a name"),
        ({"program": {"a]": {"command": "x"}}}, "not allowed as a name"),
        ({"program": {"a": {"command": "x", "comand": "y"}}}, "comand"),
        ({"program": {"a": {"command": ""}}}, "command"),
        ({"program": {"a": {"command": "x", "numprocs": 2}}}, "process_num"),
        ({"program": {"a": {"command": "x", "stopasgroup": True, "killasgroup": False}}}, "refuses to start"),
        ({"program": {"a": {"command": "x", "exitcodes": [256]}}}, "less than or equal to 255"),
        ({"program": {"a": {"command": "x", "stopsignal": "NO"}}}, "not a signal"),
        ({"program": {"a": {"command": "x", "umask": 22}}}, "in quotes"),
        ({"program": {"a": {"command": "x", "environment": {"A B": "1"}}}}, "has the name 'A B'"),
        ({"program": {"a": {"command": "x", "environment": {"A.B": "'\""}}}}, "its name may only"),
        ({"program": {"a": {"command": "x", "environment": {"A": "\n%(ENV_X)s"}}}}, "remove the expression"),
        ({"program": {"a": {"command": "x", "environment": {"A": "\n"}, "user": "u"}}}, "remove user"),
        (
            {"eventlistener": {"e": {"command": "x", "events": ["TICK_5"], "redirect_stderr": True}}},
            "event listener",
        ),
        ({"eventlistener": {"test": {"command": "x", "events": ["TICK_5"]}}}, "two process groups"),
        ({"group": {"g": {"programs": "nobody"}}}, "not the name of a program"),
        ({"group": {"g": {"programs": "test"}, "h": {"programs": "test"}}}, "both contain 'test'"),
        ({"fcgiprogram": {"test": {"command": "x", "socket": "tcp://h:1"}}}, "two process groups"),
        (
            {"fcgiprogram": {"f": {"command": "x", "socket": "tcp://h:1", "socket_mode": "0700"}}},
            "socket is a TCP address",
        ),
        ({"include": {"files": ["a b"]}}, "splits at the space"),
        ({"rpcinterface": {"x": {"kwargs": {"a=b": 1}}}}, "lowercase letters"),
        ({"policies": {"nobody": {}}}, "not the name of a program"),
        ({"policy": {"otherwise": "success"}}, "make every crash a success"),
        ({"policy": {"crash_delay": 60, "crash_longest_delay": 5}}, "shorter than crash_delay"),
        ({"port": "here:0"}, "no port between 1 and 65535"),
        ({"port": "[::1]:9001"}, "IPv4"),
        ({"log_chunk_size": 0}, "log_chunk_size"),
        ({"check_interval": 0}, "check_interval"),
        ({"drift": "ignore"}, "drift"),
        ({"airflow": 5}, "airflow"),
    ],
)
def test_invalid_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**fields)


def test_template_is_validated_after_rendering() -> None:
    cfg = config(program={"p": {"command": "run {{ params.x }}\n{% if x %}"}})
    with pytest.raises(InputError, match="control character"):
        cfg.to_cfg()


def test_configuration_is_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        config().airflow = AirflowConfiguration()  # type: ignore[misc]


def test_none_counts_as_not_given() -> None:
    """Hydra and dumps of airflow-supervisor write null for fields that were not given."""
    cfg = config(airflow={"startretries": None, "username": None, "exitcodes": None}, group=None, pool=None)
    assert cfg == config()


def test_pool_may_be_an_object_with_a_name() -> None:
    class Pool:
        pool = "gpu"

    assert config(pool=Pool()).pool == config(pool="gpu").pool == "gpu"


def test_plain_configuration_has_no_defaults_for_dags() -> None:
    bare = SupervisorConfiguration(program={"p": {"command": "x"}})
    assert bare.to_cfg() == "[supervisord]\n\n[supervisorctl]\n\n[program:p]\ncommand=x\n"
    assert not bare.has_secrets


def ssh(**fields: Any) -> SupervisorSSHAirflowConfiguration:
    return SupervisorSSHAirflowConfiguration(working_dir="/data/s", program={"p": {"command": "x"}}, **fields)


def test_ssh_arguments_may_be_another_librarys_model() -> None:
    class SSHOperatorArgs(BaseModel):
        ssh_conn_id: str | None = None
        cmd_timeout: int | None = None
        get_pty: bool | None = None

    flat = ssh(ssh_conn_id="host", cmd_timeout=63, command_prefix="source /v/bin/activate")
    assert (
        flat.ssh_operator_args
        == ssh(ssh_operator_args=SSHOperatorArgs(ssh_conn_id="host", cmd_timeout=63)).ssh_operator_args
    )
    assert flat.airflow.local_or_remote == "remote"
    assert SupervisorSSHAirflowConfiguration(**flat.with_secrets()) == flat


class Hook:
    """What is used of an SSHHook of the SSH provider."""

    def __init__(
        self, ssh_conn_id: str | None = None, remote_host: str = "", password: str | None = None
    ) -> None:
        self.ssh_conn_id = ssh_conn_id
        self.remote_host = remote_host
        self.password = password


def test_hook_gives_its_connection_and_its_host() -> None:
    """An SSHHook reads the password of its connection, so a hook with a connection has a password too."""
    expected = SSHOperatorArgs(ssh_conn_id="jobs", remote_host="web-3", cmd_timeout=63)
    hook = Hook("jobs", "web-3", "secret")
    assert SSHOperatorArgs.model_validate({"ssh_hook": hook, "cmd_timeout": 63}) == expected
    assert ssh(ssh_hook=hook, cmd_timeout=63).ssh_operator_args == expected
    assert ssh(ssh_hook=hook, ssh_conn_id="own").ssh_conn_id == "own"
    assert ssh(ssh_hook=Hook(remote_host="web-3")).ssh_operator_args == SSHOperatorArgs(remote_host="web-3")
    for wrong in (object(), Hook(), Hook(remote_host="web-3", password="secret")):
        with pytest.raises(ValidationError, match="give ssh_conn_id") as raised:
            ssh(ssh_hook=wrong)
        assert "secret" not in str(raised.value)


def test_fields_of_nested_models_can_be_read_as_they_are_written() -> None:
    cfg = config(
        port="127.0.0.1:9001",
        username="me",
        password="secret",
        exitcodes=[0, 3],
        startsecs=7,
        command_timeout=9,
    )
    assert (cfg.port, cfg.host, cfg.username) == ("127.0.0.1:9001", "localhost", "me")
    assert cfg.password is not None
    assert cfg.password.get_secret_value() == "secret"
    assert (cfg.exitcodes, cfg.startsecs, cfg.command_timeout) == ([0, 3], 7, 9)
    for name in AirflowConfiguration.model_fields:
        assert getattr(config(), name) == getattr(config().airflow, name)
    assert config(inet_http_server={"port": "127.0.0.1:9002"}).port == "127.0.0.1:9002"
    assert config(password="secret", username="me").username == "me"

    remote = ssh(ssh_conn_id="jobs", remote_host="web-3", host="ignored")
    for name in SSHOperatorArgs.model_fields:
        assert getattr(remote, name) == getattr(remote.ssh_operator_args, name)
    assert remote.host == "web-3"
    assert ssh(host="web-4").host == "web-4"
    # They are no fields, so they are not written a second time.
    assert "port" not in cfg.model_dump()


YAML = """
# @package _global_
_target_: deferrable_ops.supervisord.SupervisorSSHAirflowConfiguration
check_interval: 10
check_timeout: 00:01:00
endtime: 23:00:00
maxretrigger: 5
runtime: 360
ssh_operator_args:
  cmd_timeout: 63
cleanup: false
restart_on_retrigger: false
restart_on_initial: true
stop_on_exit: false
working_dir: /data
airflow:
  _target_: deferrable_ops.supervisord.AirflowConfiguration
  port: "127.0.0.1:9001"
program:
  echo:
    _target_: deferrable_ops.supervisord.ProgramConfiguration
    command: echo "hello"
    environment: {WORKERS: 4}
policies:
  echo: {exit_codes: {99: skip, 75: retry}}
"""


def test_yaml_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(YAML)
    cfg = SupervisorSSHAirflowConfiguration.from_yaml(path)
    assert (cfg.check_interval, cfg.check_timeout) == (timedelta(seconds=10), timedelta(minutes=1))
    assert (cfg.endtime, cfg.runtime, cfg.maxretrigger) == (time(23), timedelta(minutes=6), 5)
    assert (cfg.cleanup, cfg.stop_on_exit, cfg.restart_on_initial) == (False, False, True)
    assert cfg.program["echo"].command == 'echo "hello"'
    assert cfg.program["echo"].environment == {"WORKERS": "4"}
    assert cfg.policies["echo"].exit_codes == {99: Action.SKIP, 75: Action.RETRY}
    assert cfg.ssh_operator_args.cmd_timeout == 63


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1, 2]", "must contain a mapping"),
        (f"password: {SECRET}\n  x: : y", "is not valid YAML; check line 2"),
        (
            "program: {test: {comand: x}}",
            r"program.test.command: Field required\n  program.test.comand: Extra",
        ),
        (f"password: {SECRET}\nprogram: {{a: {{command: x}}}}", "username is missing"),
        ("password: ${oc.env:PASSWORD}", "only Hydra resolves"),
    ],
)
def test_error_in_yaml_names_the_field_without_its_value(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        SupervisorAirflowConfiguration.from_yaml(path)
    assert str(path) in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_missing_yaml_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        SupervisorAirflowConfiguration.from_yaml(tmp_path / "none.yaml")
