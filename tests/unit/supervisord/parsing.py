"""Parses rendered configuration files with supervisor's own parser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

supervisor_options = pytest.importorskip("supervisor.options")


def read_by_supervisor(text: str, folder: Path) -> Any:
    """Return the [supervisord] section with groups and servers, as parsed by supervisord."""
    options = supervisor_options.ServerOptions()
    options.here = str(folder)
    return options.read_config(_file(text, folder))


def read_by_supervisorctl(text: str, folder: Path) -> Any:
    return supervisor_options.ClientOptions().read_config(_file(text, folder))


def processes(text: str, folder: Path) -> dict[str, Any]:
    """Return supervisor's process configurations by name."""
    groups = read_by_supervisor(text, folder).process_group_configs
    return {process.name: process for group in groups for process in group.process_configs}


def _file(text: str, folder: Path) -> str:
    path = folder / "supervisord.conf"
    path.write_text(text, encoding="utf-8")
    return str(path)
