"""Four endpoints and two triggerers on one inbox, some of them killed: each acknowledged callback is delivered once."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest
from contract.processes import endpoint, start, triggerer
from contract.support import new_attempt

from real_airflow.waiting import wait_until

WAITS = 400
ENDPOINTS = [f"endpoint {number}" for number in range(4)]


@pytest.fixture
def tasks() -> list[str]:
    return [str(uuid4()) for _ in range(WAITS)]


@pytest.mark.parametrize("notify", ["True", "False"])
def test_each_acknowledged_callback_is_delivered_exactly_once(
    shared_url: str, tmp_path: Path, tasks: list[str], notify: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__NOTIFY", notify)
    triggerers = _start_triggerers(shared_url, tmp_path, tasks)
    endpoints = _start_endpoints(shared_url, tmp_path, tasks)
    _join(endpoints + triggerers)
    seen, acknowledged = _lines(tmp_path, "seen"), _lines(tmp_path, "acknowledged")
    assert Counter(wait_id for wait_id, _ in seen) == Counter(_ids(tasks))
    assert sorted(seen) == sorted(acknowledged)


def test_acknowledged_callbacks_survive_killed_endpoints_and_triggerers(
    shared_url: str, tmp_path: Path, tasks: list[str]
) -> None:
    triggerers = _start_triggerers(shared_url, tmp_path, tasks)
    endpoints = _start_endpoints(shared_url, tmp_path, tasks)
    wait_until(lambda: len(_lines(tmp_path, "acknowledged")) > WAITS / 10, "some callbacks", every=0.005)
    for process in (endpoints[0], endpoints[1], triggerers[0]):
        process.kill()
    _join(endpoints[2:] + triggerers[1:])
    acknowledged = _lines(tmp_path, "acknowledged")
    # As after a restart: the same triggers run again, and get the same outcomes.
    _join(_start_triggerers(shared_url, tmp_path, tasks))
    seen = dict(_lines(tmp_path, "seen"))
    assert set(seen) == set(_ids(tasks))
    assert all(seen[wait_id] == payload for wait_id, payload in acknowledged)
    assert all(payload[0] in ENDPOINTS and payload[1] == wait_id for wait_id, payload in seen.items())
    assert len(set(map(json.dumps, _lines(tmp_path, "seen")))) == WAITS, "a wait had two outcomes"


def _start_triggerers(url: str, folder: Path, tasks: list[str]) -> list:  # type: ignore[type-arg]
    halves = [tasks[: WAITS // 2], tasks[WAITS // 2 :]]
    registered = [folder / f"registered-{uuid4()}" for _ in halves]
    started = [
        start(triggerer, url, half, registered[number], folder / f"seen-{number}")
        for number, half in enumerate(halves)
    ]
    wait_until(lambda: all(file.exists() for file in registered), "the waits to be registered", every=0.02)
    return started


def _start_endpoints(url: str, folder: Path, tasks: list[str]) -> list:  # type: ignore[type-arg]
    started = []
    for number, name in enumerate(ENDPOINTS):
        ids = _ids(tasks)
        random.shuffle(ids)
        started.append(start(endpoint, url, name, ids, folder / f"acknowledged-{number}"))
    return started


def _ids(tasks: list[str]) -> list[str]:
    return [new_attempt(task, ti_id=task).wait_id for task in tasks]


def _join(processes: list) -> None:  # type: ignore[type-arg]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0


def _lines(folder: Path, kind: str) -> list[list[object]]:
    lines = [line for file in folder.glob(f"{kind}-*") for line in file.read_text().splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]
