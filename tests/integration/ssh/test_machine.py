"""A machine behind a real sshd passes the tests of the local host, and more."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from unit.upstreams.machine.test_local import (  # noqa: F401  (tests for every kind of machine)
    mode,
    sleeper,
    test_check_directory_creates_nothing,
    test_command_gets_its_arguments_unchanged,
    test_command_that_takes_too_long_is_killed_with_its_children,
    test_created_directories_are_private,
    test_daemon_left_behind_by_a_command_does_not_delay_its_result,
    test_directory_that_all_users_can_replace_is_refused,
    test_directory_writable_by_others_is_refused,
    test_end_of_a_long_output_is_kept,
    test_failed_write_leaves_the_old_content,
    test_free_space_of_several_paths,
    test_identity_matches_the_system,
    test_part_of_a_file_is_read,
    test_process_is_found_and_signalled,
    test_removing_a_tree_keeps_the_targets_of_links,
    test_status_of_several_files,
    test_written_file_replaces_a_link_and_is_private,
)

from deferrable_ops.exceptions import ConfigurationError, InputError, MachineRefused
from deferrable_ops.upstreams.machine.machine import Machine, MachineAddress
from deferrable_ops.upstreams.machine.private_directory import Entry
from deferrable_ops.upstreams.open_machine import use_machine
from real_sshd import RealSshd

SECRET = "it's \\ 100% $HOME `id`\nand é\t"


@pytest.fixture
async def machine(sshd_server: RealSshd, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    monkeypatch.setenv("AIRFLOW_CONN_WEB", sshd_server.connection())
    async with use_machine(MachineAddress(ssh_conn_id="web")) as machine:
        yield machine


async def test_environment_and_input_are_not_in_the_process_list(
    sshd_server: RealSshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WEB", sshd_server.connection())
    seen = tmp_path / "seen"
    # Collect the command lines of all processes while the command with the secrets runs.
    code = (
        "import json, os, pathlib, sys; lines = []\n"
        "for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
        "    try: lines.append(path.read_text(errors='replace'))\n"
        "    except OSError: pass\n"
        "json.dump([os.environ['TOKEN'], sys.stdin.read(), lines], open(sys.argv[1], 'w'))"
    )
    where = MachineAddress(ssh_conn_id="web", environment=(("TOKEN", SECRET),))
    caplog.set_level(0)
    async with use_machine(where) as machine:
        ended = await machine.run([sys.executable, "-c", code, str(seen)], timeout=20, stdin=SECRET.encode())
        assert ended.code == 0, ended.output
    token, given, lines = json.loads(seen.read_text())
    assert (token, given) == (SECRET, SECRET)
    assert any(str(seen) in line for line in lines), "its own arguments are visible"
    for secret in (SECRET.splitlines()[0], SECRET.splitlines()[1].strip()):
        assert not any(secret in line for line in lines)
    for secret in (SECRET.splitlines()[0], sshd_server.private_key.splitlines()[2]):
        assert secret not in caplog.text


async def test_prefix_runs_before_each_command(
    sshd_server: RealSshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WEB", sshd_server.connection())
    prefix = "echo 'Welcome!'; export FROM_PREFIX=yes"
    async with use_machine(MachineAddress(ssh_conn_id="web", command_prefix=prefix)) as machine:
        ended = await machine.run(["sh", "-c", "echo $FROM_PREFIX $0", "arg"], timeout=20)
        assert (ended.code, ended.output) == (0, "yes arg\n"), (
            "output of the shell is not part of the command's output"
        )
        assert (await machine.identity()).host == os.uname().nodename


async def test_failing_prefix_is_named(sshd_server: RealSshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WEB", sshd_server.connection())
    async with use_machine(MachineAddress(ssh_conn_id="web", command_prefix="echo No!; exit 3")) as machine:
        with pytest.raises(
            MachineRefused, match=r"command_prefix failed on .* ended with exit code 3 and printed 'No!"
        ):
            await machine.run(["true"], timeout=20)
        assert await machine.read(Path("/etc/hostname")) is not None, "files need no prefix"


async def test_account_without_a_shell_is_refused(
    sshd_server: RealSshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = RealSshd(ForceCommand="echo This account is not available; exit 1")
    server.start()
    monkeypatch.setenv("AIRFLOW_CONN_WEB", server.connection())
    try:
        async with use_machine(MachineAddress(ssh_conn_id="web")) as machine:
            for call in (machine.identity(), machine.run(["true"], timeout=20)):
                with pytest.raises(
                    MachineRefused,
                    match=r"give the account a login shell, such as /bin/sh\. .* printed 'This account",
                ):
                    await call
    finally:
        server.remove()


async def test_directory_of_another_user_in_a_shared_one_is_refused(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    theirs = tmp_path / "shared" / "supervisor-dag"
    theirs.mkdir(mode=0o755)
    # Only root can change the owner of a directory, so the owner in the directory entries is faked.
    monkeypatch.setattr(
        "deferrable_ops.upstreams.ssh.files._entry",
        lambda bits, uid: Entry(bits, 12_345 if bits & 0o7777 == 0o755 else uid),
    )
    (tmp_path / "way").symlink_to(theirs)
    for path in (theirs / "sub", tmp_path / "way" / "sub"):
        with pytest.raises(MachineRefused, match="uid 12345"):
            await machine.make_directory(path)
        with pytest.raises(MachineRefused, match="uid 12345"):
            await machine.check_directory(path)
    assert not (theirs / "sub").exists()


async def test_all_users_share_one_connection(sshd_server: RealSshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WEB", sshd_server.connection())
    logins = sshd_server.logins()

    async def use(number: int) -> None:
        variable = str(number % 5)
        async with use_machine(MachineAddress(ssh_conn_id="web", environment=(("N", variable),))) as machine:
            assert (await machine.status(Path("/tmp")))[0] is not None
            if number < 15:
                ended = await machine.run(["sh", "-c", "echo $N"], timeout=60)
                assert ended.output == f"{variable}\n", "each with its own environment"
            assert len(sshd_server.connections()) == 1

    await asyncio.gather(*map(use, range(50)))
    assert sshd_server.logins() - logins == 1


async def test_paths_must_be_absolute_and_arguments_whole(machine: Machine) -> None:
    for call in (
        machine.read(Path("a")),
        machine.write(Path("a"), b""),
        machine.make_directory(Path("a")),
        machine.remove(Path("a")),
        machine.status(Path("/a\nb"), inodes=True),
        machine.run(["a\0b"], timeout=5),
    ):
        with pytest.raises(InputError):
            await call


async def test_missing_package_is_named_with_its_install_command(
    sshd_server: RealSshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WEB", sshd_server.connection())
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    with pytest.raises(ConfigurationError, match=r'pip install "airflow-deferrable-ops\[ssh\]"'):
        async with use_machine(MachineAddress(ssh_conn_id="web")):
            pass


def test_local_host_does_not_import_asyncssh() -> None:
    code = (
        "import sys, asyncio; from deferrable_ops.upstreams.open_machine import *\n"
        "async def main():\n"
        "    async with use_machine(MachineAddress()) as m: await m.identity()\n"
        "asyncio.run(main()); print('asyncssh' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"
