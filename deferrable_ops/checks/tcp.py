"""Checks that a TCP port accepts connections."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

from deferrable_ops.checks.base import ReadyCheck, require_seconds, require_text
from deferrable_ops.exceptions import InputError
from deferrable_ops.plain_data import is_known_later


@dataclass
class TcpCheck(ReadyCheck):
    """A check that passes if a TCP connection to the port can be opened. The check sends no data.

    :param host: the host name or IP address to which the check connects.
    :param port: the TCP port to which the check connects: a number from 1 to 65535, or a template that renders to such
        a number.
    :param timeout: timeout in seconds. If the connection is not open by then, the result is ``Result.FAIL``.
    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """

    host: str
    port: int | str
    timeout: float = field(default=10.0, kw_only=True)

    def __post_init__(self) -> None:
        """Validate the arguments of the check."""
        super().__post_init__()
        require_text("host", self.host)
        require_seconds("timeout", self.timeout)
        if is_known_later(self.port):
            return
        try:
            number = int(self.port)
        except (TypeError, ValueError):
            number = 0
        if isinstance(self.port, (bool, float)) or not 0 < number < 65_536:
            raise InputError(f"port={self.port!r} must be a port number from 1 to 65535")

    async def failure_reason(self) -> str | None:
        """Open a connection to the port, and close the connection.

        Return the reason if the check fails, or None if the check passes.
        """
        try:
            async with asyncio.timeout(self.timeout):
                _, writer = await asyncio.open_connection(self.host, int(self.port))
        except TimeoutError:
            return f"{self.host}:{self.port} did not answer within {self.timeout:g} s"
        except OSError as error:
            return f"{self.host}:{self.port} could not be reached: {error}"
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return None
