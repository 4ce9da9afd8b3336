"""The packages that a feature is measured against, which only the processes that run them see."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bench.common.command import Setting


def rivals_are_there(feature: str, setting: Setting) -> bool:
    """Return whether the rivals can be measured. Only a quick run, that measures nothing, goes without them.

    :raises RuntimeError: they are missing.
    """
    if (_folder(feature) / "made-of").is_file():
        return True
    if setting.quick:
        print(f"no rivals in {_folder(feature)}: what needs them is left out", file=sys.stderr)
        return False
    raise RuntimeError(f"no rivals in {_folder(feature)}: `scripts/bench {feature}` installs them")


def import_path(feature: str) -> str:
    """Return the ``PYTHONPATH`` of a process that runs the rivals."""
    return os.pathsep.join([str(_folder(feature)), os.environ.get("PYTHONPATH", "")])


def _folder(feature: str) -> Path:
    return Path(sys.prefix) / f"rivals-{feature}"  # where scripts/bench installs them
