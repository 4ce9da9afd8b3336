"""Loads the configuration of a supervisord from YAML files that the library airflow-config reads."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from deferrable_ops.exceptions import ConfigurationError, InputError
from deferrable_ops.supervisord import SupervisorAirflowConfiguration


def load_airflow_config(
    config_dir: str = "config",
    config_name: str = "",
    overrides: Sequence[str] | None = None,
    *,
    basepath: str | Path = "",
    extension: str = "supervisor",
) -> SupervisorAirflowConfiguration:
    """Return the supervisord configuration that a YAML file of airflow-config contains under ``extensions:``.

    :param config_dir: the name of the folder with the YAML file. The folder is in the directory of the calling file, or
        in one of that directory's parents.
    :param config_name: name of the YAML file in the folder `config_dir`, without ``.yaml``.
    :param overrides: Hydra overrides, for example ``["+extensions.supervisor.check_interval=10"]``.
    :param basepath: the search for `config_dir` begins at this file or folder; by default at the calling file.
    :param extension: the key under ``extensions:`` in the YAML file.
    :raises ConfigurationError: if airflow-config is not installed or cannot be imported.
    :raises InputError: if the YAML file has no supervisord configuration under the key `extension`.
    """
    try:
        airflow_config: Any = import_module("airflow_config")
    except ImportError as error:
        raise ConfigurationError(
            f'airflow-config cannot be imported ({error}); run pip install "airflow-config[airflow3]", or read plain '
            "YAML with SupervisorAirflowConfiguration.from_yaml()"
        ) from error
    base = str(basepath) or _caller()
    config: Any = airflow_config.load_config(config_dir, config_name, list(overrides or []), basepath=base)
    found = config.extensions.get(extension)
    if not isinstance(found, SupervisorAirflowConfiguration):
        raise InputError(
            f"extensions.{extension} of {config_dir}/{config_name} is not a configuration of a supervisord; set its "
            "_target_ to deferrable_ops.operators.supervisor.SupervisorAirflowConfiguration, or to "
            "SupervisorSSHAirflowConfiguration"
        )
    return found


load_airflow_ssh_config = load_airflow_config


def _caller() -> str:
    frame = inspect.currentframe()
    caller = frame.f_back.f_back if frame is not None and frame.f_back is not None else None
    return "" if caller is None else caller.f_code.co_filename
