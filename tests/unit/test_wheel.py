"""What is tested is what is released: the wheel, complete, and nothing beside the package in it."""

from __future__ import annotations

import importlib.util
import os
import site
from importlib import metadata
from pathlib import Path

import pytest

import deferrable_ops

DISTRIBUTION = "airflow-deferrable-ops"
IN_SITE_PACKAGES = any(
    Path(deferrable_ops.__file__).is_relative_to(folder) for folder in site.getsitepackages()
)


def test_tested_package_is_the_installed_wheel_in_ci() -> None:
    assert IN_SITE_PACKAGES or os.environ.get("CI") != "true", deferrable_ops.__file__


def test_folder_tests_airflow_does_not_stand_before_airflow_itself() -> None:
    spec = importlib.util.find_spec("airflow")

    assert spec is not None
    assert spec.origin is not None, "tests/airflow has become a package: remove its __init__.py"
    assert "site-packages" in spec.origin


@pytest.fixture
def files() -> set[str]:
    if not IN_SITE_PACKAGES:
        pytest.skip(f"the package is not installed, it comes from {deferrable_ops.__file__}")
    return {str(file) for file in metadata.files(DISTRIBUTION) or [] if "__pycache__" not in str(file)}


def test_wheel_holds_the_package_and_no_other_folder(files: set[str]) -> None:
    folders = {file.split("/")[0] for file in files if not file.startswith("..")}

    assert folders == {"deferrable_ops", f"airflow_deferrable_ops-{metadata.version(DISTRIBUTION)}.dist-info"}


def test_wheel_holds_types_licence_and_migrations(files: set[str]) -> None:
    assert "deferrable_ops/py.typed" in files
    assert "deferrable_ops/inbox/migrations/env.py" in files
    assert any(file.startswith("deferrable_ops/inbox/migrations/versions/0001") for file in files)
    assert any(file.endswith("licenses/LICENSE") for file in files)


def test_every_file_of_the_package_is_in_the_wheel(files: set[str]) -> None:
    root = Path(__file__).parents[2]
    source = {
        path for path in (root / "deferrable_ops").rglob("*") if path.is_file() and path.suffix != ".pyc"
    }

    assert {str(path.relative_to(root)) for path in source} - files == set()


@pytest.mark.parametrize("group", ["airflow.plugins", "apache_airflow_provider", "console_scripts"])
def test_entry_points_lead_to_something(files: set[str], group: str) -> None:
    ours = [point for point in metadata.entry_points(group=group) if point.dist.name == DISTRIBUTION]

    assert len(ours) == 1
    assert callable(ours[0].load())
