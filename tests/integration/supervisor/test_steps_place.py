"""Steps in directories that may belong to another user: no file of his is run, no socket gets the password."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import sys
import xmlrpc.client
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from integration.supervisor.support import BEGIN, END, Place

from deferrable_ops.exceptions import MachineRefused, SupervisordUnavailable
from deferrable_ops.triggers.supervisor.client import SupervisorClient
from deferrable_ops.triggers.supervisor.host import open_host

pytest.importorskip("supervisor.supervisord")

log = logging.getLogger("task")


@asynccontextmanager
async def listening(path: Path) -> AsyncIterator[list[bytes]]:
    """Listen instead of supervisord, and record what is received."""
    received: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(4096))
        writer.close()

    async with await asyncio.start_unix_server(note, path):
        yield received


@pytest.mark.parametrize("step", [*BEGIN, "restart-programs", *END, "force-kill"])
async def test_every_step_refuses_a_directory_that_others_can_write_to(place: Place, step: str) -> None:
    cfg = place.cfg()
    await place.run_steps(cfg, "configure-supervisor")
    cfg.config_path.write_text(f"[supervisord]\nlogfile={place.folder / 'was run'}\n")
    assert cfg.working_dir is not None
    cfg.working_dir.chmod(0o777)
    async with listening(cfg.socket_path) as received:
        failed = await place.fail_step(cfg, step)
        # A user may correct the directory before the retry of a teardown step.
        assert failed.retryable == (step in END)
        assert f"chmod go-w {cfg.working_dir}" in failed.reason
        with pytest.raises(MachineRefused):
            await asyncio.to_thread(SupervisorClient(cfg).processes)
    assert received == []
    assert not (place.folder / "was run").exists()


async def test_socket_and_file_in_a_shared_directory_are_refused(place: Place) -> None:
    shared = place.folder / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    given: list[dict[str, Any]] = [
        {"unix_http_server": {"file": str(shared / "s.sock")}},
        {"config_path": str(shared / "s.conf")},
    ]
    for fields in given:
        failed = await place.fail_step(place.cfg(**fields), "configure-supervisor")
        assert f"{shared} is shared by all users; give a directory below it" in failed.reason


async def test_socket_in_a_directory_created_later_is_not_called(place: Place) -> None:
    cfg = place.cfg()
    assert cfg.working_dir is not None
    async with open_host(cfg, log) as site:
        assert await site.missing_directories() == [cfg.working_dir]
        cfg.working_dir.mkdir(mode=0o700)
        async with listening(cfg.socket_path) as received:
            assert await site.daemon() is None
            with pytest.raises(SupervisordUnavailable):
                await site.processes()
        assert received == []
    failed = await place.fail_step(cfg, "start-supervisor")
    assert f"the file {cfg.config_path} does not exist" in failed.reason
    shutil.rmtree(cfg.working_dir)
    failed = await place.fail_step(cfg, "start-supervisor")
    assert f"the directory {cfg.working_dir} does not exist" in failed.reason


@asynccontextmanager
async def answering(path: Path, *answers: Any) -> AsyncIterator[None]:
    """Answer calls instead of supervisord."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=xmlrpc.client.dumps(([*answers],), methodresponse=True))

    app = web.Application()
    app.router.add_post("/RPC2", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(path)).start()
        yield
    finally:
        await runner.cleanup()


async def test_process_that_a_false_supervisord_names_is_not_ended(place: Place) -> None:
    cfg = place.cfg()
    await place.run_steps(cfg, "configure-supervisor")
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, start_new_session=True)
    try:
        async with answering(cfg.socket_path, {"statecode": 0, "statename": "RESTARTING"}, other.pid):
            assert (await place.run_steps(cfg, "stop-supervisor"))["stopped"] == []
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
