"""A folder for what tests fetch once per machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder, which exists."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "deferrable-ops-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
