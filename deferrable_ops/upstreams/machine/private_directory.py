"""Checks that only the account that the library uses can write to a directory.

The check is needed because supervisord runs the commands in its configuration file, which is in this directory. This
library also reads the files that supervisord writes to the directory.
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
    """A directory entry. If the path is a link, the entry describes the link, not the link's target.

    :param mode: type and permissions of the entry, as in ``st_mode``.
    :param uid: id of the user who owns the entry.
    """

    mode: int
    uid: int


def ownership_problem(path: Path, found: Entry, uid: int) -> str | None:
    """Return an error message if other users can write to a directory, or None if only the account `uid` can write.

    :param uid: user id of the account that the library uses.
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
    """Return an error message if another user can replace a directory entry, or None if no other user can replace it.

    A user who may rename the entries of a directory can also replace these entries. In a directory to which all users
    can write, such as /tmp, the sticky bit protects an entry: only the owner of the entry, the owner of the directory
    and root can rename the entry. If an entry in such a directory belongs neither to the account `uid` nor to root,
    another user may have created the entry to attack supervisord.

    Members of the parent directory's group are trusted, so this function accepts a parent directory to which its group
    can write.

    :param found: the directory entry. If `path` is a link, `found` describes the link, not the link's target.
    :param parent: the directory that contains the entry. If the directory's path is a link, `parent` describes the
        link's target.
    :param uid: user id of the account that the library uses.
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
