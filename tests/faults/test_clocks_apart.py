"""Machines whose clocks are an hour apart: deadlines, beats and claims go by the database's clock alone.

With SQLite there is one machine, and one clock: these tests are for Postgres.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import pytest
from faults.support.launched import Launched
from faults.support.load import attempt
from faults.support.processes import ServedEndpoint
from faults.support.triggerers import left_alone

from deferrable_ops.inbox import Inbox, NewWait, Wait, WaitState
from real_airflow import (
    Answer,
    CompilerMissing,
    OutsideService,
    Postgres,
    RealAirflow,
    Run,
    shifted_clock,
    wait_until,
)

HOUR = timedelta(hours=1)
on_postgres = pytest.mark.parametrize("started_airflow", ["postgres"], indirect=True)


def clock(by: timedelta) -> dict[str, str]:
    try:
        return shifted_clock(by)
    except CompilerMissing as missing:
        pytest.skip(str(missing))


@pytest.mark.long
@on_postgres
@pytest.mark.parametrize(
    ("components", "by"),
    [
        (["triggerer"], HOUR),
        (["triggerer"], -HOUR),
        (["api_server", "scheduler", "triggerer"], -HOUR),
    ],
    ids=["triggerer-ahead", "triggerer-behind", "all-but-the-database-behind"],
)
def test_waits_last_exactly_as_long_as_they_should(
    airflow: RealAirflow, new_service: Callable[[], OutsideService], components: list[str], by: timedelta
) -> None:
    for name in components:
        getattr(airflow, name).kill()
        airflow.start_component(getattr(airflow, name), clock(by))
    called, silent, beating, mute = (new_service().start() for _ in range(4))
    called.script("/job", Answer(callback={"came": True}))
    beating.script("/job", Answer(callback={"beat": True}, callback_after=12, heartbeats=({},) * 5))
    ends_well = trigger(airflow, "webhook_cancel", called)
    expires = trigger(airflow, "webhook_timeout", silent)
    beats = trigger(airflow, "webhook_heartbeat", beating)
    falls_silent = trigger(airflow, "webhook_heartbeat", mute)

    ends_well.wait_for("success")
    beats.wait_for("success")
    expires.wait_for("failed")
    falls_silent.wait_for("failed")

    assert ends_well.task("job").xcom() == {"came": True}
    assert beats.task("job").xcom() == {"beat": True}
    expired, lapsed = asyncio.run(read_waits(airflow, [expires, falls_silent]))
    assert expired.state is WaitState.EXPIRED
    assert 1 < expired.deadline - expired.created_at <= 30
    assert 0 <= settled_at(expired) - expired.deadline < 5
    assert lapsed.state is WaitState.FAILED
    assert 10 <= settled_at(lapsed) - lapsed.created_at < 20
    for service in (called, silent, beating, mute):
        assert len(service.requests("/job")) == 1


def trigger(airflow: RealAirflow, dag_id: str, service: OutsideService) -> Run:
    """Trigger a run whose date a scheduler that is behind does not take for the future."""
    return airflow.trigger(dag_id, {"service": service.url}, logical_date=datetime.now(UTC) - HOUR)


@pytest.mark.long
@on_postgres
def test_second_triggerer_an_hour_ahead_takes_a_wait_from_a_living_one_and_nothing_happens_twice(
    airflow: RealAirflow, outside: OutsideService
) -> None:
    launched = Launched.at(airflow, outside)
    launched.wait_until_recorded()
    left_before = left_alone(airflow)

    airflow.add_triggerer(clock(HOUR))  # to which every other seems dead

    wait_until(lambda: left_alone(airflow) > left_before, "the first to be told to let go")
    launched.end(requests=1)


@pytest.fixture
async def inbox(new_postgres: Callable[[dict[str, str]], Postgres]) -> AsyncIterator[Inbox]:
    """An inbox on a machine with the right clock."""
    opened = await Inbox.open(new_postgres({}).create_database("inbox", driver="asyncpg"), retry_timeout=60)
    yield opened
    await opened.close()


@pytest.fixture
def endpoints(inbox: Inbox, tmp_path: Path) -> Iterator[list[ServedEndpoint]]:
    """Two endpoints, an hour ahead and an hour behind."""
    url = inbox.database.url.render_as_string(hide_password=False)
    served = [ServedEndpoint(tmp_path, url, clock(by)).start() for by in (HOUR, -HOUR)]
    yield [endpoint.wait_until_ready() for endpoint in served]
    for endpoint in served:
        endpoint.kill()


async def test_endpoints_with_other_clocks_judge_by_the_databases(
    inbox: Inbox, endpoints: list[ServedEndpoint]
) -> None:
    half_an_hour = await register(inbox, 1, timeout=1800)
    two_seconds = await register(inbox, 2, timeout=2)
    for number, endpoint in enumerate(endpoints):
        before = await inbox.database.now()
        answer = await call(inbox, endpoint, half_an_hour, {"same": True})
        assert answer.status_code == 200
        assert abs(parsedate_to_datetime(answer.headers["date"]).timestamp() - before) > 3000
        if number == 0:
            assert before <= datetime.fromisoformat(answer.json()["received_at"]).timestamp() <= before + 10

    while await inbox.database.now() <= two_seconds.deadline:
        assert (await inbox.waits.get(two_seconds.id)).state is WaitState.WAITING
    for endpoint in endpoints:
        assert (await call(inbox, endpoint, two_seconds, {})).status_code == 410


async def test_beats_that_reach_endpoints_with_other_clocks_count_from_when_they_came(
    inbox: Inbox, endpoints: list[ServedEndpoint]
) -> None:
    with inbox.watcher.subscribe(attempt(3).wait_id) as changes:
        wait = await register(inbox, 3, timeout=1800, heartbeat_timeout=3)
        while await inbox.database.now() < wait.created_at + 8:
            for endpoint in endpoints:
                assert (await call(inbox, endpoint, wait, {}, "/heartbeat")).status_code == 200
        wait = await inbox.waits.get(wait.id)
        assert wait.state is WaitState.WAITING

        while wait.state is WaitState.WAITING:
            wait = await changes.next()
    assert wait.state is WaitState.FAILED
    assert wait.last_beat is not None
    assert 3 <= settled_at(wait) - wait.last_beat < 9


async def register(inbox: Inbox, number: int, **fields: float) -> Wait:
    return await inbox.waits.register(NewWait(attempt(number), "webhook", **fields))


async def call(
    inbox: Inbox, endpoint: ServedEndpoint, wait: Wait, payload: object, verb: str = ""
) -> httpx.Response:
    token = await inbox.keys.token(wait.id, wait.key_id)
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.post(f"{endpoint.url}/callbacks/{token}{verb}", json=payload)


async def read_waits(airflow: RealAirflow, runs: list[Run]) -> list[Wait]:
    """Return the waits of the runs once they are settled: Airflow's own deadline can be a moment before ours."""
    inbox = await Inbox.open(airflow.inbox_url, retry_timeout=60)
    found: dict[str, Wait] = {}
    async with asyncio.timeout(60):
        while any(run.run_id not in found or found[run.run_id].state is WaitState.WAITING for run in runs):
            found = {wait.attempt.run_id: wait for wait in await inbox.waits.find()}
            await asyncio.sleep(0.1)
    await inbox.close()
    return [found[run.run_id] for run in runs]


def settled_at(wait: Wait) -> float:
    assert wait.settled_at is not None
    return wait.settled_at
