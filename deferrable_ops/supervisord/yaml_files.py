"""Loads the configuration of a supervisord from a YAML file, or from the YAML files that Hydra composes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from deferrable_ops.exceptions import ConfigurationError, InputError

M = TypeVar("M", bound=BaseModel)

_HYDRA_KEYS: Final = frozenset({"_target_", "_convert_", "_recursive_", "_partial_"})


def yaml_mapping(path: str | Path) -> dict[str, Any]:
    """Return the content of a YAML file as a dict, including the special keys of Hydra.

    :raises InputError: if the file cannot be read, or does not contain a mapping.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; save the file as UTF-8") from None
    except yaml.YAMLError as error:
        # Do not include the error's text: it quotes the file, which may contain a password.
        raise InputError(f"{path} is not valid YAML{_location(error)}") from None
    if not isinstance(data, dict):
        raise InputError(
            f"{path} must contain a mapping of the configuration's fields, such as program: and working_dir:"
        )
    return data


def without_marks(path: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a YAML file without the special keys of Hydra, such as ``_target_``.

    :raises InputError: if the data contains ``${oc...}``, which only Hydra can resolve.
    """
    return {key: _without_marks(path, value) for key, value in data.items() if key not in _HYDRA_KEYS}


def compose(config_dir: str, config_name: str, overrides: Sequence[str], start: str | Path) -> Any:
    """Compose YAML files with Hydra, create the objects that ``_target_`` names, and return the result.

    :param config_dir: the name of the folder with the YAML files. The folder is searched in `start` and its parents.
    :param config_name: the file with which Hydra begins, without ``.yaml``. With "", only `overrides` choose files.
    :param start: a file or a folder. The search begins in this folder, or in the folder of this file.
    :raises ConfigurationError: if Hydra is not installed.
    :raises InputError: if the folder is not found, or if Hydra cannot compose the files.
    """
    try:
        hydra: Any = import_module("hydra")
        instantiate: Any = import_module("hydra.utils").instantiate
    except ImportError as error:
        raise ConfigurationError(
            f"Hydra cannot be imported ({error}); run `pip install hydra-core`, or read one YAML file with from_yaml()"
        ) from error
    folder = _find_folder(config_dir, config_name, Path(start).absolute())
    errors = (
        import_module("hydra.errors").HydraException,
        import_module("omegaconf.errors").OmegaConfBaseException,
    )
    try:
        with hydra.initialize_config_dir(str(folder), version_base=None):
            return instantiate(hydra.compose(config_name or None, list(overrides)))
    except errors as error:
        raise InputError(f"{folder} cannot be composed by Hydra: {error}") from error


def validated(kind: type[M], data: Mapping[str, Any], source: str) -> M:
    """Validate the data, and return a model of the class `kind`.

    :raises InputError: if the data is invalid. The error message has one line for each invalid field, but does not
        contain the values.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        lines = [f"{_field(item['loc'])}{item['msg'].removeprefix('Value error, ')}" for item in found]
        raise InputError(
            "\n  ".join([f"{source} is not a valid {kind.__name__}; correct these fields:", *lines])
        ) from None


def _find_folder(config_dir: str, config_name: str, start: Path) -> Path:
    for parent in (start, *start.parents):
        folder = parent / config_dir
        files = (
            [folder / f"{config_name}{suffix}" for suffix in (".yaml", ".yml")] if config_name else [folder]
        )
        if any(file.exists() for file in files):
            return folder
    raise InputError(
        f"no folder {config_dir!r}{f' with the file {config_name}.yaml' if config_name else ''} in {start} or its "
        "parents; check config_dir= and config_name=, or set basepath="
    )


def _field(location: tuple[int | str, ...]) -> str:
    return f"{'.'.join(map(str, location))}: " if location else ""


def _without_marks(path: str, data: Any) -> Any:
    if isinstance(data, dict):
        return without_marks(path, data)
    if isinstance(data, list):
        return [_without_marks(path, item) for item in data]
    if isinstance(data, str) and "${oc." in data:
        raise InputError(
            f"{path} contains ${{oc...}}, which only Hydra resolves; load the file with Hydra or airflow-config"
        )
    return data


def _location(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"; check line {mark.line + 1}" if mark is not None else ""
