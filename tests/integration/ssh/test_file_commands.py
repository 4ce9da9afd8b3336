"""Files over SSH need only the command channel: not SFTP, no silent shell, and only tools that busybox has too."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from integration.supervisor.support import BEGIN, END, SLEEP, Place

from deferrable_ops.exceptions import MachineRefused, MachineUnavailable
from deferrable_ops.supervisord import SupervisorSSHAirflowConfiguration
from deferrable_ops.upstreams.machine.machine import FileStatus, Machine, MachineAddress
from deferrable_ops.upstreams.open_machine import use_machine
from real_sshd import RealSshd

SFTP_SERVERS = (
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
)
SFTP_SERVER = next(filter(os.path.exists, SFTP_SERVERS), SFTP_SERVERS[0])
# The programs that docs/supervisor.md requires of a machine.
TOOLS = (
    *(
        "cat",
        "dd",
        "df",
        "env",
        "find",
        "flock",
        "grep",
        "head",
        "id",
        "kill",
        "ls",
        "mkdir",
        "mv",
        "rm",
        "rmdir",
        "sh",
        "stat",
    ),
    *("sync", "tail", "tr", "uname", "wc"),
)


def busybox(folder: Path) -> Path:
    """Return a directory with the tools of busybox, and no others."""
    found = shutil.which("busybox")
    assert found is not None, "install busybox: scripts/test does it on Debian"
    applets = subprocess.run([found, "--list"], capture_output=True, text=True, check=True).stdout.split()
    folder.mkdir()
    for tool in TOOLS:
        # Debian builds busybox without flock.
        (folder / tool).symlink_to(found if tool in applets else shutil.which(tool) or "missing")
    return folder


def noisy_home(folder: Path) -> Path:
    """Return a home directory whose shell prints a text, on both outputs, before each command."""
    folder.mkdir()
    (folder / ".bashrc").write_text("echo 'Welcome to the machine'; echo 'stty: not a tty' >&2\n")
    return folder


SERVERS = {
    "external sftp-server, noisy shell": lambda folder: {
        "Subsystem": f"sftp {SFTP_SERVER}",
        "SetEnv": f"HOME={noisy_home(folder / 'home')}",
    },
    "no sftp": lambda folder: {"Subsystem": "other internal-sftp", "SetEnv": f"HOME={folder}"},
    "busybox tools": lambda folder: {
        "Subsystem": "other internal-sftp",
        "SetEnv": f"PATH={busybox(folder / 'tools')} HOME={folder}",
    },
}


@pytest.fixture(params=SERVERS)
def server(request: Any, sshd_server: RealSshd, tmp_path: Path, monkeypatch: Any) -> Iterator[RealSshd]:
    server = RealSshd(**SERVERS[request.param](tmp_path))
    server.start()
    monkeypatch.setenv("AIRFLOW_CONN_WEB", server.connection())
    yield server
    server.remove()


@asynccontextmanager
async def machine_of(**where: Any) -> AsyncIterator[Machine]:
    async with use_machine(MachineAddress(ssh_conn_id="web", **where)) as machine:
        yield machine


async def test_files_are_read_and_written(server: RealSshd, tmp_path: Path) -> None:
    folder, data = tmp_path / "made" / "it's $x", bytes(range(256)) * 1000
    file, missing = folder / "-file", folder / "missing"
    async with machine_of() as machine:
        await machine.make_directory(folder)
        assert await machine.check_directory(folder)
        assert not await machine.check_directory(folder / "no")
        await machine.write(file, data)
        assert file.read_bytes() == data
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert [path.name for path in folder.iterdir()] == ["-file"]
        assert await machine.read(file) == data
        for offset, length in (
            (0, 0),
            (0, 1),
            (4095, 2),
            (4096, 4096),
            (5000, None),
            (255_999, 10),
            (10**6, 5),
        ):
            end = None if length is None else offset + length
            assert await machine.read(file, offset, length) == data[offset:end], (offset, length)
        assert await machine.read(missing) is None
        assert await machine.read(file / "below") is None
        found = file.stat()
        assert await machine.status(file, missing, folder) == [
            FileStatus(len(data), found.st_ino, float(int(found.st_mtime))),
            None,
            FileStatus(
                folder.stat().st_size, folder.stat().st_ino, float(int(folder.stat().st_mtime)), False
            ),
        ]
        assert None not in await machine.free_space(folder, file)
        assert await machine.command_of(os.getpid()) == tuple(
            Path("/proc/self/cmdline").read_text().removesuffix("\0").split("\0")
        )
        await machine.remove(folder)
        assert not folder.exists()


async def test_steps_run_and_leave_nothing(server: RealSshd, place: Place) -> None:
    python = Path(sys.executable).parent
    cfg = SupervisorSSHAirflowConfiguration(
        working_dir=place.folder / "s",
        program={"a": {"command": SLEEP}},
        startsecs=0,
        ssh_conn_id="web",
        command_prefix=f"export PATH=$PATH:{shlex.quote(str(python))}",
    )
    result = await place.run_steps(cfg, *BEGIN)
    assert place.processes() == [result["programs"]["a:a"]["pid"]]
    result = await place.run_steps(cfg, "force-kill")
    assert len(result["killed"]) == 2
    await place.run_steps(cfg, *BEGIN, *END)
    assert (place.daemons(), place.processes()) == ([], [])
    assert list(place.folder.iterdir()) == []


async def test_full_disk_is_named(
    sshd_server: RealSshd, monkeypatch: pytest.MonkeyPatch, small_disk: Path
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WEB", sshd_server.connection())
    async with machine_of() as machine:
        await machine.write(small_disk / "file", b"old")
        with pytest.raises(MachineUnavailable, match="No space left on device"):
            await machine.write(small_disk / "file", b"x" * 2**23)
    assert [(path.name, path.read_bytes()) for path in small_disk.iterdir()] == [("file", b"old")]


async def test_missing_tool_is_named(
    sshd_server: RealSshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tools = busybox(tmp_path / "tools")
    (tools / "stat").unlink()
    # Some builds of busybox run their own programs even if these are not in PATH.
    (tools / "sh").unlink()
    (tools / "sh").symlink_to("/bin/sh")
    server = RealSshd(SetEnv=f"PATH={tools} HOME={tmp_path}")
    server.start()
    monkeypatch.setenv("AIRFLOW_CONN_WEB", server.connection())
    try:
        async with machine_of() as machine:
            with pytest.raises(
                MachineRefused, match=r"the program stat is missing on .*; install coreutils or busybox"
            ):
                await machine.status(tmp_path)
            with pytest.raises(MachineRefused, match="the program stat is missing on"):
                await machine.check_directory(tmp_path / "made")
    finally:
        server.remove()
