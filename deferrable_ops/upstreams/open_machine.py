"""Opens the machine on which a supervisord runs: the local host, or another host over SSH."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from deferrable_ops.upstreams.machine.machine import Machine, MachineAddress


def use_machine(address: MachineAddress) -> AbstractAsyncContextManager[Machine]:
    """Return a context manager for a machine. The SSH connection to the machine is opened on first use.

    :raises ConfigurationError: if the Airflow connection is missing or malformed, or asyncssh is not installed. The
        error is raised when the context manager is entered.
    """
    if address.ssh_conn_id is None:
        from deferrable_ops.upstreams.machine.local import use_this_host

        return use_this_host()
    from deferrable_ops.upstreams.ssh.machine import use_remote_host

    return use_remote_host(address)
