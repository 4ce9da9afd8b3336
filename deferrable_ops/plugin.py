"""The Airflow plugin.

This module imports few other modules, because every component of Airflow imports the plugin. Only the API server
creates the endpoint.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from airflow.sdk.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from deferrable_ops.inbox import Inbox


class DeferrableOpsPlugin(AirflowPlugin):
    """The plugin that mounts the endpoint in Airflow's API server."""

    name = "deferrable_ops"

    @classmethod
    def on_load(cls, *_: Any, **__: Any) -> None:
        """If this process runs the command ``airflow triggerer``, start this library's background work with the
        triggerer.
        """
        if "triggerer" in sys.argv[1:2]:
            from deferrable_ops.triggers.lifecycle.background import start_with_triggerer

            start_with_triggerer()

    @cached_property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The endpoint's app, which is created when the API server or ``airflow plugins`` reads this property."""
        from deferrable_ops.endpoint import create_app
        from deferrable_ops.inbox.hosts import Component
        from deferrable_ops.settings import ENDPOINT_PREFIX

        app = create_app(Component.API_SERVER, background=[look_after_inbox, report_unended_tasks])
        return [{"app": app, "url_prefix": ENDPOINT_PREFIX, "name": "deferrable-ops"}]


async def look_after_inbox(inbox: Inbox) -> None:
    """Read or make the id of this Airflow's deployment. Then end the waits whose task ended while no triggerer ran, and
    make requests to stop the supervisords whose DAG run is over.

    This function runs in the API server, because the API server can query Airflow's metadata database.
    """
    from deferrable_ops.deployment import this_process
    from deferrable_ops.metadata_database import ensure_deployment, find_ended, find_over
    from deferrable_ops.triggers.lifecycle.sweeper import Sweeper

    this_process.learn(await asyncio.to_thread(ensure_deployment))
    await _for_each_inbox(inbox, lambda one: Sweeper(one, find_ended, find_over).run())


async def report_unended_tasks(inbox: Inbox) -> None:
    """Log the tasks that Airflow has not ended although their wait has an outcome.

    This function runs in the API server, because the API server can query Airflow's metadata database.
    """
    from deferrable_ops.triggers.lifecycle.unended import attempts_from_database, report_unended

    await _for_each_inbox(inbox, lambda one: report_unended(one, attempts_from_database))


async def _for_each_inbox(shared: Inbox, work: Callable[[Inbox], Awaitable[None]]) -> None:
    """Run `work` for the inbox of this process, and for the inbox of each team that has its own inbox."""
    from deferrable_ops.inbox import NO_RETRY_TIMEOUT, Inbox
    from deferrable_ops.settings import inbox_url, teams_with_inbox

    async def work_for(team: str) -> None:
        inbox = await Inbox.open(partial(inbox_url, team), retry_timeout=NO_RETRY_TIMEOUT)
        try:
            await work(inbox)
        finally:
            await inbox.close()

    await asyncio.gather(work(shared), *map(work_for, sorted(teams_with_inbox())))
