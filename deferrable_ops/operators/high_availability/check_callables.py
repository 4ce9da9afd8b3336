"""Determines whether a triggerer can import a check function, and the dotted path of this function."""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deferrable_ops.exceptions import InputError

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+(:[^\W\d]\w*(\.[^\W\d]\w*)*)?")
_FUNCTION_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*(\.[^\W\d]\w*)*")

IMPORT_FIX = (
    "to run the check in the triggerer, move the function into an installed package or the plugins folder, then pass "
    "the function or its dotted path"
)
USE_FIX = (
    "to run the check in the triggerer, use only what a check gets there, such as params and ti.xcom_pull"
)


def validate_path(path: str) -> str:
    """Return a dotted path unchanged if it is valid.

    :raises InputError: if the value is not a dotted path.
    """
    if not _PATH.fullmatch(path):
        raise InputError(
            f"python_callable={path!r} is not a dotted path; give one such as 'my_checks.orders.is_healthy'"
        )
    return path


def is_function_path(value: Any) -> bool:
    """Return whether a value is the dotted path of a function."""
    return isinstance(value, str) and _FUNCTION_PATH.fullmatch(value) is not None


def find_imported(path: str) -> Callable[..., Any] | None:
    """If the module of a function is already imported, return the function with this dotted path; otherwise return
    None.
    """
    module = path.partition(":")[0] if ":" in path else path.rpartition(".")[0]
    found = _resolve(path) if module in sys.modules else None
    return found if callable(found) else None


def triggerer_import_problem(
    check: Callable[..., Any], dag_file: str | None, argument: str = "python_callable"
) -> str | None:
    """Return why a triggerer cannot import a check function; None if a triggerer can import the function.

    The ``sys.path`` of a triggerer contains neither the DAG file nor the folder of the DAG file. So if a module was
    found through the entry of ``sys.path`` that contains the DAG file, only workers can import the module.

    :param dag_file: the path of the DAG file that creates the operator; None if this path is unknown.
    :param argument: the operator's argument that contains the function.
    """
    name = getattr(check, "__qualname__", None)
    module = sys.modules.get(getattr(check, "__module__", None) or "")
    if not (inspect.isfunction(check) or inspect.isclass(check)) or name is None:
        return f"{argument} is a {type(check).__name__}, not a function of a module"
    if name.endswith("<lambda>"):
        return f"{argument} is a lambda"
    if "<locals>" in name:
        return f"{argument} is defined inside a function ({name})"
    if module is None or _resolve(f"{module.__name__}:{name}") is not check:
        return f"{argument} cannot be imported from its module under the name {name}"
    file = getattr(module, "__file__", None)
    if file is None:
        return f"{argument} is in the module {module.__name__}, which has no file"
    if module.__name__.partition(".")[0] == "deferrable_ops":
        # The library itself is installed on every machine that runs its triggers.
        return None
    if module.__name__ == "__main__" or _is_in_dags_folder(Path(file).resolve(), dag_file):
        return f"{argument} is in {Path(file).name}, which only workers can import"
    return None


def dotted_path(check: Callable[..., Any]) -> str:
    """Return the dotted path with which a triggerer imports a check function."""
    return f"{check.__module__}:{check.__qualname__}"


def _resolve(path: str) -> Any:
    try:
        return pkgutil.resolve_name(path)
    except (AttributeError, ImportError, ValueError):
        return None


def _is_in_dags_folder(file: Path, dag_file: str | None) -> bool:
    if dag_file is None:
        return False
    dag = Path(dag_file).resolve()
    entries = [
        entry for entry in (Path(entry or ".").resolve() for entry in sys.path) if entry in file.parents
    ]
    # The module is below no entry of sys.path, so Airflow loaded it as a DAG file.
    if not entries:
        return True
    return max(entries, key=lambda entry: len(entry.parts)) in dag.parents
