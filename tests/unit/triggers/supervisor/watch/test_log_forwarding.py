"""Forwarded output: each line is copied once, also across rotations, truncation and removal of the files."""

from __future__ import annotations

import logging
import os
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from unit.supervisord.support import process
from unit.triggers.supervisor.support import Program, Reader, copied, lines_of, warned

from deferrable_ops.exceptions import MachineRefused, MachineUnavailable
from deferrable_ops.supervisord.processes import ProcessState
from deferrable_ops.triggers.lifecycle.log_budget import LogBudget
from deferrable_ops.triggers.supervisor.watch import log_forwarding
from deferrable_ops.triggers.supervisor.watch.log_forwarding import LogForwarder

_SKIPPED = re.compile(r"^\[a\] skipped ([\d,]+) lines? \(")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> logging.Logger:
    caplog.set_level(logging.INFO, "task")
    return logging.getLogger("task")


@pytest.mark.parametrize("inodes", ["always", "when asked", "never"])
@pytest.mark.parametrize("seed", range(4))
async def test_each_line_is_copied_once_through_rotations_and_restarts(
    tmp_path: Path,
    log: logging.Logger,
    caplog: pytest.LogCaptureFixture,
    inodes: str,
    seed: int,
) -> None:
    chance = random.Random(seed)
    program = Program(tmp_path, most=4000, backups=50)
    reader = Reader(program, log, inodes)
    for number in range(400):
        line = f"{number} ".encode() + chance.choice(
            [b"", b"x" * 70, "é€😀".encode() * 9, b"\xff\xfe", b"y" * 900]
        )
        cut = chance.randrange(len(line))
        program.write(line[:cut])
        if not chance.randrange(6):
            await reader.look()
        program.write(line[cut:] + b"\n")
        if not chance.randrange(20):
            reader.restart()
    program.write(b"no end")
    await reader.finish()
    assert copied(caplog) == lines_of(program.written)
    assert program.path.with_name("output.log.9").exists(), "it was not rotated"
    assert not warned(caplog)
    await reader.finish()
    reader.restart()
    await reader.finish()
    assert copied(caplog) == lines_of(program.written), "nothing is copied twice"


async def test_line_that_begins_before_a_rotation_is_one_line_after_a_restart(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    program = Program(tmp_path, most=100)
    reader = Reader(program, log)
    program.write(b"x" * 90 + b"\nbegin" + b"-" * 10)
    await reader.look()
    program.write(b"end\n")
    reader.restart()
    await reader.look()
    assert copied(caplog) == ["x" * 90, "begin" + "-" * 10 + "end"]


async def test_kill_before_saving_repeats_one_poll_at_most(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    program = Program(tmp_path)
    reader = Reader(program, log)
    program.write(b"one\ntwo\n")
    await reader.look()
    program.write(b"three\nfour\n")
    await reader.output.forward(program.found)  # killed before the position is saved
    reader.restart()
    await reader.look()
    assert copied(caplog) == ["one", "two", "three", "four", "three", "four"]


async def test_output_of_other_runs_is_not_copied_again(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    program = Program(tmp_path)
    reader = Reader(program, log)
    program.write(b"one\n")
    await reader.look()
    program.write(b"two\n")
    reader.restart(is_ours=False)
    await reader.look()
    assert copied(caplog) == ["one", "two"]


async def test_log_of_a_new_supervisord_is_read_from_its_start_without_a_gap(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    """The directory was removed and created again; another file may have the inode now."""
    program = Program(tmp_path)
    reader = Reader(program, log)
    program.write(b"one\nand more\n")
    await reader.look()
    program.path.unlink()
    program.clear()
    program.write(b"two\n")
    reader.restart(is_ours=False)
    await reader.look()
    assert copied(caplog) == ["one", "and more", "two"]
    assert not warned(caplog)


async def test_output_before_the_start_of_the_program_is_ignored(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    program = Program(tmp_path)
    old = program.path.with_name("output.log.1")
    old.write_bytes(b"of last week\n")
    os.utime(old, (0, 0))
    program.write(b"one\n")
    await Reader(program, log).look()
    assert copied(caplog) == ["one"]


@pytest.mark.parametrize("inodes", ["always", "when asked", "never"])
async def test_emptied_log_is_read_from_its_start_with_a_warning(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture, inodes: str
) -> None:
    program = Program(tmp_path)
    reader = Reader(program, log, inodes)
    program.write(b"one\nthr")
    await reader.look()
    program.clear()
    program.write(b"two\n")
    await reader.look()
    assert copied(caplog) == ["one", "thr", "two"]
    assert warned(caplog) == [
        "[a] output may be missing here, because the log file of the program was removed or emptied"
    ]


async def test_emptied_log_that_has_grown_past_the_position_is_detected(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    program = Program(tmp_path, most=1000, backups=0)  # supervisord empties the same file
    reader = Reader(program, log)
    program.write(b"one\n")
    inode = program.path.stat().st_ino
    await reader.look()
    program.write(b"-" * 1000)
    program.write(b"two, and more\n")
    await reader.look()
    assert program.path.stat().st_ino == inode
    assert copied(caplog) == ["one", "two, and more"]
    assert len(warned(caplog)) == 1


async def test_output_rotated_away_is_a_gap_and_the_oldest_file_follows(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    program = Program(tmp_path, most=10, backups=2)
    reader = Reader(program, log)
    program.write(b"start\n")
    await reader.look()
    for number in range(6):
        program.write(f"number {number}...\n".encode())
    program.write(b"last\n")
    await reader.look()
    assert copied(caplog) == ["start", "number 4...", "number 5...", "last"]
    assert len(warned(caplog)) == 1


async def test_program_with_much_output_leaves_lines_to_others(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    loud = Program(tmp_path)
    quiet = tmp_path / "b" / "output.log"
    quiet.parent.mkdir()
    quiet.write_bytes(b"quiet\n" * 3)
    found = loud.found | {
        "b": [process(group="b", name="b", start=1, stdout_logfile=str(quiet), stderr_logfile="")]
    }
    loud.write("".join(f"{number} {'loud!' * 50}\n" for number in range(10_000)).encode())
    budget = LogBudget(2, clock=lambda: 0.0)  # 60 lines, of which a poll gets 30
    reader = Reader(loud, log, make=lambda host, saved: LogForwarder(host, saved, budget))
    await reader.output.forward(found)
    assert copied(caplog, "b") == ["quiet"] * 3
    numbers = [int(line.split()[0]) for line in copied(caplog, "a")]
    assert numbers == list(range(9_973, 10_000)), "the newest lines"
    assert reader.machine.bytes_read < 3 * loud.config.log_chunk_size
    [skipped] = warned(caplog)
    assert skipped.startswith("[a] skipped 9,973 lines (2.6 MB) here, because")
    assert "2 lines per second" in skipped
    assert f"the whole output is in {loud.path} on this host" in skipped


async def test_event_loop_is_not_blocked_by_copying(
    tmp_path: Path, log: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Program(tmp_path)
    program.write(b"\n" * 5_000)
    turns, sleep = 0, log_forwarding.asyncio.sleep

    async def counted(seconds: float) -> None:
        nonlocal turns
        turns += 1
        await sleep(seconds)

    monkeypatch.setattr(log_forwarding.asyncio, "sleep", counted)
    await Reader(program, log).look()
    assert turns >= 5_000 // 50


async def test_all_output_of_an_ended_program_is_copied(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    program = Program(tmp_path, most=50_000, backups=9)
    reader = Reader(program, log)
    for number in range(3000):
        program.write(f"{number} {'-' * 100}\n".encode())
    program.write(b"bye")
    await reader.finish()
    assert copied(caplog)[-1] == "bye"
    assert len(copied(caplog)) == 3001


async def test_line_that_a_running_program_has_not_ended_is_left_to_the_next_task(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    program = Program(tmp_path)
    reader = Reader(program, log)
    program.write(b"one\ntw")
    await reader.output.finish(program.found)
    assert copied(caplog) == ["one"]
    await reader.look()
    program.write(b"o\n")
    reader.restart(is_ours=False)
    await reader.look()
    assert copied(caplog) == ["one", "two"]


async def test_unreachable_machine_loses_no_output_and_is_logged_once(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    program = Program(tmp_path)
    reader = Reader(program, log)
    for error in (MachineUnavailable("airflow@web-3:22 is away"), MachineRefused("no permission")):
        program.write(b"one\n")
        reader.machine.failing = error
        for _ in range(3):
            await reader.look()
        assert warned(caplog) == [f"Could not read the programs' output; trying again later: {error}"]
        reader.machine.failing = None
        await reader.look()
        assert copied(caplog) == ["one"]
        caplog.clear()


async def test_quiet_logs_cost_one_status_call_per_poll(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    program = Program(tmp_path)
    silent = tmp_path / "a" / "error.log"
    silent.touch()
    found = program.found
    found["a"] = [replace(found["a"][0], stderr_log=str(silent))]
    reader = Reader(program, log, "when asked")
    program.write(b"one\n")
    await reader.output.forward(found)
    commands, read = reader.machine.commands, reader.machine.bytes_read
    reader.machine.asked.clear()
    for _ in range(10):
        await reader.output.forward(found)
    assert reader.machine.asked == [2] * 10
    assert (reader.machine.commands, reader.machine.bytes_read) == (commands, read)


async def test_stderr_is_labelled_and_a_process_that_never_started_has_no_output(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    program = Program(tmp_path)
    errors = tmp_path / "a" / "error.log"
    errors.write_bytes(b"oh\n")
    seen = process(group="g", name="a", start=1, stdout_logfile="", stderr_logfile=str(errors))
    never = process(ProcessState.STOPPED, group="b", name="b", start=0, stdout_logfile=str(errors))
    reader = Reader(program, log)
    await reader.output.forward({"a": [seen], "b": [never]})
    assert copied(caplog, "g:a stderr") == ["oh"]
    assert len(caplog.records) == 1


async def test_rotated_file_with_equal_lines_is_identified_by_its_inode(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    program = Program(tmp_path, most=2000)
    reader = Reader(program, log)
    for lines in (300, 450):  # the new file is longer than the part of the old one that was read
        for _ in range(lines):
            program.write(b"same\n")
        await reader.look()
    assert len(copied(caplog)) == 750


@pytest.mark.parametrize("inodes", ["always", "when asked", "never"])
async def test_named_pipe_is_not_read_as_a_log(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture, inodes: str
) -> None:
    program = Program(tmp_path)
    reader = Reader(program, log, inodes)
    program.write(b"before\n")
    await reader.look()
    program.path.unlink()
    os.mkfifo(program.path)
    for _ in range(2):
        await reader.look()
    program.path.unlink()
    program.clear()
    program.write(b"after\n")
    await reader.look()
    assert copied(caplog) == ["before", "after"]
    assert not any("Could not read" in line for line in warned(caplog))


@pytest.mark.parametrize("inodes", ["always", "when asked", "never"])
async def test_skipped_and_copied_lines_are_all_lines_through_rotations_and_restarts(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture, inodes: str
) -> None:
    program = Program(tmp_path, most=30_000, backups=50)
    now = 0.0
    budget = LogBudget(10, clock=lambda: now)
    reader = Reader(program, log, inodes, make=lambda host, saved: LogForwarder(host, saved, budget))
    for number in range(6_000):
        program.write(f"{number} {'x' * (number % 90)}\n".encode())
        if not number % 777:
            now += 10
            await reader.look()
        if not number % 1_500:
            reader.restart()
    await reader.finish()
    numbers = [int(line.split()[0]) for line in copied(caplog)]
    assert numbers == sorted(set(numbers)), "in order, and each once"
    assert numbers[-1] == 5_999
    skipped = [int(found[1].replace(",", "")) for found in map(_SKIPPED.search, warned(caplog)) if found]
    assert len(skipped) == len(warned(caplog)), "there was no gap"
    assert len(numbers) + sum(skipped) == 6_000
    assert len(numbers) <= 300 + 120 + 10 * now


async def test_lines_that_the_empty_budget_skips_are_reported_later(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    budget = LogBudget(1, clock=lambda: now)
    while budget.take():
        pass
    program = Program(tmp_path)
    reader = Reader(program, log, make=lambda host, saved: LogForwarder(host, saved, budget))
    program.write(b"one\ntwo\n")
    await reader.look()
    assert not caplog.records
    now += 20
    program.write(b"three\n")
    await reader.look()
    assert copied(caplog) == ["three"]
    assert _SKIPPED.search(warned(caplog)[0])[1] == "2"  # type: ignore[index]


async def test_last_skipped_lines_of_an_ended_program_are_reported(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    program = Program(tmp_path)
    reader = Reader(program, log, make=lambda host, saved: LogForwarder(host, saved, LogBudget(0)))
    program.write(b"one\ntwo")
    await reader.finish()
    assert copied(caplog) == ["two"], "the last line has no end"
    assert _SKIPPED.search(warned(caplog)[0])[1] == "1"  # type: ignore[index]


async def test_long_and_binary_lines_cost_as_much_as_they_need_in_the_log(
    tmp_path: Path, log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    budget = LogBudget(1_000, clock=lambda: 0.0)
    program = Program(tmp_path)
    reader = Reader(program, log, make=lambda host, saved: LogForwarder(host, saved, budget))
    program.write(b"x" * 1_000_000 + b"\n")
    await reader.finish()
    assert "".join(copied(caplog)) == "x" * 1_000_000
    assert 2_000 < 30_000 - 2 * budget.take() < 2_100
    binary = random.Random(1).randbytes(50_000).replace(b"\n", b"")
    program.write(binary + b"\n" + b"\0" * 60_000 + b"\n")
    await reader.finish()
    assert copied(caplog)[-2:] == [binary.decode(errors="replace"), "\0" * 60_000]


async def test_no_more_lines_are_taken_than_there_is_room_for() -> None:
    budget = LogBudget(200, room=lambda: 50_499)
    assert budget.take() == 100
    assert LogBudget(200, room=lambda: 0).take() == 0


async def test_quiet_task_gets_lines_beside_a_hundred_loud_ones() -> None:
    now = 0.0
    budget = LogBudget(200, clock=lambda: now)
    for _ in range(100):
        now += 5
        for _ in range(100):
            budget.take()
    now += 5
    taken = [budget.take() for _ in range(100)]
    assert sum(taken) <= 1_000 + 100
    assert budget.take() >= 0
    budget.give_back(10_000_000)
    assert budget.take() == 3_000, "at most the lines of half a minute"
