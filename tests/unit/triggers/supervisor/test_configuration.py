"""The serialized configuration: always the same text, and without secrets."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from cryptography.fernet import Fernet

from deferrable_ops.exceptions import ConfigurationError, InputError
from deferrable_ops.supervisord import (
    ProgramConfiguration,
    SupervisorAirflowConfiguration,
    SupervisorSSHAirflowConfiguration,
)
from deferrable_ops.triggers.supervisor import configuration as supervisor_configuration
from deferrable_ops.triggers.supervisor.configuration import (
    STEPS,
    daemon_name,
    load_configuration,
    machine_address,
    mask_secrets,
    serialize_configuration,
    step_timeout,
    supervisord_address,
)

KEY, OLD_KEY = Fernet.generate_key().decode(), Fernet.generate_key().decode()
SECRET = "correct horse"
PROGRAM = {"test": {"command": "sleep 9"}}


def local(**fields: Any) -> SupervisorAirflowConfiguration:
    return SupervisorAirflowConfiguration(**{"working_dir": "/srv/s", "program": PROGRAM, **fields})


def remote(**fields: Any) -> SupervisorSSHAirflowConfiguration:
    return SupervisorSSHAirflowConfiguration(**{"working_dir": "/srv/s", "program": PROGRAM, **fields})


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set Airflow's fernet key, and clear the cache as a new process would have it."""

    def use(*keys: str) -> None:
        monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", ",".join(keys))
        load_configuration.cache_clear()

    use(KEY)
    return use


HIDDEN = {
    "password of a port": local(port="*:9001", username="me", password=SECRET),
    "password of the socket": local(
        unix_http_server={"file": "/srv/s/s.sock", "username": "me", "password": SECRET}
    ),
    "a program's variable": local(program={"test": {"command": "x", "environment": {"TOKEN": SECRET}}}),
    "the daemon's variable": local(supervisord={"environment": {"TOKEN": SECRET}}),
    "an option of XML-RPC": local(
        rpcinterface={"x": {"rpcinterface_factory": "a.b:c", "kwargs": {"token": SECRET}}}
    ),
    "a variable over SSH": remote(ssh_conn_id="web", environment={"TOKEN": SECRET}),
}


@pytest.mark.parametrize("what", HIDDEN)
def test_secret_is_encrypted_and_decrypted(what: str, key: Any) -> None:
    cfg = HIDDEN[what]
    sealed = serialize_configuration(cfg)
    assert SECRET not in sealed
    assert "TOKEN" not in sealed
    opened = load_configuration(sealed)
    assert opened == cfg
    assert type(opened) is type(cfg)
    assert opened.to_cfg() == cfg.to_cfg()
    assert mask_secrets(f"cannot read: {SECRET}!", cfg) == "cannot read: ***!"


def test_text_without_secrets_is_plain(key: Any) -> None:
    cfg = local(check_interval=7, program={"test": {"command": "docker ps --format '{{.ID}}'"}})
    data = json.loads(serialize_configuration(cfg))
    assert data["configuration"]["program"]["test"]["command"] == "docker ps --format '{{.ID}}'"
    assert load_configuration(serialize_configuration(cfg)) == cfg


def test_same_configuration_is_the_same_text_in_another_process(key: Any) -> None:
    code = (
        "from deferrable_ops.supervisord import SupervisorAirflowConfiguration as C\n"
        "from deferrable_ops.triggers.supervisor.configuration import serialize_configuration\n"
        "print(serialize_configuration(C(working_dir='/srv/s', program={'test': {'command': 'x', 'environment': "
        f"{{'TOKEN': {SECRET!r}}}}}}})))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.splitlines()[-1] == serialize_configuration(HIDDEN["a program's variable"])


def test_another_configuration_or_key_is_another_text(key: Any) -> None:
    one = serialize_configuration(local(port="*:9001", username="me", password=SECRET))
    assert serialize_configuration(local(port="*:9001", username="me", password=SECRET + "2")) != one
    key(OLD_KEY)
    assert serialize_configuration(local(port="*:9001", username="me", password=SECRET)) != one


def test_replaced_key_decrypts_while_it_is_configured(key: Any) -> None:
    key(OLD_KEY)
    sealed = serialize_configuration(HIDDEN["password of a port"])
    key(KEY, OLD_KEY)
    assert load_configuration(sealed) == HIDDEN["password of a port"]
    key(KEY)
    with pytest.raises(ConfigurationError, match="another \\[core\\] fernet_key") as raised:
        load_configuration(sealed)
    assert SECRET not in str(raised.value)


def test_without_a_key_passwords_are_refused_and_variables_are_plain(key: Any) -> None:
    key("")
    with pytest.raises(ConfigurationError, match="fernet_key is empty"):
        serialize_configuration(HIDDEN["password of a port"])
    cfg = HIDDEN["a program's variable"]
    assert load_configuration(serialize_configuration(cfg)) == cfg


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"kind": "other"}', "sealed:%%%", "sealed:abcd"])
def test_invalid_text_is_an_error(text: str, key: Any) -> None:
    with pytest.raises((InputError, ConfigurationError), match="configuration"):
        load_configuration(text)


def test_invalid_field_is_named_without_its_value(key: Any) -> None:
    data = json.loads(serialize_configuration(local()))
    data["configuration"]["airflow"]["password"] = SECRET
    with pytest.raises(InputError) as raised:
        load_configuration(json.dumps(data))
    assert "username" in str(raised.value)
    assert SECRET not in str(raised.value)


def test_unusable_configuration_is_refused_at_dag_parsing(key: Any) -> None:
    server = {
        "file": "/srv/s/s.sock",
        "username": "me",
        "password": "{SHA}82ab876d1387bfafe46cc1c8a2ef074eae50cb1d",
    }
    with pytest.raises(InputError, match="password is a hash"):
        serialize_configuration(local(unix_http_server=server))


STORED = (
    '{"configuration":{"airflow":{},"program":{"one":{"command":"sleep 100"}},'
    '"working_dir":"/srv/d"},"kind":"local"}'
)
STORED_FILE = """\
[unix_http_server]
file=/srv/d/supervisor.sock

[supervisord]
logfile=/srv/d/supervisord.log
pidfile=/srv/d/supervisord.pid
childlogdir=/srv/d
directory=/srv/d

[supervisorctl]
serverurl=unix:///srv/d/supervisor.sock

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[program:one]
command=sleep 100
autostart=false
autorestart=false
stopwaitsecs=30
stopasgroup=true
killasgroup=true
stdout_logfile=/srv/d/one/output.log
stderr_logfile=/srv/d/one/error.log
directory=/srv/d/one
"""


def test_text_of_an_earlier_release_keeps_its_meaning(key: Any) -> None:
    """Serialized DAGs do not contain the defaults of a configuration. Do not change a default."""
    stored = load_configuration(STORED)
    assert stored.to_cfg() == STORED_FILE
    settings = stored.with_secrets()
    assert (settings["check_interval"], settings["check_timeout"]) == ("PT5S", "PT8H")
    assert (settings["stop_on_exit"], settings["cleanup"], settings["drift"]) == (True, True, "warn")
    assert settings["airflow"]["command_timeout"] == 60
    assert settings["policy"]["otherwise"] == "retrigger"
    assert serialize_configuration(stored) == STORED


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"working_dir": "/srv/d", "config_path": "web.conf", "supervisord": {"loglevel": "debug"}},
        {"startsecs": 3, "endtime": "23:30", "policies": {"p": {"exit_codes": {3: "success"}}}},
        {"port": "127.0.0.1:9001", "username": "u", "password": "hunter22"},
    ],
)
def test_text_has_given_fields_only_and_means_the_same_on_another_host(
    given: dict[str, Any], key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = SupervisorAirflowConfiguration(program={"p": {"command": "x"}}, **given)
    text = serialize_configuration(cfg)
    monkeypatch.setattr("getpass.getuser", lambda: "another")
    assert load_configuration(text).with_secrets() == cfg.with_secrets()
    assert len(text) < 700


def test_defaults_of_a_subclass_are_in_the_text(key: Any) -> None:
    class Prices(ProgramConfiguration):
        command: str = "/opt/feeds/prices"

    cfg = SupervisorAirflowConfiguration(program={"p": Prices()})
    assert load_configuration(serialize_configuration(cfg)).program["p"].command == "/opt/feeds/prices"


def test_machine_and_name_follow_from_the_configuration() -> None:
    assert machine_address(local()).ssh_conn_id is None
    assert daemon_name(local()) == "/srv/s"
    assert machine_address(remote()).ssh_conn_id == "ssh_default"
    where = machine_address(
        remote(ssh_conn_id="web", remote_host="web-3", conn_timeout=3, command_prefix="true")
    )
    assert (where.ssh_conn_id, where.remote_host, where.connect_timeout, where.command_prefix) == (
        "web",
        "web-3",
        3,
        "true",
    )
    assert daemon_name(remote(ssh_conn_id="web", remote_host="web-3")) == "web@web-3:/srv/s"
    assert daemon_name(remote(ssh_conn_id="web")) != daemon_name(remote(ssh_conn_id="db"))
    address = supervisord_address(HIDDEN["password of the socket"], supervisor_configuration.Path("/tmp/x"))
    assert (str(address), address.username, address.password) == ("/tmp/x", "me", SECRET)


def test_step_timeout_covers_the_programs() -> None:
    quick = local(command_timeout=10)
    slow = local(
        command_timeout=10,
        program={"test": {"command": "x", "stopwaitsecs": 600, "startsecs": 100, "startretries": 2}},
    )
    more = {step: step_timeout(slow, step) - step_timeout(quick, step) for step in STEPS}
    stop, start = 600 - 30, 100 * 3 + 3 - (4 + 6)
    assert more["configure-supervisor"] == more["unconfigure-supervisor"] == more["force-kill"] == 0
    assert more["stop-programs"] == stop
    assert more["start-programs"] == more["restart-programs"] == stop + start
    assert more["stop-supervisor"] == 3 * stop
    assert all(step_timeout(quick, step) >= 10 for step in STEPS)
