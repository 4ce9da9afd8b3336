"""The default working directory: one for each Supervisor of each DAG."""

from __future__ import annotations

import getpass
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, TaskGroup
from airflow.serialization.serialized_objects import DagSerialization

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.supervisor import (
    ProgramConfiguration,
    Supervisor,
    SupervisorAirflowConfiguration,
    SupervisorSSH,
    SupervisorSSHAirflowConfiguration,
    SupervisorSSHTask,
    SupervisorTask,
)
from deferrable_ops.supervisord.daemon_sections import LONGEST_SOCKET_PATH
from deferrable_ops.triggers.supervisor.configuration import load_configuration

PROGRAM = {"web": {"command": "sleep 9"}}
ANOTHER = {**PROGRAM, "db": {"command": "sleep 9"}}
PASSWORD = "correct horse battery"


def new_dag(dag_id: str = "d") -> DAG:
    return DAG(dag_id, schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC))


def default(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"supervisor-{getpass.getuser()}-{name}"


def from_yaml(kind: type[SupervisorAirflowConfiguration], fields: dict[str, Any]) -> Any:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(fields, file)
        file.flush()
        return kind.from_yaml(file.name)


def from_hydra(kind: type[SupervisorAirflowConfiguration], fields: dict[str, Any]) -> Any:
    hydra = pytest.importorskip("hydra")
    target = f"{kind.__module__}.{kind.__name__}"
    return hydra.utils.instantiate({"_target_": target, **fields})


def local(dag: DAG, cfg: Any) -> Supervisor:
    return Supervisor(dag=dag, cfg=cfg)


def remote(dag: DAG, cfg: Any) -> Supervisor:
    return SupervisorSSH(dag=dag, cfg=cfg, host="jobs.example.com", port="127.0.0.1:9001", conn_timeout=5)


WAYS = {
    "dict": local,
    "configuration": lambda dag, fields: local(dag, SupervisorAirflowConfiguration(**fields)),
    "yaml": lambda dag, fields: local(dag, from_yaml(SupervisorAirflowConfiguration, fields)),
    "hydra": lambda dag, fields: local(dag, from_hydra(SupervisorAirflowConfiguration, fields)),
    "task": lambda dag, fields: SupervisorTask(task_id="t", cfg=fields).instantiate(dag=dag),
    "ssh dict": remote,
    "ssh configuration": lambda dag, fields: remote(dag, SupervisorSSHAirflowConfiguration(**fields)),
    "ssh of a local one": lambda dag, fields: remote(dag, SupervisorAirflowConfiguration(**fields)),
    "ssh yaml": lambda dag, fields: remote(dag, from_yaml(SupervisorSSHAirflowConfiguration, fields)),
    "ssh hydra": lambda dag, fields: remote(dag, from_hydra(SupervisorSSHAirflowConfiguration, fields)),
    "ssh task": lambda dag, fields: SupervisorSSHTask(
        task_id="t", cfg=fields, host="jobs.example.com", port="127.0.0.1:9001"
    ).instantiate(dag=dag),
}

# Sections with defaults are also given in part; their defaults must not count as set by the user.
GIVEN = [
    {},
    {
        "config_path": "web.conf",
        "supervisord": {"loglevel": "debug"},
        "supervisorctl": {"prompt": "web"},
        "unix_http_server": None,
        "startsecs": 3,
        "policy": {"exit_codes": {"0": "success"}},
    },
]


@pytest.mark.parametrize("fields", GIVEN, ids=["alone", "with parts of sections"])
@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_dags_with_the_same_programs_have_a_directory_each(way: Any, fields: dict[str, Any]) -> None:
    for dag_id in ("feeds", "prices"):
        cfg = way(new_dag(dag_id), {"program": PROGRAM, **fields}).cfg
        folder = default(dag_id)
        assert cfg.working_dir == folder
        assert cfg.config_path == folder / fields.get("config_path", "supervisord.conf")
        assert cfg.socket_path == folder / "supervisor.sock"
        assert cfg.supervisorctl.serverurl == f"unix://{folder}/supervisor.sock"
        daemon = cfg.supervisord
        assert (daemon.directory, daemon.childlogdir) == (folder, folder)
        assert (daemon.logfile, daemon.pidfile) == (folder / "supervisord.log", folder / "supervisord.pid")
        assert cfg.program["web"].stdout_logfile == folder / "web" / "output.log"
        assert cfg.to_cfg().count(str(folder)) > 5
        assert default("web").name not in cfg.to_cfg()  # its default name without a DAG
        for name, given in fields.get("supervisord", {}).items():
            assert getattr(daemon, name) == given
        assert cfg.program["web"].startsecs == fields.get("startsecs", 1)


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_added_program_does_not_move_the_directory(way: Any) -> None:
    before, after = (way(new_dag(), {"program": program}).cfg for program in (PROGRAM, ANOTHER))
    assert before.working_dir == after.working_dir == default("d")
    assert after.program["db"].directory == default("d") / "db"


@pytest.mark.parametrize(
    "given", [{"working_dir": "/data/s"}, {"supervisord": {"directory": "/data/s", "loglevel": "debug"}}]
)
@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_given_directory_is_kept(way: Any, given: dict[str, Any]) -> None:
    cfg = way(new_dag(), {"program": PROGRAM, "config_path": "web.conf", **given}).cfg
    assert cfg.working_dir == cfg.supervisord.directory == Path("/data/s")
    assert cfg.config_path == Path("/data/s/web.conf")
    assert str(default("")) not in cfg.to_cfg()


def test_given_path_outside_the_directory_is_kept() -> None:
    fields = {
        "config_path": "/etc/web.conf",
        "unix_http_server": {"file": "/run/web.sock"},
        "supervisord": {"logfile": "/var/log/web.log"},
        "program": {"web": {"command": "x", "stdout_logfile": "/var/log/out.log"}},
    }
    cfg = Supervisor(dag=new_dag(), cfg=SupervisorAirflowConfiguration(**fields)).cfg
    assert cfg.working_dir == default("d")
    assert (cfg.config_path, cfg.socket_path) == (Path("/etc/web.conf"), Path("/run/web.sock"))
    assert cfg.supervisorctl.serverurl == "unix:///run/web.sock"
    assert cfg.supervisord.logfile == Path("/var/log/web.log")
    assert cfg.program["web"].stdout_logfile == Path("/var/log/out.log")
    assert cfg.program["web"].stderr_logfile == default("d") / "web" / "error.log"


def test_supervisors_of_one_dag_have_a_directory_each() -> None:
    with new_dag() as dag:
        folders = [Supervisor(cfg={"program": PROGRAM}).cfg.working_dir]
        folders += [Supervisor(cfg={"program": PROGRAM}, name="web").cfg.working_dir]
        with TaskGroup("left"):
            folders += [Supervisor(cfg={"program": PROGRAM}).cfg.working_dir]
        group = TaskGroup("right")
        folders += [Supervisor(cfg={"program": PROGRAM}, task_group=group).cfg.working_dir]
    assert folders == [default("d"), default("d+web"), default("d+left.d"), default("d+right.d")]
    assert {"d-teardown", "web-teardown", "left.d-teardown", "right.d-teardown"} < set(dag.task_ids)


def test_supervisors_of_one_name_in_two_dags_have_a_directory_each() -> None:
    made = [Supervisor(dag=new_dag(one), cfg={"program": PROGRAM}, name="web") for one in ("a", "b")]
    assert [one.cfg.working_dir for one in made] == [default("a+web"), default("b+web")]


def test_configuration_shared_by_two_dags_gets_a_directory_for_each() -> None:
    cfg = SupervisorAirflowConfiguration(program=PROGRAM)
    first = Supervisor(dag=new_dag("a"), cfg=cfg)
    second = Supervisor(dag=new_dag("b"), cfg=cfg)
    third = Supervisor(dag=new_dag("c"), cfg=second.cfg)
    assert [one.cfg.working_dir for one in (first, second, third)] == [default(name) for name in "abc"]
    assert cfg.working_dir == default("web")


@pytest.mark.parametrize("dag_id", ["a" * 200, "préisé", "prices.of.every.market.in.the.world"])
def test_long_or_unusual_id_is_hashed_and_stays_unique(dag_id: str) -> None:
    one, other, again = (
        Supervisor(dag=new_dag(named), cfg={"program": PROGRAM}).cfg
        for named in (dag_id, f"{dag_id}2", dag_id)
    )
    assert one.working_dir == again.working_dir != other.working_dir
    assert str(one.working_dir).isascii()
    assert len(str(one.socket_path)) <= LONGEST_SOCKET_PATH


def test_directory_without_room_for_the_socket_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/" + "t" * 55)
    monkeypatch.setattr(getpass, "getuser", lambda: "me")
    cfg = SupervisorAirflowConfiguration(program={"w": {"command": "x"}})
    with pytest.raises(
        InputError,
        match=r"cfg= is not a valid \w+; correct these fields:\s+: working_dir is too long, because the path of",
    ):
        Supervisor(dag=new_dag("a" * 24), cfg=cfg)


def test_changes_of_a_copy_are_kept() -> None:
    cfg = SupervisorAirflowConfiguration(program=PROGRAM, maxretrigger=1)
    copy = cfg.model_copy(update={"maxretrigger": 7, "forward_logs": True})
    made = Supervisor(dag=new_dag(), cfg=copy).cfg
    assert (made.maxretrigger, made.forward_logs, made.working_dir) == (7, True, default("d"))


def test_program_of_a_subclass_keeps_its_fields() -> None:
    class Prices(ProgramConfiguration):
        command: str = "/opt/feeds/prices"

    for cfg in ({"program": {"p": Prices()}}, SupervisorSSHAirflowConfiguration(program={"p": Prices()})):
        made = SupervisorSSH(dag=new_dag(), cfg=cfg, host="jobs.example.com").cfg
        assert isinstance(made.program["p"], Prices)
        assert made.program["p"].directory == default("d") / "p"
        assert made.program["p"].command == "/opt/feeds/prices"


def test_secrets_are_kept_with_one_warning() -> None:
    login = {"username": "u", "password": PASSWORD}
    cfg = SupervisorAirflowConfiguration(program=PROGRAM, port=9001, **login, supervisorctl=login)
    made = Supervisor(dag=new_dag(), cfg=cfg).cfg
    assert made.to_cfg().count(PASSWORD) == 2
    with pytest.warns(UserWarning, match="only the Unix socket is used") as caught:
        Supervisor(dag=new_dag(), cfg={"program": PROGRAM, "port": "*:9001"})
    assert len(caught) == 1


def test_serialized_twice_it_is_the_same_and_the_trigger_has_the_dags_directory() -> None:
    parses = []
    for _ in range(2):
        with new_dag() as dag:
            supervisor = Supervisor(cfg={"program": ANOTHER, **GIVEN[1]})
        parses.append(json.dumps(DagSerialization.to_dict(dag), sort_keys=True))
    assert parses[0] == parses[1]
    opened = load_configuration(supervisor.start_supervisor.configuration)
    assert opened == supervisor.cfg
    assert opened.working_dir == default("d")


def test_dump_of_set_fields_contains_only_those() -> None:
    given = {"config_path": "web.conf", "program": PROGRAM, "supervisord": {"loglevel": "debug"}}
    cfg = SupervisorAirflowConfiguration(**given)
    text = cfg.model_dump_json(exclude_unset=True)
    assert json.loads(text) == {"airflow": {}, **given}
    assert SupervisorAirflowConfiguration.model_validate_json(text) == cfg
    assert SupervisorAirflowConfiguration(**cfg.with_secrets()) == cfg
