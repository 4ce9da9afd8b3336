"""supervisord's Unix socket through a real sshd: forwarded, or over the bridge if forwarding is disabled."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deferrable_ops.exceptions import ConfigurationError, SupervisordUnavailable
from deferrable_ops.supervisord import SupervisorAirflowConfiguration
from deferrable_ops.upstreams.machine.machine import Machine, MachineAddress
from deferrable_ops.upstreams.open_machine import use_machine
from deferrable_ops.upstreams.ssh import sockets
from deferrable_ops.upstreams.ssh.sockets import SocketDirectory
from deferrable_ops.upstreams.supervisord.client import Supervisord, SupervisordAddress, use_supervisord
from real_sshd import RealSshd

pytest.importorskip("supervisor.supervisord")

FORBIDDEN = {"AllowStreamLocalForwarding": "no"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def forbidding(sshd_server: RealSshd) -> Iterator[RealSshd]:
    """An sshd without forwarding, and with only as many sessions as necessary."""
    server = RealSshd(MaxSessions="3", **FORBIDDEN)
    server.start()
    yield server
    server.remove()


@pytest.fixture(params=["forwarded", "carried"])
def server(request: pytest.FixtureRequest) -> RealSshd:
    name = {"forwarded": "sshd_server", "carried": "forbidding"}[request.param]
    found: RealSshd = request.getfixturevalue(name)
    return found


@asynccontextmanager
async def reached(server: RealSshd, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    monkeypatch.setenv("AIRFLOW_CONN_WEB", server.connection())
    with tempfile.TemporaryDirectory() as temporary, monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", temporary)
        async with use_machine(MachineAddress(ssh_conn_id="web", command_timeout=60)) as machine:
            yield machine
        assert not list(Path(temporary).iterdir()), "a directory was left behind"


def configuration(folder: Path) -> SupervisorAirflowConfiguration:
    command = f"{sys.executable} -c 'import signal; signal.pause()'"
    return SupervisorAirflowConfiguration(
        working_dir=folder / "daemon", program={"test": {"command": command}}
    )


async def start(machine: Machine, config: SupervisorAirflowConfiguration) -> None:
    """Start a supervisord through the machine, as the steps do."""
    for directory in config.directories:
        await machine.make_directory(directory)
    await machine.write(config.config_path, config.to_cfg().encode())
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(config.config_path)]
    ended = await machine.run(command, timeout=60)
    assert ended.code == 0, ended.output


async def stop(machine: Machine, config: SupervisorAirflowConfiguration) -> None:
    pidfile = await machine.read(config.supervisord.pidfile)
    if pidfile:
        assert await machine.signal(int(pidfile), "TERM")
        async with asyncio.timeout(20):
            while await machine.command_of(int(pidfile)) is not None:
                await asyncio.sleep(0.05)


async def answer(client: Supervisord) -> str:
    """Return the state once supervisord answers."""
    async with asyncio.timeout(30):
        while True:
            try:
                return str((await client.call("supervisor.getState"))["statename"])
            except SupervisordUnavailable:
                await asyncio.sleep(0.05)


async def test_daemon_is_started_and_survives_a_lost_connection(
    server: RealSshd, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(folder)
    async with reached(server, monkeypatch) as machine:
        place = await machine.socket(config.socket_path)
        assert (place != config.socket_path, place == await machine.socket(config.socket_path)) == (
            True,
            True,
        )
        assert place.parent.stat().st_mode & 0o777 == 0o700
        async with use_supervisord(SupervisordAddress(socket=place)) as client:
            with pytest.raises(SupervisordUnavailable):
                await client.call("supervisor.getState")
            try:
                await start(machine, config)
                assert await answer(client) == "RUNNING"
                await client.call("supervisor.startProcess", "test:test", False)
                names = await asyncio.gather(*(name_of(client) for _ in range(40)))
                assert names == ["test"] * 40
                before = await pid(client)
                server.cut_connections()
                assert await answer(client) == "RUNNING"
                assert await pid(client) == before, "supervisord was not restarted"
                assert len(server.connections()) == 1
            finally:
                await stop(machine, config)
            with pytest.raises(SupervisordUnavailable):
                await client.call("supervisor.getState")
        assert await machine.status(config.socket_path) == [None]


async def name_of(client: Supervisord) -> str:
    (process,) = await client.processes()
    return str(process["name"])


async def pid(client: Supervisord) -> int:
    return int(await client.call("supervisor.getPID"))


@asynccontextmanager
async def echoing(path: Path) -> AsyncIterator[list[int]]:
    """Run an echo server; yield the number of its connections."""
    talking = [0]

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talking[0] += 1
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()
        talking[0] -= 1

    async with await asyncio.start_unix_server(echo, path):
        yield talking


async def test_any_bytes_arrive_and_ends_are_forwarded(
    server: RealSshd, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sent = folder / "echo.sock", bytes(range(256)) * 4096
    async with reached(server, monkeypatch) as machine, echoing(path) as talking:
        place = await machine.socket(path)

        async def talk() -> bytes:
            reader, writer = await asyncio.open_unix_connection(place)
            writer.write(sent)
            writer.write_eof()
            received = await reader.read()
            writer.close()
            return received

        assert await asyncio.gather(*(talk() for _ in range(8))) == [sent] * 8
        reader, writer = await asyncio.open_unix_connection(place)
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        assert talking == [1]
        writer.close()
        await until(lambda: talking == [0])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


async def test_program_that_carries_ends_with_the_connection(
    forbidding: RealSshd, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "echo.sock"
    async with reached(forbidding, monkeypatch) as machine, echoing(path):
        place = await machine.socket(path)
        reader, writer = await asyncio.open_unix_connection(place)
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        assert len(bridges()) == 1
        # One that is killed is started again for the next.
        os.kill(bridges()[0], signal.SIGKILL)
        assert await reader.read() == b""
        writer.close()
        reader, writer = await asyncio.open_unix_connection(place)
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        writer.close()
    await until(lambda: not bridges())


async def test_socket_that_nobody_listens_on_breaks_no_other(
    server: RealSshd, forbidding: RealSshd, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, left = folder / "echo.sock", folder / "left.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left))
    async with reached(server, monkeypatch) as machine, echoing(path):
        reader, writer = await asyncio.open_unix_connection(await machine.socket(path))
        for _ in range(2):
            writer.write(b"x")
            assert await reader.read(1) == b"x"
            nobody, to_nobody = await asyncio.open_unix_connection(await machine.socket(left))
            assert await nobody.read() == b""
            to_nobody.close()
        if server is not forbidding:
            await until(lambda: not bridges())
        writer.close()
    await until(lambda: not bridges())


def bridges() -> list[int]:
    found = subprocess.run(
        ["pgrep", "-f", "deferrable-ops carries from here"], capture_output=True, check=False
    )
    return [int(pid) for pid in found.stdout.split() if int(pid) != os.getpid()]


async def test_program_that_carries_runs_nothing_of_the_directory_that_it_starts_in(
    forbidding: RealSshd, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, theirs = folder / "echo.sock", folder / "theirs"
    theirs.mkdir()
    for name in ("os", "select", "socket", "struct"):
        (theirs / f"{name}.py").write_text(f"open({str(folder / 'was run')!r}, 'w')")
    monkeypatch.setenv("AIRFLOW_CONN_WEB", forbidding.connection())
    where = MachineAddress(ssh_conn_id="web", command_prefix=f"cd {theirs}; export PYTHONPATH={theirs}")
    async with use_machine(where) as machine, echoing(path):
        reader, writer = await asyncio.open_unix_connection(await machine.socket(path))
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        writer.close()
    assert not (folder / "was run").exists()
    await until(lambda: not bridges())


async def test_machine_without_python_is_reported_once(
    forbidding: RealSshd, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "echo.sock"
    monkeypatch.setenv("AIRFLOW_CONN_WEB", forbidding.connection())
    where = MachineAddress(ssh_conn_id="web", environment=(("PATH", "/nowhere"),))
    async with use_machine(where) as machine, echoing(path):
        reader, writer = await asyncio.open_unix_connection(await machine.socket(path))
        assert await reader.read() == b""
        writer.close()
        reader, writer = await asyncio.open_unix_connection(await machine.socket(path))
        assert await reader.read() == b""
        writer.close()
    assert caplog.text.count(f"cannot connect to {path}: sshd does not forward sockets") == 1


async def test_connection_is_closed_when_the_other_end_is_lost(
    server: RealSshd, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "echo.sock"
    async with reached(server, monkeypatch) as machine, echoing(path):
        reader, writer = await asyncio.open_unix_connection(await machine.socket(path))
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        server.cut_connections()
        assert await reader.read() == b"", "nobody waits for an answer that cannot come"
        writer.close()


def test_directory_of_a_killed_process_is_removed_and_that_of_a_living_one_stays(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    code = (
        "import tempfile, sys; tempfile.tempdir = sys.argv[1]\n"
        "from deferrable_ops.upstreams.ssh.sockets import SocketDirectory\n"
        "found = SocketDirectory(); print(found.path, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=-1, stdout=-1)
    assert other.stdout is not None
    theirs = Path(other.stdout.readline().decode().strip())
    (theirs / "0.sock").touch()
    first = SocketDirectory()
    assert (theirs.exists(), first.path.exists()) == (True, True)
    other.kill()
    other.wait()
    second = SocketDirectory()
    assert (theirs.exists(), first.path.exists(), second.path.exists()) == (False, True, True)
    first.remove()
    second.remove()
    assert not list(folder.iterdir())


def test_temporary_directory_that_is_too_long_for_a_socket_is_refused(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    deep = folder / ("d" * 80)
    deep.mkdir()
    monkeypatch.setattr(sockets.tempfile, "tempdir", str(deep))
    with pytest.raises(ConfigurationError, match="set TMPDIR"):
        SocketDirectory()
    assert not list(deep.iterdir())
