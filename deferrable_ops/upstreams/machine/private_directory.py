"""Checks that only the account that the library uses on a machine can write to a directory.

The check is needed because supervisord's configuration file is in this directory, and supervisord runs the commands in
this file. The library also reads the files that supervisord writes to this directory.
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
    """A directory entry. If the path is a symbolic link, the entry describes the link itself, and not the file to which
    it leads.

    :param mode: type and permissions of the entry, as in ``st_mode``.
    :param uid: user id of the owner of the entry.
    """

    mode: int
    uid: int


def ownership_problem(path: Path, found: Entry, uid: int) -> str | None:
    """Return an error message if another user than `uid` can write to a directory; otherwise None.

    :param uid: user id of the account that the library uses.
    """
    if stat.S_ISLNK(found.mode):
        return f"{path} is a link, and its target may change; give the directory to which the link points"
    if not stat.S_ISDIR(found.mode):
        return f"{path} is not a directory; remove it, or give another path"
    if found.mode & stat.S_IWOTH and found.mode & stat.S_ISVTX:
        return f"{path} is shared by all users; give a directory below it that only this supervisord uses"
    if found.uid != uid:
        return f"{path} belongs to another user (uid {found.uid}, not {uid}); remove it, or give another path"
    if found.mode & _OTHERS_WRITE:
        return f"{path} can be written to by other users; run `chmod go-w {path}`, or give another path"
    return None


def replacement_problem(path: Path, found: Entry, parent: Entry, uid: int) -> str | None:
    """Return an error message if another user than `uid` can replace an entry of a directory; otherwise None.

    A user who may rename an entry of a directory can also replace this entry. In a directory to which all users can
    write, such as /tmp, the sticky bit protects an entry: only the owner of the entry, the owner of the directory and
    root can rename it. If neither `uid` nor root owns an entry in such a directory, the entry may be an attack of
    another user on supervisord.

    The members of the group that owns the parent directory are trusted. So a parent directory to which its group can
    write is accepted.

    :param found: the entry of the directory. If `path` is a symbolic link, `found` describes the link itself.
    :param parent: the directory that contains this entry. If the path of this directory is a symbolic link, `parent`
        describes the directory to which the link leads.
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
