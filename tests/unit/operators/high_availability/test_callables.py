"""Which functions a triggerer can import."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from deferrable_ops.operators.high_availability.check_callables import dotted_path, triggerer_import_problem


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A DAGs folder and a plugins folder within it, both on sys.path, as in a worker."""
    for folder in ("dags", "dags/plugins", "dags/team"):
        (tmp_path / folder).mkdir()
    source = "class Checks:\n    @staticmethod\n    def check(): ...\n"
    source += "def check(): ...\ndef outer():\n    def inner(): ...\n    return inner\n"
    (tmp_path / "dags" / "ha_test_beside.py").write_text(source)
    (tmp_path / "dags" / "plugins" / "ha_test_plugin.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path / "dags"))
    monkeypatch.syspath_prepend(str(tmp_path / "dags" / "plugins"))
    yield tmp_path / "dags"
    for name in ("ha_test_beside", "ha_test_plugin"):
        sys.modules.pop(name, None)


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def dag_file(folders: Path) -> str:
    return str(folders / "team" / "watch.py")


def test_function_of_an_installed_package_runs_in_the_triggerer(folders: Path) -> None:
    assert triggerer_import_problem(json.dumps, dag_file(folders)) is None
    assert dotted_path(json.dumps) == "json:dumps"


def test_function_of_a_plugin_runs_in_the_triggerer(folders: Path) -> None:
    plugin = module("ha_test_plugin")
    assert triggerer_import_problem(plugin.check, dag_file(folders)) is None
    assert triggerer_import_problem(plugin.Checks.check, dag_file(folders)) is None
    assert dotted_path(plugin.Checks.check) == "ha_test_plugin:Checks.check"


def test_function_beside_the_dag_runs_on_workers(folders: Path) -> None:
    beside = module("ha_test_beside")
    assert triggerer_import_problem(beside.check, dag_file(folders)) == (
        "python_callable is in ha_test_beside.py, which only workers can import"
    )


def test_function_of_the_dag_file_runs_on_workers(folders: Path) -> None:
    # Airflow loads it under a name that cannot be imported from sys.path.
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("unusual_prefix_0123_watch", folders / "ha_test_beside.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = sys.modules["unusual_prefix_0123_watch"] = module_from_spec(spec)
    spec.loader.exec_module(loaded)
    try:
        assert triggerer_import_problem(loaded.check, str(folders / "ha_test_beside.py")) is not None
    finally:
        del sys.modules["unusual_prefix_0123_watch"]


def test_function_without_a_path_runs_on_workers(folders: Path) -> None:
    plugin = module("ha_test_plugin")
    file = dag_file(folders)
    assert triggerer_import_problem(lambda: None, file) == "python_callable is a lambda"
    assert "defined inside a function" in str(triggerer_import_problem(plugin.outer(), file))
    assert "is a partial" in str(triggerer_import_problem(functools.partial(plugin.check), file))
    assert "is a method" in str(triggerer_import_problem(Path(file).exists, file))
    original, plugin.check = plugin.check, print
    assert "cannot be imported from its module under the name" in str(
        triggerer_import_problem(original, file)
    )
