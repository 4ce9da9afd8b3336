"""Opens the machine on which a supervisord runs: the local host, or another host over SSH."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from deferrable_ops.upstreams.machine.machine import Machine, MachineAddress


def use_machine(address: MachineAddress) -> AbstractAsyncContextManager[Machine]:
    """Return a context manager for the machine with this address. The SSH connection to the machine is opened when the
    first method of the machine is called.

    :raises ConfigurationError: if the Airflow connection is missing or malformed, or asyncssh is not installed. This
        error is raised when the ``with`` block begins.
    """
    if address.ssh_conn_id is None:
        from deferrable_ops.upstreams.machine.local import use_this_host

        return use_this_host()
    from deferrable_ops.upstreams.ssh.machine import use_remote_host

    return use_remote_host(address)
