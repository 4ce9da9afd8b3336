"""What every suite shares: the servers, each started when the first test asks, and the rule about skips."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from cryptography.fernet import Fernet
from hypothesis import HealthCheck, settings

# Before anything imports Airflow: no test may depend on, or write to, the Airflow of whoever runs it. Its
# examples would install a listener, which changes how tasks end.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-of-the-tests-")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__FERNET_KEY"] = Fernet.generate_key().decode()

from real_airflow import (
    OutsideDataflow,
    OutsideService,
    Postgres,
    PostgresMissing,
    RealAirflow,
    postgres_database,
    sqlite_database,
)

if TYPE_CHECKING:
    from deferrable_ops.testing.dataflow import DataflowControl
    from real_kafka import RealKafka
    from real_sqs import RealSqs
    from real_sshd import RealSshd

TESTS = Path(__file__).parent
IN_CI = os.environ.get("CI") == "true"

# On a busy machine, generating inputs may be slow.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A Postgres server of our own. Nothing crashes it, so it need not wait for the disk."""
    try:
        server = Postgres({"fsync": "off"})
    except PostgresMissing as missing:
        pytest.skip(str(missing))
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[RealKafka]:
    """An Apache Kafka of our own."""
    from real_kafka import KafkaMissing, RealKafka

    try:
        server = RealKafka()
    except KafkaMissing as missing:
        pytest.skip(str(missing))
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def sqs_server() -> Iterator[RealSqs]:
    """moto's SQS and STS, in a process of their own."""
    from real_sqs import RealSqs

    server = RealSqs()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def sshd_server() -> Iterator[RealSshd]:
    """An OpenSSH server of our own, as it is by default."""
    from real_sshd import RealSshd, SshdMissing

    try:
        server = RealSshd()
    except SshdMissing as missing:
        pytest.skip(str(missing))
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def jobs() -> Iterator[OutsideService]:
    """The outside service that the examples find in the Airflow Variable ``jobs_url``."""
    service = OutsideService().start()
    yield service
    service.stop()


@pytest.fixture(scope="session")
def dataflow_process() -> Iterator[DataflowControl]:
    """The Dataflow that every Airflow of a session is told of, because a setting is read when a process starts."""
    from deferrable_ops.testing.dataflow import dataflow_process

    with dataflow_process() as control:
        yield control


@pytest.fixture(scope="session")
def remote_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the DAGs with a supervisord read of the environment: this machine plays the remote one as well."""
    from real_sshd import RealSshd, SshdMissing

    folders = tmp_path_factory.mktemp("sup")
    told = {
        "SUPERVISOR_FOLDERS": str(folders),
        "REMOTE_WORKING_DIR": str(folders / "ssh_example"),
        "REMOTE_COMMAND_PREFIX": f"export PATH={Path(sys.executable).parent}:$PATH",
    }
    try:
        server = RealSshd()
    except SshdMissing:  # which the test that needs it says
        yield told
        return
    try:
        server.start()
        yield told | {"AIRFLOW_CONN_SSH_DEFAULT": server.connection()}
    finally:
        server.remove()
        for process in psutil.process_iter(["cmdline"]):  # what a failed test has left
            if any(argument.startswith(f"{folders}/") for argument in process.info["cmdline"] or ()):
                process.terminate()


@pytest.fixture(scope="session", params=["postgres", "sqlite"])
def started_airflow(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    jobs: OutsideService,
    dataflow_process: DataflowControl,
    remote_machine: dict[str, str],
) -> Iterator[RealAirflow]:
    """One Airflow for all tests of a session: on Postgres, and then another on SQLite for those marked so."""
    home = tmp_path_factory.mktemp(f"airflow-{request.param}")
    if request.param == "postgres":
        database = postgres_database(request.getfixturevalue("postgres"))
    else:
        database = sqlite_database(home)
    folders = [TESTS / "airflow" / "dags", TESTS.parent / "examples"]
    airflow = RealAirflow(
        home,
        database,
        [folder for folder in folders if folder.exists()],
        {
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(TESTS / "airflow" / "plugins"),
            "AIRFLOW__DEFERRABLE_OPS__DATAFLOW_EMULATOR_HOST": dataflow_process.host,
            "AIRFLOW_VAR_JOBS_URL": jobs.url,
            **remote_machine,
        },
    )
    try:
        airflow.start()
        yield airflow
    finally:
        airflow.stop()


@pytest.fixture
def airflow(started_airflow: RealAirflow) -> Iterator[RealAirflow]:
    """A real Airflow with all its components running, whatever the test before did to them."""
    yield started_airflow
    started_airflow.restore()


@pytest.fixture
def outside() -> Iterator[OutsideService]:
    """An outside service that nobody has spoken to yet."""
    service = OutsideService().start()
    yield service
    service.stop()


@pytest.fixture
def dataflow(dataflow_process: DataflowControl) -> Iterator[OutsideDataflow]:
    """The Dataflow that Airflow is told of, with a prefix for this test's jobs."""
    dataflow = OutsideDataflow(dataflow_process)
    yield dataflow
    dataflow.restore()


@pytest.fixture
def full_load(request: pytest.FixtureRequest) -> bool:
    """Whether a test sends its full load, which takes minutes; without `--long`, it sends a part."""
    return bool(request.config.getoption("--long"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that runs what takes too long for every change."""
    parser.addoption("--long", action="store_true", help="run the tests marked long as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that only repeat on SQLite what Postgres shows as long, and deselect what is long."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if parameters.get("started_airflow") == "sqlite" and not item.get_closest_marker("both_databases"):
            item.add_marker("long")
    if not config.getoption("--long"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the ends of the components' outputs under a failed test."""
    report = yield
    airflow = getattr(item, "funcargs", {}).get("airflow")
    if report.failed and isinstance(airflow, RealAirflow):
        for component in [*airflow.components, *airflow.extra_triggerers]:
            report.sections.append((f"output of the {component.name}", component.tail()))
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run in CI when anything was skipped: there, every server can be had."""
    if hasattr(session.config, "workerinput"):  # a worker of pytest-xdist; its main process counts
        return
    if IN_CI and session.exitstatus == pytest.ExitCode.OK and _skipped(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say why the run failed although every test that ran passed."""
    if IN_CI and (count := _skipped(config)):
        terminalreporter.write_line(f"{count} skipped: in CI nothing may be skipped", red=True)


def _skipped(config: pytest.Config) -> int:
    reporter = config.pluginmanager.getplugin("terminalreporter")
    return len(reporter.stats.get("skipped", []))
