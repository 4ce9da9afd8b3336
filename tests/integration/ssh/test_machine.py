"""A machine behind a real sshd does what this host does, and some more."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from unit.upstreams.machine.test_local import (  # noqa: F401  (what every machine does)
    mode,
    sleeper,
    test_command_gets_its_arguments_as_they_are,
    test_command_that_takes_too_long_is_killed_with_its_children,
    test_daemon_that_a_command_leaves_behind_keeps_nobody_waiting,
    test_directories_are_made_for_us_alone,
    test_directory_is_checked_and_not_made,
    test_directory_that_everybody_can_swap_is_refused,
    test_directory_that_others_could_change_is_refused,
    test_end_of_a_long_output_is_kept,
    test_file_is_replaced_with_one_that_only_we_read,
    test_identity_is_what_the_system_says,
    test_part_of_a_file_is_read,
    test_process_is_told_and_signalled,
    test_status_of_several_files,
    test_tree_is_removed_and_what_links_lead_to_stays,
    test_writing_that_fails_leaves_what_was_there,
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


async def test_environment_and_input_are_in_no_list_of_processes(
    sshd_server: RealSshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WEB", sshd_server.connection())
    seen = tmp_path / "seen"
    # Everything that any process is called with, while the command runs that was given the secrets.
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
    assert any(str(seen) in line for line in lines), "its own arguments are seen"
    for secret in (SECRET.splitlines()[0], SECRET.splitlines()[1].strip()):
        assert not any(secret in line for line in lines)
    for secret in (SECRET.splitlines()[0], sshd_server.private_key.splitlines()[2]):
        assert secret not in caplog.text


async def test_prefix_goes_before_each_command(
    sshd_server: RealSshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WEB", sshd_server.connection())
    prefix = "echo 'Welcome!'; export FROM_PREFIX=yes"
    async with use_machine(MachineAddress(ssh_conn_id="web", command_prefix=prefix)) as machine:
        ended = await machine.run(["sh", "-c", "echo $FROM_PREFIX $0", "arg"], timeout=20)
        assert (ended.code, ended.output) == (0, "yes arg\n"), (
            "what the shell said before is not the command's"
        )
        assert (await machine.identity()).host == os.uname().nodename


async def test_account_without_a_shell_is_refused(
    sshd_server: RealSshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WEB", sshd_server.connection())
    async with use_machine(MachineAddress(ssh_conn_id="web", command_prefix="echo No!; exit 1")) as machine:
        with pytest.raises(
            MachineRefused, match=r"does not run shell commands as expected; .* It printed 'No!"
        ):
            await machine.identity()


async def test_directory_that_somebody_put_into_a_shared_one_is_refused(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    theirs = tmp_path / "shared" / "supervisor-dag"
    theirs.mkdir(mode=0o755)
    # Only root can give a directory away; here ours has another number in what SFTP says.
    monkeypatch.setattr(
        "deferrable_ops.upstreams.ssh.files._entry",
        lambda found: Entry(found.permissions, 12_345 if found.permissions & 0o7777 == 0o755 else found.uid),
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


async def test_machine_without_stat_tells_all_but_the_inode(
    sshd_server: RealSshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("AIRFLOW_CONN_WEB", sshd_server.connection())
    async with use_machine(
        MachineAddress(ssh_conn_id="web", environment=(("PATH", str(tmp_path)),))
    ) as machine:
        file, missing = await machine.status(Path("/etc/passwd"), tmp_path / "no", inodes=True)
        assert file is not None
        assert (file.size, file.inode, missing) == (Path("/etc/passwd").stat().st_size, 0, None)


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


async def test_missing_client_says_how_to_get_it(
    sshd_server: RealSshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WEB", sshd_server.connection())
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    with pytest.raises(ConfigurationError, match=r'pip install "airflow-deferrable-ops\[ssh\]"'):
        async with use_machine(MachineAddress(ssh_conn_id="web")):
            pass


def test_nothing_is_loaded_for_this_host() -> None:
    code = (
        "import sys, asyncio; from deferrable_ops.upstreams.open_machine import *\n"
        "async def main():\n"
        "    async with use_machine(MachineAddress()) as m: await m.identity()\n"
        "asyncio.run(main()); print('asyncssh' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"
