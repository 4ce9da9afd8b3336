"""What the fault tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from real_airflow import OutsideService, Postgres, PostgresMissing


@pytest.fixture
def new_service() -> Iterator[Callable[[], OutsideService]]:
    """Make outside services that do not listen yet: until `start`, each refuses every connection."""
    made: list[OutsideService] = []

    def make() -> OutsideService:
        made.append(OutsideService())
        return made[-1]

    yield make
    for service in made:
        with suppress(RuntimeError):  # it was never started
            service.stop()


@pytest.fixture
def new_postgres() -> Iterator[Callable[[dict[str, str]], Postgres]]:
    """Start Postgres servers with settings of their own; nobody else minds what happens to them."""
    started: list[Postgres] = []

    def start(settings: dict[str, str]) -> Postgres:
        try:
            started.append(Postgres(settings))
        except PostgresMissing as missing:
            pytest.skip(str(missing))
        started[-1].start()
        return started[-1]

    yield start
    for server in started:
        server.remove()
