"""The bench of high availability runs, and says what it measured. What it measures is not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.usefixtures("postgres")
def test_bench_measures_every_figure() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bench.high_availability", "--quick", "--json"],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    figures = {figure["name"]: figure for figure in json.loads(done.stdout)["figures"]}
    assert list(figures) == ["worker-seconds per check and hour", "memory per check", "CPU per check"]
    assert figures["worker-seconds per check and hour"]["value"] == 0
    assert figures["memory per check"]["value"] > 0
    assert figures["CPU per check"]["value"] > 0
