"""Opens a machine: this host, or another host over SSH."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from deferrable_ops.upstreams.machine.machine import Machine, MachineAddress


def use_machine(address: MachineAddress) -> AbstractAsyncContextManager[Machine]:
    """Return a context manager for a machine. The machine is connected on first use.

    :raises ConfigurationError: the Airflow connection is missing or malformed, or asyncssh is not installed. Entering
        the context manager raises this error.
    """
    if address.ssh_conn_id is None:
        from deferrable_ops.upstreams.machine.local import use_this_host

        return use_this_host()
    from deferrable_ops.upstreams.ssh.machine import use_remote_host

    return use_remote_host(address)
