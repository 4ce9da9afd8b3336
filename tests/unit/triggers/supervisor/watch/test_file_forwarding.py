"""Output that is copied to files beside the task's log: each byte once, and what is written if the disk is full."""

from __future__ import annotations

import errno
import logging
import os
import random
import resource
from pathlib import Path

import pytest
from unit.triggers.supervisor.support import Program, Reader, warned
from unit.triggers.support import new_attempt

from deferrable_ops.triggers.supervisor.watch import file_forwarding
from deferrable_ops.triggers.supervisor.watch.file_forwarding import FileForwarder

ATTEMPT = new_attempt(2, task_id="feeds-check-programs")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path / "logs"))
    caplog.set_level(logging.INFO, "task")
    return logging.getLogger("task")


def reader_of(program: Program, log: logging.Logger, inodes: str = "always") -> Reader:
    return Reader(program, log, inodes, make=lambda host, saved: FileForwarder(host, saved, ATTEMPT))


def file_of(folder: Path, label: str = "a") -> Path:
    run = folder / "logs" / "dag_id=dag" / f"run_id={ATTEMPT.run_id}" / "task_id=feeds-check-programs"
    return run / f"output.attempt=2.{label}.log"


@pytest.mark.parametrize("inodes", ["always", "never"])
async def test_each_byte_is_copied_once_through_rotations_and_restarts(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture, inodes: str
) -> None:
    chance = random.Random(1)
    program = Program(tmp_path, most=4_000, backups=50)
    reader = reader_of(program, log, inodes)
    for _ in range(200):
        program.write(chance.randbytes(chance.randrange(1, 400)))
        if not chance.randrange(6):
            await reader.look()
        if not chance.randrange(20):
            reader.restart()
    await reader.finish()
    file = file_of(tmp_path)
    rotated = [file.with_name(f"{file.name}.{number}") for number in range(50, 0, -1)]
    parts = [part.read_bytes() for part in [*filter(Path.exists, rotated), file]]
    assert b"".join(parts) == program.written
    assert program.path.with_name("output.log.9").exists(), "it was not rotated"
    assert len(parts) > 5, "the copy was not rotated"
    assert not warned(caplog)


async def test_task_log_contains_only_the_path_of_the_file(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Program(tmp_path)
    reader = reader_of(program, log)
    for _ in range(3):
        program.write(b"one\n")
        await reader.look()
    host = os.uname().nodename
    [message] = [record.getMessage() for record in caplog.records]
    assert (
        message == f"[a] The output is copied to the file {file_of(tmp_path)} on the triggerer's host {host}"
    )
    assert not list(file_of(tmp_path).parent.glob("attempt=2.log*")), (
        "Airflow merges these files into the log"
    )
    monkeypatch.setenv("AIRFLOW__LOGGING__REMOTE_LOGGING", "True")
    reader.restart()
    program.write(b"two\n")
    await reader.look()
    assert caplog.records[-1].getMessage() == f"{message}; remote logging does not upload this file"


async def test_full_disk_is_reported_once_and_no_output_is_lost(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Program(tmp_path)
    reader = reader_of(program, log)
    program.write(b"one\n")
    await reader.look()

    def full(file: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    with monkeypatch.context() as patched:
        patched.setattr(file_forwarding, "_append", full)
        for _ in range(3):
            program.write(b"two\n")
            await reader.look()
    [warning] = warned(caplog)
    assert warning.startswith("Could not write the programs' output; trying again later: ")
    assert "No space left on device" in warning
    assert str(file_of(tmp_path)) in warning
    reader.restart()
    await reader.look()
    assert file_of(tmp_path).read_bytes() == program.written


def test_part_of_a_write_is_removed_if_the_disk_is_full(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            file_forwarding._append(file, b", after, and more", 0, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.filename == str(file)
    assert file.read_bytes() == b"before"
    file_forwarding._append(file, b", after", 0, 0)
    assert file.read_bytes() == b"before, after"


@pytest.mark.parametrize(
    "backups, kept",
    [(2, {"file.log": b"d", "file.log.1": b"c", "file.log.2": b"b"}), (0, {"file.log": b"d"})],
)
def test_file_is_rotated_like_the_log_of_the_program(
    tmp_path: Path, backups: int, kept: dict[str, bytes]
) -> None:
    file = tmp_path / "file.log"
    file.touch(0o600)
    file.chmod(0o664)
    for letter in (b"a", b"b", b"c", b"d"):
        file_forwarding._append(file, letter * 100, 100, backups)
    found = {path.name: path.read_bytes()[:1] for path in tmp_path.iterdir()}
    assert found == kept
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o664}
