"""Checks that only this account can write to a directory.

This check is needed because supervisord runs the commands that the files in its directory contain, and because this
library reads the files that supervisord writes to its directory.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ROOT: Final = 0
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Entry:
    """A directory entry. If the entry is a link, this describes the link itself.

    :param mode: type and permissions, as in ``st_mode``.
    :param uid: user id of the owner.
    """

    mode: int
    uid: int


def ownership_problem(path: Path, found: Entry, uid: int) -> str | None:
    """Return why other users could write to a directory, and how to fix this; None if only this account can write.

    :param uid: user id of this account.
    """
    if stat.S_ISLNK(found.mode):
        return f"{path} is a link, and its target may change; give the directory that it points to"
    if not stat.S_ISDIR(found.mode):
        return f"{path} is not a directory; remove it, or give another path"
    if found.mode & stat.S_IWOTH and found.mode & stat.S_ISVTX:
        return f"{path} is shared by all users; give a directory below it that has no other purpose"
    if found.uid != uid:
        return f"{path} belongs to another user (uid {found.uid}, not {uid}); remove it, or give another path"
    if found.mode & _OTHERS_WRITE:
        return f"{path} can be written to by other users; run `chmod go-w {path}`, or give another path"
    return None


def replacement_problem(path: Path, found: Entry, parent: Entry, uid: int) -> str | None:
    """Return how another user could replace a directory entry, and how to fix this; None if no other user can.

    A user who may rename entries of the parent directory can replace them, now or after our entry was removed. In a
    directory to which all users can write, such as /tmp, the sticky bit protects an entry: only the owner of the entry,
    the owner of the directory and root can rename the entry. If an entry of such a directory belongs neither to this
    account nor to root, another user may have created it as a trap.

    Members of the parent's group are trusted: the parent is accepted even if its group can write to it.

    :param found: the entry. If it is a link: the link itself.
    :param parent: the directory that contains the entry. If its path is a link: the target of the link.
    :param uid: user id of this account.
    """
    above = path.parent
    if parent.uid not in (uid, _ROOT):
        return (
            f"{above} belongs to another user (uid {parent.uid}, not {uid}), who can replace {path}; give a path "
            "in another directory"
        )
    if not parent.mode & stat.S_IWOTH:
        return None
    if not parent.mode & stat.S_ISVTX:
        return (
            f"all users can replace {path}; run `chmod +t {above}` to set the sticky bit, or give a path "
            "in another directory"
        )
    if found.uid not in (uid, _ROOT):
        return (
            f"{path} belongs to another user (uid {found.uid}), in a directory to which all users can write; give a "
            "path in another directory"
        )
    return None
