"""The installed wheel on every supported combination of Airflow and Python that this machine can have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from integration.versions.environments import ROOT, VersionMissing, environment, run, run_failing

AIRFLOWS = ("3.3.1", "3.3.2")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TOO_OLD = "3.3.0"
SMOKE = Path(__file__).with_name("smoke.py")
MESSAGE = (
    f"ImportError: airflow-deferrable-ops needs Airflow 3.3.1 or newer, but Airflow {TOO_OLD} is installed; "
    'upgrade Airflow: pip install "apache-airflow>=3.3.1"'
)

# The first run downloads about 200 packages for each Python.
pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture
def programs(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The programs of an environment. A combination that cannot be had is skipped, and pytest prints the reason."""
    python, airflow = request.param
    with ExitStack() as stack:
        try:
            bin_folder = stack.enter_context(environment(python, airflow))
        except VersionMissing as missing:
            pytest.skip(str(missing))
        yield bin_folder


def combinations(*airflows: str) -> pytest.MarkDecorator:
    pairs = [(python, airflow) for python in PYTHONS for airflow in airflows]
    ids = [f"airflow-{airflow}-python-{python}" for python, airflow in pairs]
    return pytest.mark.parametrize("programs", pairs, ids=ids, indirect=True)


@combinations(*AIRFLOWS)
def test_wheel_works(programs: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run(programs / "python", "-m", "pip", "check", folder=tmp_path)
    assert "usage: deferrable-ops" in run(programs / "deferrable-ops", "--help", folder=tmp_path)

    printed = run(programs / "python", SMOKE, ROOT / "examples", folder=tmp_path).splitlines()[-1]
    python, airflow = request.node.callspec.params["programs"]
    found = re.fullmatch(r"python (\S+) airflow (\S+) modules (\d+) dags (\d+)", printed)
    assert found, printed
    assert found[1].startswith(f"{python}.")
    assert found[2] == airflow
    assert int(found[4]) >= len(list((ROOT / "examples").glob("example_*.py")))
    print(printed)

    guide = [ROOT / "tests" / "guide", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml"]
    print(run(programs / "pytest", "-q", "-p", "no:cacheprovider", *guide, folder=tmp_path).splitlines()[-1])


@combinations(TOO_OLD)
def test_older_airflow_gives_one_clear_error_at_import_and_still_starts(
    programs: Path, tmp_path: Path
) -> None:
    """The entry points for Airflow must not stop its components."""
    for module in ("operators.webhook", "triggers.webhook", "inbox"):
        printed = run_failing(programs / "python", "-c", f"import deferrable_ops.{module}", folder=tmp_path)
        assert printed.splitlines()[-1] == MESSAGE
        assert printed.count("Traceback") == 1
    assert TOO_OLD in run(programs / "airflow", "version", folder=tmp_path)
