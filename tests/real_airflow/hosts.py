"""Hosts of an Airflow under test: network namespaces on one bridge, each with an address and a hostname of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass


class HostsMissing(Exception):
    """This machine allows no network namespaces; the message says why."""


@dataclass(frozen=True)
class Host:
    """A host. A process whose command begins with `prefix` runs on it."""

    name: str
    address: str
    _namespace: str

    @property
    def prefix(self) -> list[str]:
        """The command that replaces itself by the command after it, on this host."""
        named = f'hostname {self.name}; exec "$@"'
        return ["ip", "netns", "exec", self._namespace, "unshare", "--uts", "sh", "-c", named, self.name]


class Hosts:
    """Hosts that reach each other and this process, which has `address`.

    :raises HostsMissing: if this machine allows no network namespaces.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise HostsMissing("network namespaces need root and the command `ip` (iproute2)")
        number = os.getpid()
        self._bridge = f"hosts{number}"
        self._network = f"10.213.{number % 250}"
        self.address = f"{self._network}.1"
        self._hosts: list[Host] = []
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
        except subprocess.CalledProcessError as error:
            raise HostsMissing(f"this machine allows no network namespaces: {error.stderr}") from None
        _ip("address", "add", f"{self.address}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")

    def add(self, name: str) -> Host:
        """Add a host."""
        number = len(self._hosts) + 2
        namespace = f"{self._bridge}-{number}"
        host, link = Host(name, f"{self._network}.{number}", namespace), f"h{number}-{os.getpid()}"
        _ip("netns", "add", namespace)
        self._hosts.append(host)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", link, "master", self._bridge, "up")
        _ip("-n", namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", namespace, "link", "set", device, "up")
        return host

    def remove(self) -> None:
        """Remove the hosts and the bridge. Their processes have ended."""
        for host in self._hosts:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", host._namespace)
        _ip("link", "delete", self._bridge)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
