"""The password of the inbox's role is changed while tasks wait; `inbox_url_cmd` prints the new one a moment later.

The triggerer runs on another host than the other components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.support.launched import Launched
from sqlalchemy import NullPool, create_engine, make_url, text

from real_airflow import Database, Hosts, OutsideService, Postgres, RealAirflow, wait_until

DAGS = Path(__file__).parents[1] / "airflow" / "dags"
ROLE, OLD, NEW = "rotating", "old-hunter2", "new-hunter2"
WAITS = 6
REFUSED = f'password authentication failed for user "{ROLE}"'

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


class Inbox:
    """A database that a role with a password owns, and the file from which Airflow reads its URL."""

    def __init__(self, server: Postgres, url: str, file: Path) -> None:
        self.server = server
        self.file = file
        self._url = make_url(url)
        self._admin = create_engine(
            self._url.set(drivername="postgresql+psycopg2"), isolation_level="AUTOCOMMIT", poolclass=NullPool
        )
        self._execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{OLD}'")
        self._execute(f"ALTER DATABASE {self._url.database} OWNER TO {ROLE}")
        self.write(OLD)

    def write(self, password: str) -> None:
        """Replace the URL in the file."""
        url = self._url.set(username=ROLE, password=password)
        self.file.write_text(url.render_as_string(hide_password=False))

    def rotate(self) -> None:
        """Change the role's password, and close its connections."""
        self._execute(f"ALTER ROLE {ROLE} PASSWORD '{NEW}'")
        self._execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'")

    def refusals(self) -> int:
        """Return how many logins the server has refused."""
        return self.server.log().count(REFUSED)

    def _execute(self, statement: str) -> None:
        with self._admin.connect() as connection:
            connection.execute(text(statement))


@pytest.fixture
def inbox(new_postgres: Callable[[dict[str, str]], Postgres], tmp_path: Path) -> Iterator[Inbox]:
    """An inbox on a server of its own, whose role must give its password."""
    server = new_postgres({"fsync": "off"})
    url = server.create_database("inbox", driver="asyncpg")
    with server.password_required(ROLE):
        yield Inbox(server, url, tmp_path / "inbox_url")


@pytest.fixture
def airflow(inbox: Inbox, hosts: Hosts, tmp_path: Path) -> Iterator[RealAirflow]:
    """An Airflow that reads the URL of its inbox by a command."""
    home, dags = tmp_path / "home", tmp_path / "dags"
    home.mkdir()
    dags.mkdir()
    (dags / "webhook.py").symlink_to(DAGS / "webhook.py")
    database = Database("postgres", inbox.server.create_database("airflow", driver="psycopg2"), None)
    command = {"AIRFLOW__DEFERRABLE_OPS__INBOX_URL_CMD": f"cat {inbox.file}"}
    airflow = RealAirflow(home, database, [dags], command, hosts)
    try:
        airflow.start(api_server_first=True)
        yield airflow
    finally:
        airflow.stop()


def test_waits_go_on_and_no_callback_is_lost_after_the_password_is_rotated(
    airflow: RealAirflow, inbox: Inbox, new_service: Callable[[], OutsideService]
) -> None:
    waiting = [Launched.at(airflow, new_service().start()) for _ in range(WAITS)]
    for launched in waiting:
        launched.service.wait_for_requests("/job", timeout=300)
        launched.wait_until_recorded()
    holding = new_service().start()
    release = holding.hold("/job")
    launching = Launched.at(airflow, holding)
    holding.wait_for_requests("/job")
    [request] = waiting[0].service.requests("/job")

    refusals = inbox.refusals()
    inbox.rotate()
    # Meanwhile, one service calls back, one answers to its launch, and one task registers its wait.
    release.set()
    late = Launched.at(airflow, new_service().start())
    assert waiting[0].service.call_back(request, {"sent": "again"}).status_code == 503
    late.task.wait_for("deferred")
    wait_until(lambda: inbox.refusals() > refusals, "a login with the old password to be refused")
    assert late.service.requests() == []
    inbox.write(NEW)

    wait_until(
        lambda: waiting[0].service.call_back(request, {"sent": "again"}).status_code == 200,
        "the callback to be stored",
    )
    waiting[0].task.run.wait_for("success")
    assert waiting[0].task.xcom() == {"sent": "again"}
    waiting[0].assert_undisturbed(requests=1)
    launching.wait_until_recorded()
    late.service.wait_for_requests("/job", timeout=120)
    late.wait_until_recorded()
    for launched in [*waiting[1:], launching, late]:
        launched.end(requests=1)
    written = "".join(file.read_text(errors="replace") for file in airflow.written_files())
    assert OLD not in written
    assert NEW not in written
