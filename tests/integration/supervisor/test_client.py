"""SupervisorClient with a real supervisord."""

from __future__ import annotations

import asyncio

import pytest
from integration.supervisor.supervisord_daemon import daemon

from deferrable_ops.exceptions import SupervisordRefused, SupervisordUnavailable
from deferrable_ops.supervisord.processes import ProcessState
from deferrable_ops.triggers.supervisor.client import SupervisorClient


async def test_client_works_without_an_event_loop_in_the_caller() -> None:
    async with daemon(program={"test": {"command": "sleep 100"}}) as found:
        client = SupervisorClient(found.config)

        def on_worker() -> None:
            assert client.call("supervisor.getState")["statename"] == "RUNNING"
            assert [process.full_name for process in client.processes()] == ["test:test"]
            assert client.call("supervisor.startProcess", "test:test") is True
            assert [process.state for process in client.processes()] == [ProcessState.RUNNING]
            with pytest.raises(SupervisordRefused):
                client.call("supervisor.startProcess", "nobody")

        await asyncio.to_thread(on_worker)  # without a running event loop
        assert client.call("supervisor.getPID") > 0  # and with a running event loop
    with pytest.raises(SupervisordUnavailable):
        client.processes()
