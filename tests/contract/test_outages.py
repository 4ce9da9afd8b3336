"""One row for each system that does not answer: written at most once a minute, removed when the system answers."""

from __future__ import annotations

import json

import pytest
from contract.support import register

from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.outages import OutageRows
from deferrable_ops.outages import INBOX, Outages

KAFKA = "Kafka (logs)"
DATAFLOW = "Dataflow (project, region)"


class Host:
    """A host whose clock a test moves."""

    def __init__(self, inbox: Inbox, name: str) -> None:
        self.now = 1000.0
        self.outages = Outages(lambda: self.now)
        self.rows = OutageRows(inbox.database, self.outages, name)


@pytest.fixture
def host(inbox: Inbox) -> Host:
    return Host(inbox, "one")


async def seen(inbox: Inbox) -> list[tuple[str, str, str]]:
    return [(one.source, one.host, one.error) for one in await inbox.outages.all()]


async def test_outage_has_a_row_while_it_lasts(inbox: Inbox, host: Host) -> None:
    host.outages.failed(KAFKA, "no broker answers")
    await host.rows.store()
    assert await seen(inbox) == []
    host.now += 30
    await host.rows.store()
    (outage,) = await inbox.outages.all()
    assert (outage.source, outage.host, outage.error) == (KAFKA, "one", "no broker answers")
    assert outage.seen_at - outage.since == pytest.approx(0, abs=0.01)
    assert await inbox.database.now() - outage.since == pytest.approx(30, abs=5)
    host.outages.recovered(KAFKA)
    await host.rows.store()
    assert await seen(inbox) == []


async def test_row_is_updated_at_most_once_a_minute(inbox: Inbox, host: Host) -> None:
    host.outages.failed(KAFKA, "the first error")
    host.now += 10
    await host.rows.store()
    for _ in range(5):
        host.now += 10
        host.outages.failed(KAFKA, "the last error")
        await host.rows.store()
        assert await seen(inbox) == [(KAFKA, "one", "the first error")]
    host.now += 10
    await host.rows.store()
    assert await seen(inbox) == [(KAFKA, "one", "the last error")]


async def test_hosts_have_their_own_rows_and_the_inbox_has_none(inbox: Inbox, host: Host) -> None:
    other = Host(inbox, "other")
    for one in (host, other):
        one.outages.failed(KAFKA, "no broker answers")
        one.outages.failed(INBOX, "connection refused")
        one.now += 10
        await one.rows.store()
    host.outages.recovered(KAFKA)
    await host.rows.store()
    assert await seen(inbox) == [(KAFKA, "other", "no broker answers")]


async def test_row_of_a_process_that_ended_is_not_shown_and_deleted_after_a_day(
    inbox: Inbox, host: Host
) -> None:
    host.outages.failed(KAFKA, "no broker answers")
    host.now += 400
    await host.rows.store()
    assert await seen(inbox) == []
    assert await inbox.retention.prune_outages() == 0
    host.outages.recovered(KAFKA)
    await host.rows.store()
    host.outages.failed(KAFKA, "no broker answers")
    host.now += 90_000
    await host.rows.store()
    assert await inbox.retention.prune_outages() == 1


async def test_outages_are_joined_with_the_waits_that_depend_on_the_system(inbox: Inbox, host: Host) -> None:
    events = await register(inbox, sources=(KAFKA, "SQS (queue)"))
    job = await register(inbox, sources=(DATAFLOW,))
    webhook = await register(inbox)
    host.outages.failed(KAFKA, json.dumps({"a": "text"}))
    host.now += 10
    await host.rows.store()
    found = await inbox.outages.of_waits([events.id, job.id, webhook.id])
    assert {wait_id: [one.source for one in mine] for wait_id, mine in found.items()} == {events.id: [KAFKA]}
