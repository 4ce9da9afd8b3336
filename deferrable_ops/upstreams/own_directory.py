"""Whether a directory is ours alone: what supervisord reads there becomes commands, and what it writes is read back."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ROOT: Final = 0
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Entry:
    """What a directory has under a name, without following links.

    :param mode: type and permissions, as ``st_mode``.
    :param uid: whose it is.
    """

    mode: int
    uid: int


def why_not_ours(path: Path, found: Entry, uid: int) -> str | None:
    """Return why a directory is not one that nobody else writes to, and the fix; None if it is.

    :param uid: ours.
    """
    if stat.S_ISLNK(found.mode):
        return f"{path} is a link, which may lead anywhere tomorrow; give the directory that it leads to"
    if not stat.S_ISDIR(found.mode):
        return f"{path} is no directory; remove it, or give another path"
    if found.uid != uid:
        return f"{path} belongs to another user (uid {found.uid}, not {uid}); remove it, or give another path"
    if found.mode & _OTHERS_WRITE:
        return f"{path} can be written to by other users; say `chmod go-w {path}`, or give another path"
    return None


def why_not_safe(directory: Path, its_mode: int, name: str, found: Entry, uid: int) -> str | None:
    """Return why nothing of ours may be below an entry of a directory; None if it may.

    Where everybody may make entries, as in /tmp, one that is neither ours nor root's was put there for us to fall into.

    :param its_mode: the directory's own.
    """
    if its_mode & stat.S_IWOTH and found.uid not in (uid, _ROOT):
        return (
            f"{directory / name} belongs to another user (uid {found.uid}), in a directory where everybody can make "
            "one; give a path elsewhere"
        )
    return None
