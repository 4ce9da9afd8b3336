"""SSH failures: host keys that are not verified, rejected logins, and lost connections."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from deferrable_ops.exceptions import ConfigurationError, MachineRefused, MachineUnavailable
from deferrable_ops.upstreams.connection_extra import read_connection
from deferrable_ops.upstreams.machine.machine import CommandResult, Machine, MachineAddress
from deferrable_ops.upstreams.open_machine import use_machine
from deferrable_ops.upstreams.ssh import login as ssh_login
from deferrable_ops.upstreams.ssh.connection import SshSettings, ssh_settings
from deferrable_ops.upstreams.ssh.link import Link
from deferrable_ops.upstreams.ssh.machine import SshMachine
from real_sshd import RealSshd

PASSWORD = "correct horse battery"


@pytest.fixture
def own_server(sshd_server: RealSshd) -> Iterator[type[RealSshd]]:
    """Return a function that starts servers with the given settings."""
    made = []

    def make(**settings: str) -> RealSshd:
        made.append(RealSshd(**settings))
        made[-1].start()
        return made[-1]

    yield make  # type: ignore[misc]
    for server in made:
        server.remove()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that opens a machine for an Airflow connection in JSON."""

    @asynccontextmanager
    async def connected(connection: str, **where: Any) -> AsyncIterator[Machine]:
        monkeypatch.setenv("AIRFLOW_CONN_WEB", connection)
        async with use_machine(MachineAddress(ssh_conn_id="web", **where)) as machine:
            yield machine

    return connected


@asynccontextmanager
async def keeping_alive(seconds: float) -> AsyncIterator[Machine]:
    """Open the machine of the connection `web`, with this time between two keepalive messages."""

    async def load() -> SshSettings:
        return ssh_settings(*await read_connection("web"))

    link = Link(await load(), load, keepalive_interval=seconds)
    until_closed = AsyncExitStack()
    until_closed.push_async_callback(link.close)
    machine = SshMachine(MachineAddress(ssh_conn_id="web"), link, until_closed)
    try:
        yield machine
    finally:
        await machine.close()


async def refused(machine: Machine) -> str:
    with pytest.raises(MachineRefused) as error:
        await machine.run(["true"], timeout=20)
    return str(error.value)


async def works(machine: Machine) -> None:
    assert await machine.run(["echo", "here"], timeout=30) == CommandResult(0, "here\n")


async def test_other_host_key_is_refused(
    sshd_server: RealSshd, connect: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    hosts = tmp_path / "hosts"
    hosts.write_text(f"[127.0.0.1]:{sshd_server.port} {other}\n")
    monkeypatch.setattr(ssh_login, "KNOWN_HOSTS", (str(tmp_path / "none"),))
    logins = sshd_server.logins()
    for how in ({"host_key": other}, {"host_key": None, "known_hosts": str(hosts)}, {"host_key": None}):
        async with connect(sshd_server.connection(**how)) as machine:
            said = await refused(machine)
            assert (
                f"the host key of {sshd_server.user}@127.0.0.1:{sshd_server.port} could not be verified with"
                in said
            )
            assert "add it to the extra of the connection 'web' as host_key" in said
    assert sshd_server.logins() == logins


async def test_host_key_comes_from_a_file_or_is_not_verified(
    sshd_server: RealSshd, connect: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(f"# comment\n[127.0.0.1]:{sshd_server.port} {sshd_server.host_key}\n")
    async with connect(sshd_server.connection(host_key=None, known_hosts=str(hosts))) as machine:
        await works(machine)
    monkeypatch.setattr(ssh_login, "KNOWN_HOSTS", (str(hosts), str(tmp_path / "none")))
    async with connect(sshd_server.connection(host_key=None)) as machine:
        await works(machine)
    assert "no_host_key_check" not in caplog.text
    async with connect(sshd_server.connection(host_key=None, no_host_key_check="true")) as machine:
        await works(machine)
    assert "is not verified, because its connection has no_host_key_check" in caplog.text


async def test_refused_login_shows_no_secret(
    sshd_server: RealSshd, connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    key = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    for connection in (sshd_server.connection(password=PASSWORD), sshd_server.connection(private_key=key)):
        async with connect(connection) as machine:
            said = await refused(machine)
            assert "rejected the login" in said
            assert "Check the login and the key or password of the connection 'web'" in said
            for secret in (PASSWORD, key.splitlines()[2]):
                assert secret not in said + repr(machine.__dict__) + repr(vars(machine)["_link"].__dict__)
                assert secret not in caplog.text


async def test_key_is_read_from_a_file_with_its_passphrase(
    sshd_server: RealSshd, connect: Any, tmp_path: Path
) -> None:
    key, path = asyncssh.import_private_key(sshd_server.private_key), tmp_path / "id"
    path.write_bytes(key.export_private_key("pkcs8-pem", passphrase=PASSWORD))
    by_file = {"private_key": None, "key_file": str(path)}
    async with connect(sshd_server.connection(private_key_passphrase=PASSWORD, **by_file)) as machine:
        await works(machine)
    async with connect(
        sshd_server.connection(private_key=path.read_text(), private_key_passphrase=PASSWORD)
    ) as machine:
        await works(machine)
    for wrong in ({"private_key_passphrase": "hush"}, {}, {"key_file": str(tmp_path / "none")}):
        async with connect(sshd_server.connection(**by_file | wrong)) as machine:
            with pytest.raises(ConfigurationError, match="the connection 'web' cannot be used") as error:
                await machine.run(["true"], timeout=20)
            assert "hush" not in str(error.value)


@asynccontextmanager
async def running(machine: Machine, folder: Path) -> AsyncIterator[asyncio.Task[CommandResult]]:
    """Run a command until the block is left."""
    begun, over = folder / "begun", folder / "over"
    script = f"touch {begun}; while ! [ -e {over} ]; do sleep 0.05; done"
    task = asyncio.create_task(machine.run(["sh", "-c", script], timeout=60))
    async with asyncio.timeout(20):
        while not begun.exists():
            await asyncio.sleep(0.02)
    try:
        yield task
    finally:
        over.touch()


async def test_lost_connection_fails_the_command_and_the_next_reconnects(
    sshd_server: RealSshd, connect: Any, tmp_path: Path
) -> None:
    async with connect(sshd_server.connection()) as machine:
        await reads_files(machine)
        logins = sshd_server.logins()
        async with running(machine, tmp_path) as waiting:
            sshd_server.cut_connections()
            with pytest.raises(MachineUnavailable, match=r"the connection to .* was lost"):
                await waiting
        await asyncio.gather(works(machine), reads_files(machine))
        assert sshd_server.logins() == logins + 1


async def reads_files(machine: Machine) -> None:
    assert (await machine.status(Path("/tmp")))[0] is not None


async def test_unreachable_machine_is_retried(own_server: Any, connect: Any) -> None:
    server = own_server()
    connection = server.connection()
    async with connect(connection) as machine:
        await works(machine)
        server.stop()
        for _ in range(2):
            with pytest.raises(MachineUnavailable, match=r"cannot be reached: Connect call failed|was lost"):
                await machine.status(Path("/tmp"))
        server.start()
        await works(machine)


async def test_silent_loss_of_the_peer_is_detected(
    sshd_server: RealSshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WEB", sshd_server.connection())
    async with keeping_alive(0.3) as machine:
        await works(machine)
        with paused(sshd_server):
            with pytest.raises(MachineUnavailable, match="was lost"):
                await machine.run(["true"], timeout=60)
            await works(machine)


async def test_silent_server_times_out(sshd_server: RealSshd, connect: Any, unused_tcp_port: int) -> None:
    with socket.create_server(("127.0.0.1", unused_tcp_port)):
        connection = sshd_server.connection().replace(str(sshd_server.port), str(unused_tcp_port))
        async with connect(connection, connect_timeout=0.5) as machine:
            with pytest.raises(MachineUnavailable, match=r"login to .* took longer than 0\.5 s"):
                await machine.run(["true"], timeout=20)


async def test_pipe_is_refused_and_a_blocked_script_is_given_up(
    sshd_server: RealSshd, connect: Any, tmp_path: Path
) -> None:
    pipe, file = tmp_path / "pipe", tmp_path / "file"
    os.mkfifo(pipe)
    file.write_text("text")
    async with connect(sshd_server.connection(), command_timeout=2) as machine:
        (status,) = await machine.status(pipe)
        assert not status.is_regular
        with pytest.raises(MachineRefused, match="is not a regular file"):
            await machine.read(pipe)
        # Such a script blocks as a read from a file system that does not answer.
        blocked = machine._run_script(f"cat {pipe}", about="reading")
        async with asyncio.timeout(15):
            late, *_ = await asyncio.gather(blocked, machine.read(file), return_exceptions=True)
            assert isinstance(late, MachineUnavailable)
            assert "reading took longer than 2 s" in str(late)
            assert await machine.read(file) == b"text"
    os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))  # unblock cat


async def test_one_session_is_enough_for_all(own_server: Any, connect: Any) -> None:
    server = own_server(MaxSessions="1")
    async with connect(server.connection()) as machine:
        await asyncio.gather(*(use(machine) for use in (works, reads_files) * 3))
        assert "no more sessions" in server.log(), "the limit was not reached"
    assert server.logins() == 1


async def test_command_without_a_free_session_times_out(
    own_server: Any, connect: Any, tmp_path: Path
) -> None:
    async with connect(own_server(MaxSessions="1").connection()) as machine:
        async with running(machine, tmp_path) as holding:
            with pytest.raises(MachineUnavailable, match=r"true took longer than 0\.5 s"):
                await machine.run(["true"], timeout=0.5)
        assert (await holding).code == 0


async def test_cancelled_command_frees_its_session_and_does_not_run(
    own_server: Any, connect: Any, tmp_path: Path
) -> None:
    server = own_server(MaxSessions="1")
    async with connect(server.connection()) as machine:
        await works(machine)
        channels = (await machine._link.connection())._channels
        async with asyncio.timeout(20):
            while channels:
                await asyncio.sleep(0.01)
        with paused(server):
            # The server confirms the session after the command was cancelled.
            broken_off = asyncio.create_task(machine.run(["touch", str(tmp_path / "ran")], timeout=20))
            while not channels:
                await asyncio.sleep(0)
            broken_off.cancel()
            await asyncio.wait([broken_off])
        await works(machine)
        assert server.logins() == 1
        assert not (tmp_path / "ran").exists()


@contextmanager
def paused(server: RealSshd) -> Iterator[None]:
    """Suspend the server's connections, as if the machine had lost its power."""
    processes = [
        process
        for connection in server.connections()
        for process in (connection, *connection.children(recursive=True))
        if process.name() == "sshd"
    ]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


async def test_dropped_connection_is_retried(own_server: Any, connect: Any) -> None:
    server = own_server(MaxStartups="1", LoginGraceTime="60")
    # While another client is logging in, the server drops all other connections.
    with socket.create_connection(("127.0.0.1", server.port)) as other:
        assert other.recv(3) == b"SSH"
        async with connect(server.connection()) as machine:
            with pytest.raises(MachineUnavailable, match="closed the connection"):
                await machine.run(["true"], timeout=20)
    async with asyncio.timeout(10):
        while server.connections():
            await asyncio.sleep(0.05)
    async with connect(server.connection()) as machine:
        await works(machine)
    assert server.log().count("drop connection") >= 3


async def test_changed_settings_are_used_for_the_next_connection(
    sshd_server: RealSshd, connect: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with connect(sshd_server.connection(password=PASSWORD)) as machine:
        await refused(machine)
        monkeypatch.setenv("AIRFLOW_CONN_WEB", sshd_server.connection())
        await works(machine)
        monkeypatch.delenv("AIRFLOW_CONN_WEB")
        logins = sshd_server.logins()
        async with until_lost(machine):
            sshd_server.cut_connections()
        await works(machine)
        assert sshd_server.logins() == logins + 1
        assert "continuing with the previous settings of the connection" in caplog.text


@asynccontextmanager
async def until_lost(machine: Machine) -> AsyncIterator[None]:
    """Wait at the end of the block until the loss of the connection is detected."""
    connection = await machine._link.connection()  # type: ignore[attr-defined]
    yield
    async with asyncio.timeout(10):
        await connection.wait_closed()


async def test_remote_host_replaces_the_connections(sshd_server: RealSshd, connect: Any) -> None:
    connection = sshd_server.connection().replace("127.0.0.1", "nowhere.invalid")
    async with connect(connection) as machine:
        with pytest.raises(MachineUnavailable, match=r"nowhere\.invalid:\d+ cannot be reached"):
            await machine.run(["true"], timeout=20)
    async with connect(connection, remote_host="127.0.0.1") as machine:
        await works(machine)


async def test_machine_is_reached_through_a_proxy_command(sshd_server: RealSshd, connect: Any) -> None:
    connection = sshd_server.connection(host_proxy_cmd=sshd_server.on_a_pipe)
    async with connect(connection, remote_host="behind.invalid") as machine:
        assert machine.name == f"{sshd_server.user}@behind.invalid:{sshd_server.port}"
        await asyncio.gather(works(machine), reads_files(machine))
        assert sshd_server.connections() == []
    async with connect(sshd_server.connection(host_proxy_cmd="false hush")) as machine:
        with pytest.raises(MachineUnavailable, match=r"closed the connection|cannot be reached") as error:
            await machine.run(["true"], timeout=20)
        assert "hush" not in str(error.value)
    async with connect(sshd_server.connection(host_proxy_cmd="/no/such hush")) as machine:
        with pytest.raises(MachineUnavailable, match="cannot be reached") as error:
            await machine.run(["true"], timeout=20)
        assert "hush" not in str(error.value)
