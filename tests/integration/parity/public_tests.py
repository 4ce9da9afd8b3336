"""Runs the public tests of airflow-ha and airflow-supervisor on this library, with only their imports changed.

The packages are installed into a folder of their own, and only their tests are copied from this folder into a temporary
folder. So no test can import the packages themselves. supervisor-pydantic, which airflow-supervisor's tests import, can
be imported: check_supervisor_health() also accepts its client.
"""

from __future__ import annotations

import ast
import fcntl
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from real_airflow.cache import cache_folder

ROOT = Path(__file__).parents[3]
REQUIREMENTS = ROOT / "tests" / "requirements-parity.txt"
# What only the tests import. It is already beside the environment of the tests, or it is installed with the packages.
HELPERS: Final = ("airflow_balancer", "supervisor_pydantic")
PACKAGES: Final = ("airflow_ha", "airflow_supervisor")

_HIGH_AVAILABILITY: Final = "deferrable_ops.operators.high_availability"
_SUPERVISOR: Final = "deferrable_ops.operators.supervisor"
# In this order: the tests themselves, what they replace in the standard library, and the modules of the packages.
_RENAMES: Final = (
    (r"\b(airflow_ha|airflow_supervisor)\.tests\b", r"\1_tests"),
    (r"\bsupervisor_pydantic\.config\.supervisor\.gettempdir\b", "tempfile.gettempdir"),
    (r"\bsupervisor_pydantic\.config\.supervisor\.getuser\b", "getpass.getuser"),
    (r"\bairflow_ha\.operator\.datetime\b", f"{_HIGH_AVAILABILITY}.operator.datetime"),
    (r"\bairflow_ha(\.(common|operator|task))?\b", _HIGH_AVAILABILITY),
    (r"\bairflow_supervisor(\.(config|airflow)(\.[a-z_]+\b(?! import \*))?)?\b(?=[ .:\n]|$|\")", _SUPERVISOR),
)

# A name that the library does not have fails the tests that use it, and not all tests of the file that imports it.
_NAMES: Final = """
from importlib import import_module


class Missing:
    def __init__(self, name):
        self.__dict__["name"] = name

    def __getattr__(self, _):
        raise AttributeError(f"this library has no {self.__dict__['name']}")

    def __call__(self, *_, **__):
        raise AttributeError(f"this library has no {self.__dict__['name']}")


def take(module, name):
    return getattr(import_module(module), name, None) or Missing(name)
"""


class PackagesMissing(Exception):
    """The packages cannot be installed."""


@dataclass(frozen=True, slots=True)
class PublicTest:
    """How one test ended.

    :param name: the test's id for pytest, below the folder of the package's tests.
    :param problem: the first line of its error; "" if it passed.
    """

    name: str
    problem: str


def run_public_tests(package: str, folder: Path) -> list[PublicTest]:
    """Run the public tests of one package, and return the results.

    :param folder: an empty folder, into which the changed tests are written.
    :raises PackagesMissing: if the package cannot be installed.
    """
    installed = _installed()
    tests = folder / f"{package}_tests"
    shutil.copytree(installed / package / "tests", tests, ignore=shutil.ignore_patterns("__pycache__"))
    for helper in HELPERS:
        (folder / helper).symlink_to(installed / helper)
    (folder / "names_of_library.py").write_text(_NAMES)
    for file in tests.rglob("*"):
        if file.suffix in (".py", ".yaml"):
            file.write_text(_changed(file.read_text(), is_python=file.suffix == ".py"))
    return _run(tests, folder)


def _installed() -> Path:
    cache, wanted = cache_folder(), REQUIREMENTS.read_text()
    folder = cache / "parity"
    with (cache / "parity.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made-of").exists() or (folder / "made-of").read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            command += ["--no-deps", "--target", str(folder), "-r", str(REQUIREMENTS)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise PackagesMissing(f"{REQUIREMENTS.name} cannot be installed: {done.stderr.strip()}")
            (folder / "made-of").write_text(wanted)
    return folder


def _changed(text: str, *, is_python: bool) -> str:
    for pattern, replacement in _RENAMES:
        text = re.sub(pattern, replacement, text)
    return ast.unparse(_Imports().visit(ast.parse(text))) if is_python else text


class _Imports(ast.NodeTransformer):
    """Replaces ``from deferrable_ops... import name`` by a call that also returns if the name is missing."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | list[ast.AST]:
        if node.module is None or not node.module.startswith("deferrable_ops"):
            return node
        lines = [
            f"{one.asname or one.name} = __import__('names_of_library').take({node.module!r}, {one.name!r})"
            for one in node.names
        ]
        return list(ast.parse("\n".join(lines)).body)


def _run(tests: Path, folder: Path) -> list[PublicTest]:
    report = folder / "report.xml"
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        str(folder / "pytest.ini"),
        "--rootdir",
        str(tests),
    ]
    command += ["-p", "no:cacheprovider", "--import-mode=importlib", "--timeout=60"]
    command += ["-o", "junit_family=xunit1", f"--junitxml={report}", str(tests)]
    paths = [str(folder), *(entry for entry in sys.path if entry.endswith("airflow-config"))]
    inherited = os.environ.get("PYTHONPATH")
    environment = os.environ | {
        "AIRFLOW_HOME": str(folder / "airflow"),
        "PYTHONPATH": os.pathsep.join([*paths, *([inherited] if inherited else [])]),
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if not report.exists():
        raise AssertionError(f"pytest ended without a report:\n{done.stdout}\n{done.stderr}")
    return [_result(case) for case in ElementTree.parse(report).iter("testcase")]


def _result(case: ElementTree.Element) -> PublicTest:
    problem = next((found for found in case if found.tag in ("failure", "error", "skipped")), None)
    file, name = case.get("file", ""), case.get("name", "")
    module = file.removesuffix(".py").replace("/", ".")
    owner = case.get("classname", "").removeprefix(module).strip(".")
    message = "" if problem is None else (problem.get("message") or problem.text or problem.tag)
    return PublicTest("::".join(part for part in (file, owner, name) if part), message.partition("\n")[0])
