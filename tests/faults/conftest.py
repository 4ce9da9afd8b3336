"""What the fault tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from real_airflow import Hosts, HostsMissing, OutsideService, Postgres, PostgresMissing
from real_airflow.ports import LOOPBACK


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """A network of hosts, which are still to be added."""
    try:
        network = Hosts()
    except HostsMissing as missing:
        pytest.skip(str(missing))
    yield network
    network.remove()


@pytest.fixture
def address(request: pytest.FixtureRequest) -> str:
    """Where `new_service` and `new_postgres` listen: where the hosts can reach them, if the test has hosts."""
    if "hosts" not in request.fixturenames:
        return LOOPBACK
    return str(request.getfixturevalue("hosts").address)


@pytest.fixture
def new_service(address: str) -> Iterator[Callable[[], OutsideService]]:
    """Make outside services that do not listen yet: until `start`, each refuses every connection."""
    made: list[OutsideService] = []

    def make() -> OutsideService:
        made.append(OutsideService(address))
        return made[-1]

    yield make
    for service in made:
        with suppress(RuntimeError):  # it was never started
            service.stop()


@pytest.fixture
def new_postgres(address: str) -> Iterator[Callable[[dict[str, str]], Postgres]]:
    """Start Postgres servers with settings of their own; nobody else minds what happens to them."""
    started: list[Postgres] = []

    def start(settings: dict[str, str]) -> Postgres:
        try:
            started.append(Postgres(settings, address))
        except PostgresMissing as missing:
            pytest.skip(str(missing))
        started[-1].start()
        return started[-1]

    yield start
    for server in started:
        server.remove()
