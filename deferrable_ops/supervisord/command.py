"""The commands ``render`` and ``check``, which are subcommands of ``deferrable-ops`` and of ``python -m
deferrable_ops.supervisord``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, Final

from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord.airflow import (
    SupervisorAirflowConfiguration,
    SupervisorConvenienceConfiguration,
    SupervisorSSHAirflowConfiguration,
)
from deferrable_ops.supervisord.configuration import SupervisorConfiguration
from deferrable_ops.supervisord.kinds import KINDS
from deferrable_ops.supervisord.yaml_files import validated, without_marks, yaml_mapping

_KINDS: Final[dict[str, type[SupervisorConfiguration]]] = dict(
    zip(
        KINDS,
        (SupervisorConfiguration, SupervisorAirflowConfiguration, SupervisorSSHAirflowConfiguration),
        strict=True,
    )
)


def render(options: argparse.Namespace) -> int:
    """Print the text of supervisord's configuration file, or write the text to the file ``--output``."""
    config = read_configuration(options)
    text = config.to_cfg()
    if options.output is not None:
        for name, script in config.environment_files().items():
            _write_private(options.output.with_name(name), script)
        _write_private(options.output, text)
        return 0
    if config.environment_files():
        raise InputError(
            f"{options.file} has environment values with quotes or line breaks, which need a file of their own; give "
            "--output PATH to write the files with mode 0600"
        )
    if config.has_secrets:
        raise InputError(
            f"{options.file} contains a password, which is not printed; give --output PATH to write a file "
            "with mode 0600"
        )
    sys.stdout.write(text)
    return 0


def check(options: argparse.Namespace) -> int:
    """Validate a configuration, and print its class, programs, Unix socket and TCP port."""
    config = read_configuration(options)
    config.to_cfg()
    programs = ", ".join(config.programs) or "none"
    reached = [
        *([f"the socket {config.unix_http_server.file}"] if config.unix_http_server else []),
        *([f"port {config.inet_http_server.port}"] if config.inet_http_server else []),
    ]
    sys.stdout.write(
        f"{options.file} is a {type(config).__name__}\n"
        f"programs: {programs}\n"
        f"supervisord listens on: {' and '.join(reached) or 'nothing'}\n"
    )
    return 0


def read_configuration(options: argparse.Namespace, default: str = "plain") -> SupervisorConfiguration:
    """Return the configuration in the YAML file that the user gave to a command. Warnings about this configuration are
    written to stderr.

    :param default: the kind of the configuration if neither the option ``--as`` nor the key ``_target_`` in the file
        selects a kind.
    :raises InputError: if the file cannot be read, or is invalid.
    """
    data, source = yaml_mapping(options.file), str(options.file)
    kind = _KINDS[options.kind] if options.kind else _kind_of(source, data, _KINDS[default])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = validated(kind, without_marks(source, data), source)
    for warning in caught:
        sys.stderr.write(f"{source}: {warning.message}\n")
    return config


def _kind_of(
    source: str, data: dict[str, Any], default: type[SupervisorConfiguration]
) -> type[SupervisorConfiguration]:
    target = data.get("_target_")
    if target is None:
        return default
    name = str(target).rpartition(".")[2]
    known = {kind.__name__: kind for kind in _KINDS.values()}
    known["SupervisorConvenienceConfiguration"] = SupervisorConvenienceConfiguration
    if name not in known:
        raise InputError(
            f"{source} has _target_: {target}, which is not a configuration of supervisord; use one of "
            f"{', '.join(known)}, or select the kind with --as {' or '.join(_KINDS)}"
        )
    return known[name]


def _write_private(path: Path, text: str) -> None:
    """Replace a file atomically. The file is written with mode 0600, so only the current user can read it."""
    try:
        # The temporary directory has mode 0700.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".supervisord-") as folder:
            new = Path(folder) / "new"
            new.touch(mode=0o600)
            new.write_text(text, encoding="utf-8")
            new.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
