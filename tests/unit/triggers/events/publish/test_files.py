"""Reading the messages to publish from files."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from unit.triggers.events.support import value_of
from unit.triggers.support import Runs

from deferrable_ops.events import Merge
from deferrable_ops.events.merging import rules_to_json
from deferrable_ops.exceptions import InputError
from deferrable_ops.outcome import Failure
from deferrable_ops.triggers.events.publish import files as publish_files
from deferrable_ops.triggers.events.publish.files import read_payloads
from deferrable_ops.triggers.events.publish.trigger import PublishEventTrigger


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    "name, content, payloads",
    [
        ("a.jsonl", '{"a": 1}\n\n  \n"t\u2028"\r\n[2]', [{"a": 1}, "t\u2028", [2]]),
        ("a.NDJSON", "\ufeff1\n2\n", [1, 2]),
        ("a.json", '[{"a": 1}, 2]', [{"a": 1}, 2]),
        ("a.json", '{"a": 1}', [{"a": 1}]),
        ("a.txt", "one\r\n two \n\n{3}", ["one", " two ", "{3}"]),
        ("a.txt", "", []),
    ],
)
def test_format_follows_the_suffix(tmp_path: Path, name: str, content: str, payloads: list[Any]) -> None:
    assert read_payloads([write(tmp_path, name, content)]) == (payloads, 0)


def test_given_format_overrides_the_suffix(tmp_path: Path) -> None:
    assert read_payloads([write(tmp_path, "a.json", "1\n2")], "text") == (["1", "2"], 0)
    assert read_payloads([write(tmp_path, "a", "1\n2")], "jsonl") == ([1, 2], 0)


def test_files_are_read_in_order_and_patterns_sorted_by_name(tmp_path: Path) -> None:
    for name in ("10", "9", "a[1]", ".hidden"):
        write(tmp_path, f"{name}.txt", name)
    assert read_payloads([f"{tmp_path}/9.txt", f"{tmp_path}/*.txt"])[0] == ["9", "10", "9", "a[1]"]
    assert read_payloads([f"{tmp_path}/a[1].txt"])[0] == ["a[1]"], "a file's own name comes before a pattern"


def test_messages_are_selected_and_merged(tmp_path: Path) -> None:
    lines = [
        {"topic": "etl", "data": [{"table": "a", "rows": 1}, {"table": "b", "rows": 2}]},
        {"topic": "other", "data": [{"table": "a", "rows": 100}]},
        {"topic": "etl", "data": [{"table": "a", "rows": 3}, "text"]},
    ]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)))
    select = "[?topic == 'etl'].data[]"
    assert len(read_payloads([path], select=select)[0]) == 4
    rules = rules_to_json(Merge(group_by=["table"], combine={"rows": "sum"}))
    merged = [{"table": "a", "rows": 4}, {"table": "b", "rows": 2}]
    assert read_payloads([path], select=select, rules=rules) == (merged, 1)
    assert read_payloads([path], select="absent") == ([], 0)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.jsonl", '{"a": 1}\n{"a": }', "a.jsonl:2 is not JSON"),
        ("a.jsonl", "NaN", "NaN is not JSON"),
        ("a.json", "[" * 100_000, "a.json is not JSON"),
        ("a.txt", b"a\xff", "is not UTF-8 at byte 1"),
        ("a.parquet", "x", "has an unknown suffix; give file_format="),
        ("a.jsonl", "1\n" * 11, "hold 11 messages; a task publishes at most 10"),
        ("a.txt", "x" * 101, "have together more than 100 bytes"),
    ],
)
def test_malformed_file_is_named(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    max_bytes = 100 if name.endswith(".txt") else 1_000_000
    with pytest.raises(InputError) as caught:
        read_payloads([write(tmp_path, name, content)], max_bytes=max_bytes, max_messages=10)
    assert said in str(caught.value)


def test_files_have_a_total_size_limit(tmp_path: Path) -> None:
    paths = [write(tmp_path, f"{name}.txt", "x" * 60) for name in "ab"]
    assert len(read_payloads(paths[:1], max_bytes=100)[0]) == 1
    with pytest.raises(InputError, match=r"the files up to '.*b.txt' have together more than 100 bytes"):
        read_payloads(paths, max_bytes=100)


def test_unreadable_path_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for path, said in [
        (f"{tmp_path}/absent.txt", "cannot be read on this triggerer's machine: No such file"),
        (f"{tmp_path}/*.jsonl", "no file on this triggerer's machine matches"),
        (f"{tmp_path}/pipe.txt", "is not a regular file"),
        (str(tmp_path), "is not a regular file"),
    ]:
        with pytest.raises(InputError, match=said):
            read_payloads([path], "text")


def test_expression_that_yields_no_list_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", "[1, 2]")
    with pytest.raises(InputError, match="yields a int"):
        read_payloads([path], select="[0]")
    with pytest.raises(InputError, match="cannot be evaluated"):
        read_payloads([path], select="map(&abs(@), [*].a || ['x'])")


async def test_messages_of_a_file_are_published_in_order(runs: Runs, tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", "\n".join(str(n) for n in range(2_500)))
    publish = PublishEventTrigger(channel="loads", files=[path])
    value = await value_of(runs.start(publish))
    assert value["count"] == 2_500
    events = await runs.inbox.events.read(["channel:loads"], after=0, upto=10**9, limit=3_000)
    assert [event.payload for event in events] == list(range(2_500))
    assert value["event"] == events[-1].number


async def test_messages_that_match_no_rule_are_counted(
    runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, "a.jsonl", '{"t": 1}\n"text"\n{"t": 1}')
    publish = PublishEventTrigger(channel="loads", file=path, merge=rules_to_json(Merge({"t": 1})))
    value = await value_of(runs.start(publish))
    assert (value["count"], value["left_over"]) == (1, 1)
    assert "1 messages of the files match no rule" in caplog.text


async def test_file_without_messages_publishes_nothing(
    runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    value = await value_of(
        runs.start(PublishEventTrigger(channel="loads", file=write(tmp_path, "a.txt", "")))
    )
    assert value == {"count": 0}
    assert "nothing is published" in caplog.text


async def test_too_large_payload_of_a_file_is_named(runs: Runs, tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "fine\n" + "x" * 300_000)
    outcome = await runs.start(PublishEventTrigger(channel="loads", file=path)).outcome()
    assert isinstance(outcome, Failure)
    assert "file[1]" in outcome.reason
    assert await runs.inbox.events.read(["channel:loads"], after=0, upto=10**9, limit=1) == []


async def test_reading_does_not_block_the_event_loop(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pipe.txt"
    reading, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(*_: Any) -> bytes:
        loop.call_soon_threadsafe(reading.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(20)
        return b"1"

    monkeypatch.setattr(publish_files, "_read", slow)
    run = runs.start(PublishEventTrigger(channel="loads", file=str(path)))
    # The event loop runs while the thread waits for it.
    await asyncio.wait_for(reading.wait(), 20)
    go_on.set()
    assert (await value_of(run))["count"] == 1
