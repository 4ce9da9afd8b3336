"""The local host as a machine: files, commands and processes."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deferrable_ops.exceptions import InputError, MachineRefused, MachineUnavailable
from deferrable_ops.upstreams.machine import local_files
from deferrable_ops.upstreams.machine.machine import OUTPUT_KEPT, CommandResult, Machine, MachineAddress
from deferrable_ops.upstreams.machine.signals import command_by_ps
from deferrable_ops.upstreams.open_machine import use_machine

ANOTHER_USER = 12_345


@pytest.fixture
async def machine() -> Any:
    async with use_machine(MachineAddress()) as machine:
        yield machine


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"], stdout=-1
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_identity_matches_the_system(machine: Machine) -> None:
    found = await machine.identity()
    assert found.host == os.uname().nodename
    assert found.uid == os.geteuid()
    assert (
        found.user == subprocess.run(["id", "-un"], capture_output=True, check=True).stdout.decode().strip()
    )
    assert found.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


async def test_created_directories_are_private(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c"
    await machine.make_directory(path)
    assert [mode(made) for made in (path, path.parent, path.parent.parent)] == [0o700] * 3
    (path / "kept").touch()
    await machine.make_directory(path)
    assert (path / "kept").exists()


async def test_check_directory_creates_nothing(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    for missing in (path, path.parent):
        assert not await machine.check_directory(missing)
    assert not (tmp_path / "a").exists()
    await machine.make_directory(path)
    assert await machine.check_directory(path)
    path.chmod(0o770)
    with pytest.raises(MachineRefused, match="chmod go-w"):
        await machine.check_directory(path)
    (path.parent / "link").symlink_to(path)
    with pytest.raises(MachineRefused, match="is a link"):
        await machine.check_directory(path.parent / "link")
    assert not await machine.check_directory(path.parent / "link" / "missing")
    with pytest.raises(InputError, match="absolute"):
        await machine.check_directory(Path("a"))


async def test_directory_writable_by_others_is_refused(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    (tmp_path / "group").mkdir()
    (tmp_path / "group").chmod(0o770)
    for name, complaint in (("link", "is a link"), ("file", "is not a directory"), ("group", "chmod go-w")):
        with pytest.raises(MachineRefused, match=complaint):
            await machine.make_directory(tmp_path / name)
    await machine.make_directory(tmp_path / "link" / "inside")
    assert (tmp_path / "real" / "inside").is_dir(), "links in parent directories are allowed"


@pytest.mark.parametrize("below", ["", "sub", "sub/deeper", "../../way/sub"])
async def test_directory_of_another_user_in_a_shared_one_is_refused(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    theirs = tmp_path / "shared" / "supervisor-dag"
    theirs.mkdir(mode=0o755)
    (tmp_path / "way").symlink_to(theirs)
    # Only root can change the owner of a directory, so the owner is faked.
    entry = local_files._entry

    def owned_by_another(path: Path, **options: Any) -> Any:
        found = entry(path, **options)
        return local_files.Entry(found.mode, ANOTHER_USER) if path == theirs else found

    monkeypatch.setattr(local_files, "_entry", owned_by_another)
    with pytest.raises(MachineRefused, match=f"uid {ANOTHER_USER}"):
        await machine.make_directory(Path(os.path.normpath(theirs / below)))
    with pytest.raises(MachineRefused, match=f"uid {ANOTHER_USER}"):
        await machine.check_directory(Path(os.path.normpath(theirs / below)))
    assert not (theirs / "sub").exists()


@pytest.mark.parametrize("sticky", [False, True])
async def test_directory_that_all_users_can_replace_is_refused(
    machine: Machine, tmp_path: Path, sticky: bool
) -> None:
    shared = tmp_path / "shared"
    (shared / "ours").mkdir(parents=True, mode=0o700)
    shared.chmod(0o1777 if sticky else 0o777)
    for path in (shared / "ours", shared / "ours" / "below", shared / "new"):
        if sticky:
            await machine.make_directory(path)
        else:
            with pytest.raises(MachineRefused, match=f"chmod \\+t {shared}"):
                await machine.make_directory(path)
    with pytest.raises(MachineRefused, match="below it" if sticky else "chmod go-w"):
        await machine.make_directory(shared)


async def test_written_file_replaces_a_link_and_is_private(machine: Machine, tmp_path: Path) -> None:
    elsewhere, path = tmp_path / "elsewhere", tmp_path / "supervisord.conf"
    elsewhere.write_text("theirs")
    path.symlink_to(elsewhere)
    mask = os.umask(0)
    try:
        await machine.write(path, b"a" * 100_000)
    finally:
        os.umask(mask)
    assert (path.is_symlink(), path.read_bytes(), mode(path)) == (False, b"a" * 100_000, 0o600)
    assert elsewhere.read_text() == "theirs"
    assert sorted(tmp_path.iterdir()) == [elsewhere, path]


async def test_failed_write_leaves_the_old_content(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "kept").touch()
    with pytest.raises(MachineRefused, match="busy"):
        await machine.write(tmp_path / "busy", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["busy"]
    with pytest.raises(MachineRefused, match=r"missing.*No such file"):
        await machine.write(tmp_path / "missing" / "file", b"x")


async def test_part_of_a_file_is_read(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"0123456789")
    assert await machine.read(path) == b"0123456789"
    assert await machine.read(path, 3, 4) == b"3456"
    assert await machine.read(path, 8, 4) == b"89"
    assert await machine.read(path, 10) == b""
    assert await machine.read(tmp_path / "missing") is None
    assert await machine.read(path / "below-a-file") is None
    with pytest.raises(MachineRefused, match="directory"):
        await machine.read(tmp_path)
    with pytest.raises(InputError, match="absolute"):
        await machine.read(Path("log"))


async def test_reading_a_pipe_does_not_block(machine: Machine, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for inodes in (True, False):
        (status,) = await machine.status(tmp_path / "pipe", inodes=inodes)
        assert status is not None
        assert not status.is_regular
    async with asyncio.timeout(10):
        with pytest.raises(MachineRefused, match=r"pipe is not a regular file; remove it"):
            await machine.read(tmp_path / "pipe")


async def test_free_space_of_several_paths(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.touch()
    disk = os.statvfs(tmp_path)
    free = pytest.approx(disk.f_bavail * disk.f_frsize, rel=0.1)
    assert await machine.free_space(tmp_path, file) == [free, free]
    assert (await machine.free_space(tmp_path, tmp_path / "missing"))[1] is None


async def test_status_of_several_files(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "a é").write_bytes(b"123")
    (tmp_path / "empty").touch()
    paths = [tmp_path / name for name in ("a é", "b", "empty")] + [tmp_path]
    for inodes in (True, False):
        file, missing, empty, directory = await machine.status(*paths, inodes=inodes)
        assert file is not None
        assert empty is not None
        assert directory is not None
        assert (file.size, file.is_regular, int(file.modified)) == (3, True, int(paths[0].stat().st_mtime))
        assert (missing, empty.size, directory.is_regular) == (None, 0, False)
        assert [one.is_regular for one in (file, empty, directory)] == [True, True, False]
        if inodes:
            assert [file.inode, empty.inode] == [paths[0].stat().st_ino, paths[2].stat().st_ino]


async def test_removing_a_tree_keeps_the_targets_of_links(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "file").touch()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    await asyncio.gather(*(machine.remove(tmp_path / "tree") for _ in range(8)))
    await machine.remove(tmp_path / "link")
    await machine.remove(tmp_path / "missing")
    await machine.remove(tmp_path / "kept" / "file" / "below")
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "file"]
    with pytest.raises(InputError, match="cannot be removed"):
        await machine.remove(Path("/"))


async def test_command_gets_its_arguments_unchanged(machine: Machine) -> None:
    code = "import sys; print(sys.argv[1:], sys.stdin.read(), file=sys.stderr); sys.exit(3)"
    ended = await machine.run([sys.executable, "-c", code, "a b", "$HOME", "'"], timeout=20, stdin=b"given")
    assert ended == CommandResult(3, "['a b', '$HOME', \"'\"] given\n")
    missing = await machine.run(["/no/such"], timeout=20)
    assert (missing.code, "/no/such: not found" in missing.output) == (127, True)
    assert (await machine.run(["/"], timeout=20)).code == 126
    assert (await machine.run(["sh", "-c", "kill -9 $$"], timeout=20)).code == -9


async def test_end_of_a_long_output_is_kept(machine: Machine) -> None:
    ended = await machine.run([sys.executable, "-c", "print('x' * 100_000 + 'end')"], timeout=20)
    assert len(ended.output) == OUTPUT_KEPT
    assert ended.output.endswith("xend\n")


async def test_command_that_takes_too_long_is_killed_with_its_children(
    machine: Machine, tmp_path: Path
) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    for seconds in (1, 5, 25):  # a busy machine may answer slowly
        with pytest.raises(MachineUnavailable, match=rf"sh took longer than {seconds} s on ") as late:
            await machine.run(["sh", "-c", script], timeout=seconds)
        if "and was killed" in str(late.value):
            break
    pid = int((tmp_path / "pid").read_text())
    await until(lambda: ended_(machine, pid))


async def ended_(machine: Machine, pid: int) -> bool:
    return await machine.command_of(pid) is None


async def test_daemon_left_behind_by_a_command_does_not_delay_its_result(machine: Machine) -> None:
    ended = await machine.run(["sh", "-c", "setsid sleep 60 & echo $!"], timeout=10)
    pid = int(ended.output)
    try:
        assert await machine.command_of(pid) is not None
    finally:
        os.kill(pid, signal.SIGKILL)


async def test_process_is_found_and_signalled(machine: Machine, sleeper: subprocess.Popen[bytes]) -> None:
    command = await machine.command_of(sleeper.pid)
    assert command is not None
    assert (command[0], command[1]) == (sys.executable, "-c")
    assert (await command_by_ps(machine, sleeper.pid) or [""])[0] == sys.executable
    assert await machine.signal(sleeper.pid, "TERM")
    await until(lambda: ended_(machine, sleeper.pid))
    # It is a zombie until its parent waits for it, and does not count as a process.
    os.kill(sleeper.pid, 0)
    assert not await machine.signal(sleeper.pid, "TERM")
    assert await command_by_ps(machine, sleeper.pid) is None
    sleeper.wait()
    assert not await machine.signal(sleeper.pid, "KILL")
    assert await command_by_ps(machine, sleeper.pid) is None
    assert not await machine.signal(0, "KILL")
    with pytest.raises(InputError, match="is not a signal"):
        await machine.signal(sleeper.pid, "STOPPED")


async def test_local_host_has_a_name_and_returns_sockets_unchanged(tmp_path: Path) -> None:
    async with use_machine(MachineAddress()) as machine:
        assert machine.name == f"this host ({os.uname().nodename})"
        assert await machine.socket(tmp_path / "s.sock") == tmp_path / "s.sock"


def test_invalid_address_is_refused() -> None:
    secret = "s3cret-value"
    for wrong, complaint in (
        ({"remote_host": "web-3"}, "give ssh_conn_id"),
        ({"ssh_conn_id": "a", "environment": (("A-B", secret),)}, "letters, digits"),
        ({"ssh_conn_id": "a", "environment": (("A", secret + "\0"),)}, "null character"),
    ):
        with pytest.raises(InputError, match=complaint) as refused:
            MachineAddress(**wrong)  # type: ignore[arg-type]
        assert secret not in str(refused.value)
    assert secret not in repr(MachineAddress(ssh_conn_id="a", environment=(("A", secret),)))
