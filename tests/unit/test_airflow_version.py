"""An Airflow that is too old."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from deferrable_ops import airflow_version
from deferrable_ops.airflow_version import OLDEST, require_airflow

MESSAGE = (
    "ImportError: airflow-deferrable-ops needs Airflow 3.3.1 or newer, but Airflow 3.2.9 is installed; "
    'upgrade Airflow: pip install "apache-airflow>=3.3.1"'
)


@pytest.mark.parametrize("module", ["operators.webhook", "triggers.webhook", "inbox"])
def test_import_on_an_older_airflow_names_both_versions_and_the_fix(tmp_path: Path, module: str) -> None:
    metadata = tmp_path / "apache_airflow_core-3.2.9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: apache-airflow-core\nVersion: 3.2.9\n")
    done = subprocess.run(
        [sys.executable, "-c", f"import deferrable_ops.{module}"],
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == MESSAGE


@pytest.mark.parametrize(
    ("installed", "is_old"),
    [
        ({"apache-airflow": "2.11.0"}, True),
        ({"apache-airflow": "3.9.0", "apache-airflow-core": "3.3.0"}, True),
        ({"apache-airflow-core": "3.3.1rc1"}, False),
        ({"apache-airflow-core": "3.10.0.dev0"}, False),
        ({}, False),
    ],
)
def test_version_is_compared_by_its_numbers(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], is_old: bool
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(airflow_version, "version", version)
    if is_old:
        with pytest.raises(ImportError, match="needs Airflow"):
            require_airflow()
    else:
        require_airflow()


def test_oldest_version_is_the_one_that_the_wheel_requires() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert f"apache-airflow>={'.'.join(map(str, OLDEST))}" in project["dependencies"]
