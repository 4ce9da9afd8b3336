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


def ownership_problem(path: Path, found: Entry, uid: int) -> str | None:
    """Return why a directory is not one that nobody else writes to, and the fix; None if it is.

    :param uid: ours.
    """
    if stat.S_ISLNK(found.mode):
        return f"{path} is a link, which may lead anywhere tomorrow; give the directory that it leads to"
    if not stat.S_ISDIR(found.mode):
        return f"{path} is no directory; remove it, or give another path"
    if found.mode & stat.S_IWOTH and found.mode & stat.S_ISVTX:
        return f"{path} is for everybody's files; give a directory below it that is for this alone"
    if found.uid != uid:
        return f"{path} belongs to another user (uid {found.uid}, not {uid}); remove it, or give another path"
    if found.mode & _OTHERS_WRITE:
        return f"{path} can be written to by other users; say `chmod go-w {path}`, or give another path"
    return None


def replacement_problem(path: Path, found: Entry, parent: Entry, uid: int) -> str | None:
    """Return why nothing of ours may be below a path; None if it may.

    Whoever may rename what is in its directory could put something else there, today or when ours is gone. Where
    everybody makes entries, as in /tmp, nobody but its owner renames one for as long as the sticky bit is set; and one
    that is neither ours nor root's was put there for us to fall into.

    :param found: what is there; a link is not followed.
    :param parent: the directory that it is in; a link is followed.
    :param uid: ours.
    """
    above = path.parent
    if parent.uid not in (uid, _ROOT):
        return (
            f"{above} belongs to another user (uid {parent.uid}, not {uid}), who can put something else in the place "
            f"of {path}; give a path elsewhere"
        )
    if not parent.mode & stat.S_IWOTH:
        return None
    if not parent.mode & stat.S_ISVTX:
        return (
            f"everybody can put something else in the place of {path}; say `chmod +t {above}`, as it is with /tmp, or "
            "give a path elsewhere"
        )
    if found.uid not in (uid, _ROOT):
        return (
            f"{path} belongs to another user (uid {found.uid}), in a directory where everybody can make one; give a "
            "path elsewhere"
        )
    return None
