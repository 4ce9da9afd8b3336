"""A throwaway Postgres server, started from the binaries that the machine has."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from real_airflow.ports import LOOPBACK, free_port

_numbers = itertools.count(1)


class PostgresMissing(Exception):
    """No Postgres server can be started on this machine; the message says why."""


class Postgres:
    """One server with its own data folder, which it removes at the end.

    :param settings: server settings beyond the defaults, for example `{"fsync": "off"}`.
    :param address: where it listens. Everybody in the network of this address may connect.
    :raises PostgresMissing: when the binaries, or as root a user `postgres`, are not there.
    """

    def __init__(self, settings: dict[str, str] | None = None, address: str = LOOPBACK) -> None:
        self._binaries = _find_binaries()
        self._user = _server_user()
        self._settings = settings or {}
        self.address = address
        self.port = free_port(address)
        # Not in pytest's folder: the server's user may not pass through it.
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._data = self._folder / "data"
        if os.geteuid() == 0:
            shutil.chown(self._folder, self._user)
        self._run(
            "initdb",
            "--auth=trust",
            f"--username={self._user}",
            "--encoding=UTF8",
            "--no-sync",
            "-D",
            self._data,
        )
        with (self._data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {address}/24 trust\n")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = {
            "listen_addresses": self.address,
            "port": str(self.port),
            "unix_socket_directories": str(self._folder),
            "max_connections": "300",
            **self._settings,
        }
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        self._control("start", "-w", "-l", str(self._folder / "log"), "-o", options)

    def stop(self) -> None:
        """Stop the server as an operator would: connections are closed, the data is written."""
        self._control("stop", "-w", "-m", "fast")

    def crash(self) -> None:
        """Stop the server without any shutdown: the next start recovers from the log."""
        self._control("stop", "-w", "-m", "immediate")

    def remove(self) -> None:
        """Stop the server, if it runs, and remove its data."""
        if (self._data / "postmaster.pid").exists():
            self.crash()
        shutil.rmtree(self._folder, ignore_errors=True)

    def create_database(self, name: str, driver: str) -> str:
        """Create a database and return its SQLAlchemy address.

        :param name: the first part of its name; a number makes it unique.
        :param driver: `psycopg2` or `asyncpg`.
        """
        name = f"{name}_{next(_numbers)}"
        self._run("createdb", "-h", self._folder, "-p", str(self.port), "-U", self._user, name)
        return f"postgresql+{driver}://{self._user}@{self.address}:{self.port}/{name}"

    def copy_database(self, url: str, name: str) -> str:
        """Copy a database, which may be in use, to a new one, and return the new one's SQLAlchemy address."""
        copy = self.create_database(name, driver=url.partition("://")[0].partition("+")[2])
        where = ["-h", str(self._folder), "-p", str(self.port), "-U", self._user]
        file = self._folder / f"{name}.sql"
        self._run("pg_dump", *where, "-f", str(file), url.rpartition("/")[2])
        self._run("psql", *where, "-q", "-v", "ON_ERROR_STOP=1", "-f", str(file), copy.rpartition("/")[2])
        return copy

    @contextmanager
    def password_required(self, user: str) -> Iterator[None]:
        """Ask this user for a password meanwhile."""
        rules = self._data / "pg_hba.conf"
        before = rules.read_text()
        rules.write_text(f"host all {user} {self.address}/24 scram-sha-256\n{before}")
        self._control("reload")
        try:
            yield
        finally:
            rules.write_text(before)
            self._control("reload")

    def log(self) -> str:
        """Return what the server wrote."""
        return (self._folder / "log").read_text()

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", self._data, *arguments)

    def _run(self, program: str, *arguments: str | Path) -> None:
        as_user = ["setpriv", f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups"]
        command = [*(as_user if os.geteuid() == 0 else []), self._binaries / program, *arguments]
        # To a file and not to a pipe: the server inherits it and would keep the pipe open.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(command, stdout=output, stderr=output, cwd=self._folder, check=False)
            output.seek(0)
            assert done.returncode == 0, f"{program} failed: {output.read()}"


def _find_binaries() -> Path:
    found = [Path(path).resolve().parent for path in [shutil.which("initdb")] if path]
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found += [path.parent for path in reversed(debian)]
    if not found:
        raise PostgresMissing("no Postgres server binaries (initdb, pg_ctl) on this machine")
    return found[0]


def _server_user() -> str:
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        raise PostgresMissing("Postgres refuses to run as root, and there is no user `postgres`") from None
