"""Which checks need a worker, because they use something that a triggerer does not have."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.operators.high_availability.test_operator import operator

from deferrable_ops.exceptions import InputError

SOURCE = """
import dataclasses, functools

def takes_dag(dag): ...
def takes_var(url, var=None): ...
def pushes(ti, **context): ti.xcom_push(key="a", value=1)
def pushes_from_context(**context): context["task_instance"].xcom_push(key="a", value=1)
def pushes_by_alias(**kw):
    one = kw.get("ti")
    if one:
        one.xcom_push(key="a", value=1)
async def looks_up(**context): return context["var"]["value"]
def looks_up_with_get(**context): return context.get("conn")
def reads_the_run(dag_run): return dag_run.end_date
class Queue:
    def __init__(self, name): ...
    def __call__(self, task): ...

def plain(): ...
def takes_what_is_there(ti, dag_run, params, ds, templates_dict, run_id, ts_nodash):
    return ti.xcom_pull(task_ids="a"), dag_run.conf, dag_run.start_date, "dag", {"var": 1}["var"]
def keyword(url, *, retries=1, **context): return context["dag_run"].conf, url.xcom_push
def conn_as_own_argument(conn): ...
class Price:
    def __init__(self, symbol): ...
    def __call__(self, ds): ...

def takes_url(url): ...
@functools.lru_cache
def decorated(dag): ...
"""
NEEDS_WORKER = {
    "takes_dag": "dag",
    "takes_var": "var",
    "pushes": "ti.xcom_push",
    "pushes_from_context": "task_instance.xcom_push",
    "pushes_by_alias": "ti.xcom_push",
    "looks_up": "var",
    "looks_up_with_get": "conn",
    "reads_the_run": "dag_run.end_date",
    "Queue": "task",
}
IN_THE_TRIGGERER = ("plain", "takes_what_is_there", "keyword", "conn_as_own_argument", "Price")
OP_KWARGS: dict[str, dict[str, Any]] = {
    "takes_var": {"url": "x"},
    "keyword": {"url": "x"},
    "conn_as_own_argument": {"conn": "x"},
    "Queue": {"name": "x"},
    "Price": {"symbol": "x"},
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an importable module that was not imported."""
    (tmp_path / "ha_package").mkdir()
    (tmp_path / "ha_package" / "__init__.py").write_text("raise ImportError('only a triggerer imports it')")
    for file in (tmp_path / "ha_package" / "checks.py", tmp_path / "ha_checks_of_a_plugin.py"):
        file.write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "ha_checks_of_a_plugin"
    sys.modules.pop("ha_checks_of_a_plugin", None)


def function(module: str, name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


@pytest.mark.parametrize("name", NEEDS_WORKER)
def test_function_that_uses_what_only_a_worker_has_runs_on_a_worker(module: str, name: str) -> None:
    ha = operator(function(module, name), op_kwargs=OP_KWARGS.get(name))
    used = f"python_callable uses {NEEDS_WORKER[name]}, which a triggerer does not have"
    assert ha.worker_start_reason == used
    assert ha.check is None
    assert "use only what a check gets there" in ha.worker_check_fix


@pytest.mark.parametrize("name", NEEDS_WORKER)
def test_path_of_such_a_function_is_refused_without_an_import(module: str, name: str) -> None:
    for path in (f"{module}.{name}", f"ha_package.checks.{name}", f"ha_package.checks:{name}"):
        with pytest.raises(InputError, match=f"uses {NEEDS_WORKER[name]}, which a triggerer does not have"):
            operator(path, op_kwargs=OP_KWARGS.get(name))
    assert not {module, "ha_package"} & set(sys.modules)


@pytest.mark.parametrize("name", IN_THE_TRIGGERER)
def test_check_that_uses_only_what_a_triggerer_has_runs_there(module: str, name: str) -> None:
    op_kwargs = OP_KWARGS.get(name)
    assert operator(f"{module}.{name}", op_kwargs=op_kwargs).worker_start_reason is None
    assert operator(function(module, name), op_kwargs=op_kwargs).worker_start_reason is None


def test_parameter_that_nothing_sets_is_refused(module: str) -> None:
    for check in (f"{module}.takes_url", f"{module}.keyword", function(module, "takes_url")):
        with pytest.raises(InputError, match="required parameter 'url', which is neither in op_kwargs"):
            operator(check)
    assert operator(f"{module}.takes_url", op_args=["x"]).worker_start_reason is None


@pytest.mark.parametrize("path", ["no.such.module", "ha_package.missing.check", "json.no", "sys.exit"])
def test_check_whose_source_is_unknown_is_accepted(module: str, path: str) -> None:
    assert operator(path).worker_start_reason is None


def test_decorated_function_named_by_its_path_is_accepted(module: str) -> None:
    assert operator(f"{module}.decorated").worker_start_reason is None
