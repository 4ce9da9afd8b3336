"""The bench of bursts runs on a real Airflow, and prints its figures."""

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
        [sys.executable, "-P", "-m", "bench.bursts", "--quick", "--json"],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    figures = {figure["name"]: figure["value"] for figure in json.loads(done.stdout)["figures"]}
    assert figures.pop("of 40, ends on a worker") == 0
    assert set(figures) == {"last of 40 ends", "first of 40 ends / last", "40 tasks wait"}
    assert all(value > 0 for value in figures.values())
