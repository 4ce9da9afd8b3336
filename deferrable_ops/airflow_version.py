"""Raises an ImportError when this module is imported, if the installed Airflow is too old.

Without this check, the library would import a name that an old Airflow does not have, and the message of that
ImportError would not tell the user that Airflow is too old. ``deferrable_ops/__init__.py`` does not import this module,
because an error in the provider's entry point would stop every component of Airflow.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

OLDEST = (3, 3, 1)


def require_airflow() -> None:
    """Check the version of the installed Airflow. If Airflow is not installed, do nothing.

    :raises ImportError: if Airflow is too old; the error message names both versions and the fix.
    """
    # Since Airflow 3.0, the distribution apache-airflow only depends on apache-airflow-core.
    installed = _version("apache-airflow-core") or _version("apache-airflow")
    if installed is None:
        return
    from packaging.version import Version

    if Version(installed).release < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ImportError(
            f"airflow-deferrable-ops needs Airflow {oldest} or newer, but Airflow {installed} is installed; upgrade "
            f'Airflow: pip install "apache-airflow>={oldest}"'
        )


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


require_airflow()
