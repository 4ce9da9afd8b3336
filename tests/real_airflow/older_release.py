"""The library as it was before its newest migration."""

from __future__ import annotations

import subprocess
from pathlib import Path

from deferrable_ops.inbox.database.schema import HEAD

_ROOT = Path(__file__).parents[2]


def extract_older_release(folder: Path) -> Path:
    """Extract the package of the commit before the newest migration, and return the folder for `PYTHONPATH`.

    A process with this `PYTHONPATH` imports the older package instead of the installed one.

    :param folder: an empty folder.
    """
    [newest] = (_ROOT / "deferrable_ops" / "inbox" / "migrations" / "versions").glob(f"{HEAD}_*.py")
    added = _git("log", "--diff-filter=A", "--format=%H", "--", str(newest)).decode().split()
    assert added, f"{newest.name} is not committed"
    archive = _git("archive", f"{added[-1]}~1", "deferrable_ops")
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return folder


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, check=True).stdout
