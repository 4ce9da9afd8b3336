"""The provider's metadata: Airflow accepts it, and it names everything that the package provides."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

import airflow
import jsonschema
import pytest
from airflow.cli import cli_parser
from airflow.providers_manager import ProvidersManager
from airflow.sdk import BaseOperator
from airflow.triggers.base import BaseTrigger

import deferrable_ops.operators
import deferrable_ops.triggers
from deferrable_ops.provider import get_provider_info

NAME = "airflow-deferrable-ops"


@pytest.fixture
def schema() -> dict[str, Any]:
    text = Path(airflow.__file__).with_name("provider_info.schema.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


def test_metadata_follows_airflows_schema_and_has_no_other_key(schema: dict[str, Any]) -> None:
    info = get_provider_info()
    jsonschema.validate(info, schema)
    # The schema allows unknown keys, but Airflow ignores them.
    assert info.keys() <= schema["properties"].keys()
    # Airflow finds the plugin by its entry point, and would complain about a second registration.
    assert "plugins" not in info


def test_airflow_finds_the_provider() -> None:
    provider = ProvidersManager().providers[NAME]
    assert provider.version == deferrable_ops.__version__
    info = get_provider_info()
    assert {key: provider.data[key] for key in info} == info


@pytest.mark.parametrize(
    ("key", "kind"), [("operators", BaseOperator), ("sensors", BaseOperator), ("triggers", BaseTrigger)]
)
def test_each_module_holds_classes_of_its_kind(key: str, kind: type) -> None:
    integrations = {one["integration-name"] for one in get_provider_info()["integrations"]}
    for entry in get_provider_info()[key]:
        assert entry["integration-name"] in integrations
        assert entry["python-modules"]
        for name in entry["python-modules"]:
            public = vars(importlib.import_module(name)).values()
            # A Supervisor makes a chain of operators, and is none.
            assert "Supervisor" in entry["integration-name"] or any(
                isinstance(one, type) and issubclass(one, kind) for one in public
            )


def test_every_feature_is_named() -> None:
    for key, package in (("operators", deferrable_ops.operators), ("triggers", deferrable_ops.triggers)):
        named = {name for entry in get_provider_info()[key] for name in entry["python-modules"]}
        modules = {module.name for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")}
        helpers = {"airflow_config_models", "base", "dag_run", "lifecycle", "templates", "worker_reasons"}
        assert {name.rpartition(".")[2] for name in modules - named} <= helpers
        assert named <= modules


def test_airflow_command_runs_a_command_of_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    options = cli_parser.get_parser().parse_args(["deferrable-ops", "waits", "--help"])
    with pytest.raises(SystemExit) as ended:
        options.func(options)
    assert ended.value.code == 0
    assert "usage: deferrable-ops waits" in capsys.readouterr().out


def test_airflow_command_has_the_exit_code_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    options = cli_parser.get_parser().parse_args(["deferrable-ops", "waits", "--state", "gone"])
    with pytest.raises(SystemExit) as ended:
        options.func(options)
    assert ended.value.code == 2
    assert "invalid choice: 'gone'" in capsys.readouterr().err
