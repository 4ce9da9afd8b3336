"""The bench of supervisor runs, and says what it measured. What it measures is not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.usefixtures("postgres")
def test_bench_measures_every_figure() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bench.supervisor", "--quick", "--json"],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    figures = {figure["name"]: figure for figure in json.loads(done.stdout)["figures"]}
    calls = figures.pop("calls an interval of 10 watchers")
    assert 0 < calls["value"] <= 2.5, "one an interval for each supervisord"
    assert calls["absolutes"]["rival"] >= 15
    for name in ("CPU of the watchers", "loop lag, p99", "memory per watcher"):
        assert figures.pop(name)["value"] > 0
    for name, figure in figures.items():  # where there is an sshd
        assert name == "SSH connections of 10 watchers"
        assert figure["value"] == 1
