"""The benches run, and say what they measured in the form that others read. What they measure is not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
WEBHOOK = [
    f"{figure}, {database}"
    for figures in [
        ["memory per wait"],
        ["idle CPU at 10,000 waits", "idle queries at 10,000 waits"],
        ["callback answered to event, p99"],
        ["callbacks a second on one core"],
    ]
    for database in ["SQLite", "Postgres"]
    for figure in figures
]


DATAFLOW = [
    "calls at 500 waits",
    "CPU at 500 waits",
    "longest loop block at 500 waits",
    "memory per wait",
]

# The providers' triggers, which scripts/bench installs, are measured where they are there: that is not so in CI.
RIVALS = (Path(sys.prefix) / "rivals-events" / "made-of").is_file()
EVENTS = [
    name
    for name, needs_rivals in [
        ("fired of 1,000 waits, SQLite", False),
        ("connections to Kafka, most at once, SQLite", False),
        ("produced to event, p99, SQLite", True),
        ("threads per wait, AwaitMessage", True),
        ("memory per wait", False),
        ("CPU per message at 1,000 waits", False),
        ("loop lag at 5,000 messages a second, p99", False),
        ("SQS calls at 1,000 waits", False),
        ("sent to SQS to event, p99", True),
        ("memory per wait for SQS", True),
    ]
    if RIVALS or not needs_rivals
]


@pytest.mark.long
@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize("bench, names", [("webhook", WEBHOOK), ("dataflow", DATAFLOW), ("events", EVENTS)])
def test_bench_measures_every_figure(bench: str, names: list[str], request: pytest.FixtureRequest) -> None:
    if bench == "events":
        # It starts a Kafka of its own; where there can be none, this says so.
        request.getfixturevalue("kafka_server")
    done = subprocess.run(
        [sys.executable, "-P", "-m", f"bench.{bench}", "--quick", "--json"],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    report = json.loads(done.stdout)
    assert report["bench"] == bench
    assert [figure["name"] for figure in report["figures"]] == names
    for figure in report["figures"]:
        assert {"name", "value", "unit", "target", "met", "absolutes"} == set(figure)
        assert figure["value"] > 0
        assert figure["absolutes"]
    assert (done.returncode == 0) == all(figure["met"] for figure in report["figures"])
