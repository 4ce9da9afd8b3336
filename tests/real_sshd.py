"""A throwaway OpenSSH server on loopback, into which only its own key leads, as the user who runs the tests."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncssh
import psutil

from real_airflow.ports import free_port
from real_airflow.waiting import wait_until

_PRIVILEGE_SEPARATION = Path("/run/sshd")


class SshdMissing(Exception):
    """No sshd can be started on this machine; the message says why."""


class RealSshd:
    """One server with its own keys, which it removes at the end.

    :param settings: of `sshd_config`, beyond those here or instead of them: `MaxSessions="2"`.
    :raises SshdMissing: when the binary is not there.

    `host_key` is its public key as a connection's extra has it; `private_key` is the one that it lets in.
    """

    def __init__(self, **settings: str) -> None:
        self._binary = _find_binary()
        self.user = getpass.getuser()
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="sshd-"))
        self._log = self._folder / "log"
        self._process: psutil.Popen | None = None
        ours = asyncssh.generate_private_key("ssh-ed25519")
        self.private_key: str = ours.export_private_key().decode()
        (self._folder / "authorized_keys").write_bytes(ours.export_public_key())
        self.host_key = ""
        self.change_host_key()
        self._settings = {
            "Port": str(self.port),
            "ListenAddress": "127.0.0.1",
            "HostKey": str(self._folder / "host_key"),
            "AuthorizedKeysFile": str(self._folder / "authorized_keys"),
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PermitRootLogin": "yes",
            "PasswordAuthentication": "yes",
            "Subsystem": "sftp internal-sftp",
            "LogLevel": "VERBOSE",
            **settings,
        }

    def change_host_key(self) -> None:
        """Have another host key from the next start on."""
        key = asyncssh.generate_private_key("ssh-ed25519")
        with open(
            self._folder / "host_key", "wb", opener=lambda path, flags: os.open(path, flags, 0o600)
        ) as file:
            file.write(key.export_private_key())
        self.host_key = " ".join(key.export_public_key().decode().split()[:2])

    def start(self) -> None:
        """Start the server and wait until it answers."""
        if os.geteuid() == 0:
            _PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        config = self._folder / "sshd_config"
        config.write_text("".join(f"{name} {value}\n" for name, value in self._settings.items()))
        begin = len(self.log())
        self._process = process = psutil.Popen(
            [self._binary, "-D", "-f", config, "-E", self._log], stdin=subprocess.DEVNULL
        )

        def listens() -> bool:
            assert process.poll() is None, f"sshd has ended: {self.log()}"
            return "Server listening" in self.log()[begin:]

        wait_until(listens, "sshd to listen", 10, every=0.01)

    def stop(self) -> None:
        """Stop the server and its connections; what was started through them goes on."""
        if self._process is None:
            return
        connections = self.connections()
        self._process.kill()
        self._process.wait()
        self._process = None
        for connection in connections:
            _kill(connection)

    def remove(self) -> None:
        """Stop the server and remove its files."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def on_a_pipe(self) -> str:
        """A command that is one connection to the server, over its standard input and output."""
        return f"{self._binary} -i -f {self._folder / 'sshd_config'} -E {self._log}"

    def connections(self) -> list[psutil.Process]:
        """Return the processes of its connections, one for each."""
        assert self._process is not None
        return list(self._process.children())

    def cut_connections(self) -> None:
        """End all connections without a word to anybody."""
        for connection in self.connections():
            _kill(connection)

    def logins(self) -> int:
        """Return how often it has let somebody in."""
        return sum(self.log().count(f"Accepted {how} for ") for how in ("publickey", "password"))

    def log(self) -> str:
        """Return what the server wrote."""
        return self._log.read_text() if self._log.exists() else ""

    def connection(self, *, password: str | None = None, **extra: Any) -> str:
        """Return an Airflow connection to it, as JSON for the variable AIRFLOW_CONN_NAME.

        :param password: instead of the key.
        :param extra: instead of what leads in; None leaves one out.
        """
        key = {} if password else {"private_key": self.private_key}
        extra = {"host_key": self.host_key, **key, **extra}
        return json.dumps(
            {
                "conn_type": "ssh",
                "host": "127.0.0.1",
                "port": self.port,
                "login": self.user,
                "password": password,
                "extra": {name: value for name, value in extra.items() if value is not None},
            }
        )


def _kill(process: psutil.Process) -> None:
    found = [process]
    with suppress(psutil.NoSuchProcess):  # a refused connection ends by itself
        found += process.children(recursive=True)
    for one in found:
        with suppress(psutil.NoSuchProcess):
            if one is process or one.name() == "sshd":
                one.kill()
                psutil.wait_procs([one], timeout=5)


def _find_binary() -> str:
    # An absolute path: sshd starts itself again for each connection.
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise SshdMissing("no OpenSSH server (sshd) on this machine")
    return found
