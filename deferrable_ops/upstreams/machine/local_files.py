"""Reads and writes files of the local host. All functions of this module block, so call the functions in a thread."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from deferrable_ops.exceptions import InputError, MachineRefused, MachineUnavailable
from deferrable_ops.upstreams.machine.machine import FileStatus
from deferrable_ops.upstreams.machine.private_directory import Entry, ownership_problem, replacement_problem

# These errors are transient: they may disappear without a change by the user, for example when space becomes free. All
# other errors remain until a user fixes the cause.
_TRANSIENT: Final = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EDQUOT,
        errno.EEXIST,
        errno.EINTR,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ENOTEMPTY,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
_REMOVE_ATTEMPTS: Final = 20


def make_directory(path: Path) -> None:
    """See :meth:`Machine.make_directory`."""
    _check_path(path, make=True)


def check_directory(path: Path) -> bool:
    """See :meth:`Machine.check_directory`."""
    return _check_path(path, make=False)


def _check_path(path: Path, *, make: bool) -> bool:
    """Check that no other user can replace a directory or one of its parents. Return whether the directory exists.

    :param make: if True, the function creates the directory and its parents if they are missing. If `make` is False,
        the function creates nothing, and returns False if the directory is missing.
    """
    with _translated_errors(path):
        existing = next(directory for directory in path.parents if directory.exists())
        # First resolve all links, and check the part of the path that exists. Then check the path as it was given,
        # including links and missing parts.
        for directories in (existing.resolve(), path):
            for directory in (*reversed(directories.parents), directories):
                try:
                    found = _entry(directory)
                except FileNotFoundError:
                    if not make:
                        return False
                    with suppress(FileExistsError):
                        directory.mkdir(mode=0o700)
                    found = _entry(directory)
                _check_entry(directory, found)
        if problem := ownership_problem(path, _entry(path), os.geteuid()):
            raise MachineRefused(problem)
        return True


def _check_entry(directory: Path, found: Entry) -> None:
    parent = _entry(directory.parent, through_links=True)
    if problem := replacement_problem(directory, found, parent, os.geteuid()):
        raise MachineRefused(problem)


def _entry(path: Path, *, through_links: bool = False) -> Entry:
    found = path.stat(follow_symlinks=through_links)
    return Entry(found.st_mode, found.st_uid)


def write(path: Path, data: bytes) -> None:
    """See :meth:`Machine.write`."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with _translated_errors(path):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def read(path: Path, offset: int, length: int | None) -> bytes | None:
    """See :meth:`Machine.read`."""
    with _translated_errors(path):
        try:
            with os.fdopen(_open_regular(path), "rb") as file:
                file.seek(offset)
                return file.read(-1 if length is None else length)
        except (FileNotFoundError, NotADirectoryError):
            return None


def _open_regular(path: Path) -> int:
    """Open a regular file for reading, and return its descriptor.

    The call does not block, even if a named pipe is at this path.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind == stat.S_IFREG:
        return descriptor
    os.close(descriptor)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise MachineRefused(f"{path} is not a regular file; remove it, or give another path")


def status(path: Path) -> FileStatus | None:
    """See :meth:`Machine.status`."""
    with _translated_errors(path):
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        kind = stat.S_IFMT(found.st_mode)
        return FileStatus(found.st_size, found.st_ino, found.st_mtime, kind == stat.S_IFREG)


def free_space(path: Path) -> int | None:
    """See :meth:`Machine.free_space`."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def remove(path: Path) -> None:
    """See :meth:`Machine.remove`."""
    if path == path.parent:
        raise InputError(f"{path} is the root directory and cannot be removed; give another path")
    with _translated_errors(path):
        for attempt in range(_REMOVE_ATTEMPTS):
            try:
                _remove(path)
                return
            except OSError as error:
                # Retry: another process is removing the same directory, or a program still writes to it.
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY) or attempt == _REMOVE_ATTEMPTS - 1:
                    raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        # NotADirectoryError: a parent of the path is a file, so the path does not exist.
        with suppress(NotADirectoryError):
            path.unlink(missing_ok=True)


@contextmanager
def _translated_errors(path: Path) -> Iterator[None]:
    """In the ``with`` block, convert each OSError that concerns this path into MachineUnavailable or MachineRefused."""
    if not path.is_absolute():
        raise InputError(f"the path must be absolute, not {str(path)!r}")
    try:
        yield
    except OSError as error:
        kind = MachineUnavailable if error.errno in _TRANSIENT else MachineRefused
        raise kind(
            f"cannot access {error.filename or path}: {error.strerror or type(error).__name__}"
        ) from None
