"""The bench of high availability runs, and says what it measured. What it measures is not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]

# airflow-ha, which scripts/bench installs, is measured where it is there: that is not so in CI.
AIRFLOW_HA = (Path(sys.prefix) / "rivals-high_availability" / "made-of").is_file()
AGAINST_IT = ["memory per check", "CPU per check"] if AIRFLOW_HA else []


@pytest.mark.long
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
    assert list(figures) == ["worker-seconds per check and hour", *AGAINST_IT]
    workers = figures["worker-seconds per check and hour"]
    assert workers["value"] == 0
    assert workers["absolutes"].get("rival, processes per check") == (2 if AIRFLOW_HA else None)
    for name in AGAINST_IT:
        assert figures[name]["value"] > 0
