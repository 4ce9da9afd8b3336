"""Virtual environments with other versions of Python and Airflow, one per version of Python, kept between runs."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from real_airflow.cache import cache_folder

ROOT = Path(__file__).parents[3]
PINS = (ROOT / "requirements-dev.txt").read_text()
_AIRFLOW_ITSELF = re.compile(r"^apache-airflow(-core|-task-sdk)?==.*\n", re.MULTILINE)


class VersionMissing(Exception):
    """This machine has no such Python, or the pinned packages cannot be installed; the message names the versions."""


@contextmanager
def environment(python: str, airflow: str) -> Iterator[Path]:
    """Install the wheel that is tested beside a version of Airflow, and return the environment's folder of programs.

    :param python: for example 3.12. All other packages have the versions of `requirements-dev.txt`.
    :param airflow: for example 3.3.1.
    :raises VersionMissing: if the combination cannot be had here.
    """
    interpreter = _find_python(python)
    if interpreter is None:
        raise VersionMissing(
            f"Airflow {airflow} on Python {python}: pyenv, uv and PATH have no Python {python}"
        )
    cache = cache_folder()
    folder = cache / f"python-{python}"
    with (cache / f"python-{python}.lock").open("w") as lock:
        # Another run of the tests may want another Airflow in the same environment.
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            _make(folder, interpreter)
            _pip(folder, *(f"{name}=={version}" for name, version in _airflow_itself(airflow)))
        except subprocess.CalledProcessError as error:
            raise VersionMissing(f"Airflow {airflow} on Python {python}: {error.output.strip()}") from None
        [wheel] = (Path(sys.prefix) / "wheel").glob("*.whl")
        _pip(folder, "--force-reinstall", str(wheel))
        yield folder / "bin"


def run(*command: str | Path, folder: Path) -> str:
    """Run a program with an AIRFLOW_HOME of its own, and return what it printed.

    :param folder: where it runs, and its AIRFLOW_HOME.
    :raises AssertionError: if it fails.
    """
    done = _run(*command, folder=folder)
    assert done.returncode == 0, f"{' '.join(map(str, command))} failed:\n{done.stdout}"
    return done.stdout


def run_failing(*command: str | Path, folder: Path) -> str:
    """Run a program that must fail, and return what it printed."""
    done = _run(*command, folder=folder)
    assert done.returncode != 0, done.stdout
    return done.stdout


def _run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIRFLOW", "PYTHON", "PYTEST"))
    }
    return subprocess.run(
        command,
        env={**inherited, "AIRFLOW_HOME": str(folder), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def _make(folder: Path, interpreter: Path) -> None:
    """Create the environment with all pins but Airflow itself, unless it has them."""
    pins = _AIRFLOW_ITSELF.sub("", PINS)
    wanted = f"{interpreter}\n{pins}"
    made_of = folder / "made-of"
    if made_of.exists() and made_of.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    _checked(interpreter, "-m", "venv", folder)
    (folder / "pins.txt").write_text(pins)
    _pip(folder, "-r", str(folder / "pins.txt"))
    made_of.write_text(wanted)


def _airflow_itself(airflow: str) -> list[tuple[str, str]]:
    """Return the distributions of one release of Airflow: the task SDK of Airflow 3.x.y is 1.x.y."""
    task_sdk = f"1.{airflow.partition('.')[2]}"
    return [
        ("apache-airflow", airflow),
        ("apache-airflow-core", airflow),
        ("apache-airflow-task-sdk", task_sdk),
    ]


def _pip(folder: Path, *arguments: str) -> None:
    options = ("--quiet", "--disable-pip-version-check", "--no-deps")
    _checked(folder / "bin" / "python", "-m", "pip", "install", *options, *arguments)


def _checked(*command: str | Path) -> None:
    subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)


def _find_python(version: str) -> Path | None:
    """Return the newest interpreter of this version that runs and has the modules that Airflow needs."""
    check = f"import ensurepip, sqlite3, ssl, sys; assert '%d.%d' % sys.version_info[:2] == '{version}'"
    for candidate in _candidates(version):
        if subprocess.run([candidate, "-c", check], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def _candidates(version: str) -> Iterator[Path]:
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    yield from sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)
    if uv := shutil.which("uv"):
        found = subprocess.run([uv, "python", "find", version], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            yield Path(found.stdout.strip())
    if on_path := shutil.which(f"python{version}"):
        yield Path(on_path)
