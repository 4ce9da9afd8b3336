"""Hosts announce themselves in the inbox. On a SQLite file, a second host is an error that is logged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
from contract.support import RETRY_TIMEOUT, eventually

from deferrable_ops import __version__
from deferrable_ops.exceptions import InboxUnavailable
from deferrable_ops.inbox import Inbox
from deferrable_ops.inbox.database.database import Database
from deferrable_ops.inbox.hosts import Component, Host, Hosts, Machine, executor_problem

WEB = Machine("web-1", "boot-1")
OTHER = Machine("web-2", "boot-2")


def hosts_of(inbox: Inbox, machine: Machine, gap: float = 3600.0) -> Hosts:
    return Hosts(inbox.database, machine, announce_interval=0.02, gap=gap)


@asynccontextmanager
async def announcing(hosts: Hosts, component: Component = Component.API_SERVER) -> AsyncIterator[None]:
    task = asyncio.create_task(hosts.announce(component))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def announced(inbox: Inbox, number: int) -> list[Host]:
    async def read() -> list[Host]:
        found = await inbox.hosts.all()
        return found if len(found) == number else []

    return await eventually(read, f"{number} hosts")


async def test_announced_components_are_listed_with_their_release_and_times(inbox: Inbox) -> None:
    before = await inbox.database.now()
    web = hosts_of(inbox, WEB)
    async with announcing(web), announcing(hosts_of(inbox, OTHER), Component.TRIGGERER):
        api_server, triggerer = await announced(inbox, 2)
    assert (api_server.machine, api_server.component, api_server.release) == (WEB, "api-server", __version__)
    assert (triggerer.machine, triggerer.component) == (OTHER, "triggerer")
    assert before <= api_server.since <= api_server.seen_at


async def test_announcement_names_the_deployment_once_it_is_known(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__DEPLOYMENT", "blue")
    async with announcing(hosts_of(inbox, WEB)):
        (host,) = await announced(inbox, 1)
    assert host.deployment == "blue"


async def test_repeated_announcements_keep_the_start_until_there_is_a_gap(inbox: Inbox) -> None:
    async with announcing(hosts_of(inbox, WEB)):
        (first,) = await announced(inbox, 1)

        async def seen_again() -> list[Host]:
            return [host for host in await inbox.hosts.all() if host.seen_at > first.seen_at]

        (again,) = await eventually(seen_again, "a second announcement")
        assert again.since == first.since
    async with announcing(hosts_of(inbox, WEB, gap=0.0)):
        (later,) = await eventually(lambda: started_after(inbox, again.seen_at), "a new start")
    assert later.since == later.seen_at


async def started_after(inbox: Inbox, moment: float) -> list[Host]:
    return [host for host in await inbox.hosts.all() if host.since > moment]


async def test_hosts_are_deleted_after_their_retention(inbox: Inbox) -> None:
    async with announcing(hosts_of(inbox, WEB)):
        await announced(inbox, 1)
    assert await inbox.retention.prune_hosts(days=1) == 0
    assert await inbox.retention.prune_hosts(days=0) == 1
    assert await inbox.hosts.all() == []


@pytest.mark.parametrize(
    ("machine", "component", "here"),
    [
        (WEB, Component.API_SERVER, True),
        (WEB, Component.TRIGGERER, True),
        (WEB, Component.ENDPOINT, False),
        (Machine("container", "boot-1"), Component.API_SERVER, True),
        (Machine("web-1", "boot-0"), Component.API_SERVER, True),
        (OTHER, Component.API_SERVER, False),
    ],
)
async def test_airflow_is_here_if_one_of_its_components_announced_itself_on_this_machine(
    inbox: Inbox, machine: Machine, component: Component, here: bool
) -> None:
    web = hosts_of(inbox, WEB)
    assert not await web.airflow_is_here()
    async with announcing(hosts_of(inbox, machine), component):
        await announced(inbox, 1)
    assert await web.airflow_is_here() is here


def test_machines_without_a_boot_id_differ_by_name() -> None:
    assert not Machine("a", "").is_same(Machine("b", ""))
    assert Machine("a", "").is_same(Machine("a", ""))


async def test_second_host_on_a_sqlite_file_is_logged_on_both_once(
    two: tuple[Inbox, Inbox], caplog: pytest.LogCaptureFixture
) -> None:
    web, other = hosts_of(two[0], WEB), hosts_of(two[1], OTHER)
    is_file = two[0].database.dialect == "sqlite"
    async with announcing(web), announcing(other, Component.ENDPOINT):
        await announced(two[0], 2)
        await eventually(
            lambda: seen_twice(two[0]) if not is_file else both(web, other), "the error, or two announcements"
        )
        await asyncio.sleep(0.1)
    problems = [record.message for record in caplog.records if "is used on 2 hosts" in record.message]
    assert len(problems) == (2 if is_file else 0)
    assert all("web-1, web-2" in problem and "Postgres" in problem for problem in problems)


async def both(web: Hosts, other: Hosts) -> bool:
    return web.problem is not None and other.problem is not None


async def seen_twice(inbox: Inbox) -> bool:
    return all(host.seen_at > host.since for host in await inbox.hosts.all())


async def test_containers_of_one_machine_share_a_sqlite_file(two: tuple[Inbox, Inbox]) -> None:
    web, container = hosts_of(two[0], WEB), hosts_of(two[1], Machine("container", "boot-1"))
    async with announcing(web), announcing(container, Component.TRIGGERER):
        await announced(two[0], 2)
        await eventually(lambda: seen_twice(two[0]), "two announcements")
    assert (web.problem, container.problem) == (None, None)


async def test_container_that_has_moved_to_this_host_is_no_second_host(two: tuple[Inbox, Inbox]) -> None:
    async with announcing(hosts_of(two[0], OTHER)):
        await announced(two[0], 1)
    web = hosts_of(two[1], WEB)
    async with announcing(web, Component.TRIGGERER):
        await announced(two[0], 2)
        await asyncio.sleep(0.1)
    assert web.problem is None


@contextmanager
def executor(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("AIRFLOW__CORE__EXECUTOR", name)
        yield


async def test_remote_executor_with_a_sqlite_file_is_an_error_at_the_start(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with executor(monkeypatch, "LocalExecutor,CeleryExecutor"):
        inbox = await Inbox.open(url, retry_timeout=RETRY_TIMEOUT)
    async with announcing(inbox.hosts):
        await announced(inbox, 1)
    is_file = "sqlite" in url and not inbox.database.in_memory
    await inbox.close()
    assert ("CeleryExecutor" in caplog.text) is is_file
    assert (inbox.hosts.problem is not None) is is_file


@pytest.mark.parametrize(
    ("executor", "remote"),
    [
        ("LocalExecutor", None),
        ("", None),
        ("my.company.LocalExecutor", None),
        ("CeleryExecutor", "CeleryExecutor"),
        ("LocalExecutor,KubernetesExecutor:k8s", "KubernetesExecutor"),
        ("airflow.providers.celery.executors.celery_executor.CeleryExecutor", "CeleryExecutor"),
        ("team1=my.MyKubernetesExecutor", "MyKubernetesExecutor"),
        ("airflow.providers.edge3.executors.EdgeExecutor", "EdgeExecutor"),
    ],
)
def test_executors_that_run_tasks_on_other_hosts(executor: str, remote: str | None) -> None:
    problem = executor_problem(executor)
    assert (problem is not None) is (remote is not None)
    assert remote is None or f"has {remote}, which" in str(problem)


async def test_announcing_continues_after_an_outage(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = Database.write
    failures = iter([InboxUnavailable("the inbox does not answer")])

    async def flaky(*arguments: object) -> object:
        for error in failures:
            raise error
        return await write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Database, "write", flaky)
    async with announcing(hosts_of(inbox, WEB)):
        await announced(inbox, 1)
    assert "Cannot record that this host uses the inbox" in caplog.text
