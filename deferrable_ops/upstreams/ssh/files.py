"""Reads and writes files of a remote machine with shell scripts, which run as commands over SSH.

SFTP is not used: many machines have no SFTP server, and a shell that prints text at its start breaks the protocol of an
external SFTP server. Commands work on both kinds of machines, and the error messages of commands name the cause, for
example a full disk.

The scripts use only programs and options that GNU coreutils and busybox both have, and for ``stat`` also the syntax of
BSD and macOS. Each script prints its error messages to standard output, because the account's shell may print other
text to standard error.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Final, Protocol

from deferrable_ops.exceptions import InputError, MachineError, MachineRefused, MachineUnavailable
from deferrable_ops.upstreams.machine.machine import FileStatus
from deferrable_ops.upstreams.machine.private_directory import Entry, ownership_problem, replacement_problem
from deferrable_ops.upstreams.ssh.link import Link

# In bytes. `dd` reads whole blocks; the bytes before and after the wanted part are discarded.
_BLOCK: Final = 4096
# The maximum number of paths per command.
_PATHS_AT_ONCE: Final = 100
_MAKE_ATTEMPTS: Final = 3

# The texts of errors, from glibc and musl. All scripts run in the locale C.
# "No such process": a process ended while its file in /proc was read.
_MISSING: Final = ("No such file or directory", "Not a directory", "No such process")
_TRANSIENT: Final = (
    "Cannot allocate memory",
    "Directory not empty",
    "Disk quota exceeded",
    "I/O error",
    "Input/output error",
    "No space left on device",
    "Out of memory",
    "Quota exceeded",
    "Resource temporarily unavailable",
    "Stale file handle",
    "Too many open files",
    "busy",
)

_NO_PROGRAM: Final = 69
_BEGIN: Final = """LC_ALL=C; export LC_ALL; exec 3>&1
"""
# stat has two syntaxes. The script tries that of GNU and busybox first, and then that of BSD and macOS.
_STAT: Final = f"""
if stat -c %i / >/dev/null 2>&1; then
  option=-c; entry='%f %u/%n'; file='%i %s %Y %F/%n'
elif stat -f %i / >/dev/null 2>&1; then
  option=-f; entry='%Xp %u/%N'; file='%i %z %m %HT/%N'
else echo stat; exit {_NO_PROGRAM}
fi
list() {{ errors=$(stat "$@" 2>&1 >&3) || printf '%s\\n' "$errors"; }}
"""
_STATUS: Final = _BEGIN + _STAT + 'list -L "$option" "$file" -- "$@"\n'
# The first argument is a path, and the others are its parents, beginning with the root directory.
_ENTRIES: Final = (
    _BEGIN
    + _STAT
    + """path=$1; shift
for folder; do [ -d "$folder" ] && deepest=$folder; done
printf 'real %s\\n' "$(cd -P -- "$deepest" 2>&1 && pwd -P)"
list "$option" "entry $entry" -- "$@" "$path"
list -L "$option" "target $entry" -- "$@" "$path"
"""
)
_MAKE: Final = _BEGIN + 'umask 077; for folder; do mkdir -- "$folder" 2>&1 || exit 1; done\n'
_READ: Final = (
    _BEGIN
    + """if [ -d "$1" ]; then echo "$1: Is a directory"; exit 1
elif [ -e "$1" ] && ! [ -f "$1" ]; then echo "$1: is not a regular file"; exit 1
fi
line_end='
'
errors=$(dd if="$1" bs="$2" skip="$3" ${4:+count="$4"} 2>&1 >&3) ||
  { printf '\\n%s\\n' "${errors%%"$line_end"*}"; exit 1; }
"""
)
# The file is checked for its length, because the input also ends if the connection is lost.
_WRITE: Final = (
    _BEGIN
    + """if [ -d "$1" ] && ! [ -L "$1" ]; then echo "$1: Is a directory"; exit 1; fi
if ! [ -d "${1%/*}/" ]; then echo "${1%/*}: No such file or directory"; exit 1; fi
umask 077; set -C
write() {
  cat >"$2" && sync "$2" && [ "$(wc -c <"$2")" -eq "$3" ] || return 1
  if [ -d "$1" ]; then rm -f -- "$1"; fi
  mv -f -- "$2" "$1"
}
write "$@" 2>&1 && exit 0
rm -f -- "$2"; exit 1
"""
)
# For each path, POSIX's df prints a line with the sizes in kB and the percentage that is used. On a full disk, the size
# that is left may be negative.
_FREE: Final = _BEGIN + 'df -Pk -- "$@" 2>/dev/null\n'
_FREE_LINE: Final = re.compile(r" \d+ +\d+ +(-?\d+) +(?:\d+%|-) +/", re.ASCII)
_REMOVE: Final = _BEGIN + 'rm -rf -- "$1" 2>&1\n'


class RunScript(Protocol):
    """Runs a shell script on the machine, and returns its exit code and its standard output.

    :param about: what the script does, for the error message after a timeout.
    :param stdin: the bytes that the script reads from its standard input, or None if it reads nothing.
    """

    def __call__(
        self, script: str, *arguments: str, about: str, stdin: bytes | None = None
    ) -> Awaitable[tuple[int, bytes]]: ...


class RemoteFiles:
    """Implements the methods of :class:`Machine` that read and write files.

    :param link: the SSH connection, for the machine's name in error messages.
    """

    def __init__(self, run: RunScript, link: Link) -> None:
        self._run = run
        self._link = link

    async def make_directory(self, path: Path, uid: int) -> None:
        """See :meth:`Machine.make_directory`.

        :param uid: user id of the library's account on the remote machine, which must own the directory.
        """
        for _ in range(_MAKE_ATTEMPTS):
            missing = await self._check_path(path, uid)
            if not missing:
                return
            code, output = await self._run(_MAKE, *map(str, missing), about=f"creation of {path}")
            # "File exists": another process has created the directory in the meantime. It is checked next.
            if code and b"File exists" not in output:
                raise self._error(path, output)
        raise MachineUnavailable(
            f"the directory {path} on {self._name} disappears while this task creates it; check which process "
            "removes the directory"
        )

    async def check_directory(self, path: Path, uid: int) -> bool:
        """See :meth:`Machine.check_directory`.

        :param uid: user id of the library's account on the remote machine, which must own the directory.
        """
        return not await self._check_path(path, uid)

    async def _check_path(self, path: Path, uid: int) -> list[Path]:
        """Check that no other user can replace a directory or one of its parents. Return the directories of the path
        that do not exist.
        """
        directories = _with_parents(path)
        entries, targets, real = await self._entries(path)
        # First resolve all links, and check the part of the path that exists. Then check the path as it was given,
        # including links and missing parts.
        if real not in directories:
            self._check_entries(_with_parents(real), *(await self._entries(real))[:2], uid)
        missing = self._check_entries(directories, entries, targets, uid)
        if not missing and (problem := ownership_problem(path, entries[path], uid)):
            raise MachineRefused(f"on {self._name}, {problem}")
        return missing

    def _check_entries(
        self, directories: list[Path], entries: dict[Path, Entry], targets: dict[Path, Entry], uid: int
    ) -> list[Path]:
        """Check the directories one after the other. If a directory is missing, stop, and return this and all later
        directories.
        """
        for index, directory in enumerate(directories):
            found, parent = entries.get(directory), targets.get(directory.parent)
            if found is None or parent is None:
                return directories[index:]
            if problem := replacement_problem(directory, found, parent, uid):
                raise MachineRefused(f"on {self._name}, {problem}")
        return []

    async def _entries(self, path: Path) -> tuple[dict[Path, Entry], dict[Path, Entry], Path]:
        """Return three values: the directory entries of a path and of all its parents; the same entries, but with
        symbolic links followed; and the deepest existing parent, as a path without links.
        """
        *parents, _ = _with_parents(path)
        lines = await self._lines(_ENTRIES, path, *(parents or [path]))
        found: dict[str, dict[Path, Entry]] = {"entry": {}, "target": {}}
        real = lines[0].removeprefix("real ") if lines else ""
        if not real.startswith("/"):
            raise MachineRefused(f"cannot access {path} on {self._name}: {real}")
        for line in lines[1:]:
            fields, _, name = line.partition("/")
            kind, mode, uid = fields.split(" ")
            found[kind][Path(name)] = _entry(int(mode, 16), int(uid))
        return found["entry"], found["target"], Path(real)

    async def write(self, path: Path, data: bytes) -> None:
        """See :meth:`Machine.write`."""
        temporary = self._absolute(path).with_name(f".{path.name}.{secrets.token_hex(8)}")
        arguments = (str(path), str(temporary), str(len(data)))
        code, output = await self._run(_WRITE, *arguments, about=f"writing {path}", stdin=data)
        if code:
            raise self._error(path, output)

    async def read(self, path: Path, offset: int, length: int | None) -> bytes | None:
        """See :meth:`Machine.read`."""
        first = offset // _BLOCK
        count = "" if length is None else str(-(-(offset + length) // _BLOCK) - first)
        arguments = (str(self._absolute(path)), str(_BLOCK), str(first), count)
        code, output = await self._run(_READ, *arguments, about=f"reading {path}")
        if code:
            if _last_line(output).endswith(_MISSING):
                return None
            raise self._error(path, output)
        begin = offset - first * _BLOCK
        return output[begin:] if length is None else output[begin : begin + length]

    async def status(self, paths: Sequence[Path]) -> list[FileStatus | None]:
        """See :meth:`Machine.status`."""
        found: dict[str, FileStatus] = {}
        for first in range(0, len(paths), _PATHS_AT_ONCE):
            part = paths[first : first + _PATHS_AT_ONCE]
            found |= map(_parse_status, await self._lines(_STATUS, *part))
        return [found.get(str(path)) for path in paths]

    async def free_space(self, paths: Sequence[Path]) -> list[int | None]:
        """See :meth:`Machine.free_space`."""
        found: list[int | None] = []
        for first in range(0, len(paths), _PATHS_AT_ONCE):
            part = paths[first : first + _PATHS_AT_ONCE]
            _, output = await self._run(_FREE, *map(str, part), about="reading the free space")
            sizes = [1024 * int(match[1]) for match in _FREE_LINE.finditer(output.decode(errors="replace"))]
            # If a path is missing, or the machine has no df, it is unknown which line belongs to which path.
            found += sizes if len(sizes) == len(part) else [None] * len(part)
        return found

    async def exists(self, path: Path) -> bool:
        """Return whether a file, a directory or a socket exists at this path, and the remote account may see it."""
        code, _ = await self._run(f'{_BEGIN}[ -e "$1" ]\n', str(path), about=f"access to {path}")
        return code == 0

    async def remove(self, path: Path) -> None:
        """See :meth:`Machine.remove`."""
        if path == path.parent:
            raise InputError(f"{path} is the root directory and cannot be removed; give another path")
        code, output = await self._run(_REMOVE, str(self._absolute(path)), about=f"removing {path}")
        if code:
            raise self._error(path, output)

    async def _lines(self, script: str, *paths: Path) -> list[str]:
        """Run a script that calls ``stat``, and return the lines that ``stat`` printed about existing files."""
        for path in paths:
            if "\n" in str(self._absolute(path)):
                raise InputError("a path contains a line break; give a path without line breaks")
        code, output = await self._run(script, *map(str, paths), about=f"access to {paths[0]}")
        if code:
            raise self._error(paths[0], output, code)
        lines = os.fsdecode(output).splitlines()
        errors = [line for line in lines if line.startswith("stat:")]
        for line in errors:
            if not line.endswith(_MISSING):
                raise self._error(paths[0], line.encode(errors="replace"))
        return [line for line in lines if line not in errors]

    @property
    def _name(self) -> str:
        return self._link.settings.name

    def _absolute(self, path: Path) -> Path:
        if not path.is_absolute():
            raise InputError(f"the path must be absolute, not {str(path)!r}")
        return path

    def _error(self, path: Path, output: bytes, code: int = 1) -> MachineError:
        """Return the MachineError for a script that failed. The last line of its output is an error message."""
        reason = _last_line(output)
        if code == _NO_PROGRAM:
            return MachineRefused(
                f"the program {reason} is missing on {self._name}; install coreutils or busybox there"
            )
        message = f"cannot access {path} on {self._name}: {reason or 'the command failed without a message'}"
        return (MachineUnavailable if reason.endswith(_TRANSIENT) or not reason else MachineRefused)(message)


def _with_parents(path: Path) -> list[Path]:
    return [*reversed(path.parents), path]


def _entry(mode: int, uid: int) -> Entry:
    return Entry(mode, uid)


def _last_line(output: bytes) -> str:
    return output.decode(errors="replace").strip().rpartition("\n")[2]


def _parse_status(line: str) -> tuple[str, FileStatus]:
    """Parse one line of the output of the script ``_STATUS``. Return a path, and the status of the file at this
    path.
    """
    fields, _, name = line.partition("/")
    inode, size, modified, kind = fields.split(" ", 3)
    # For an empty file, stat prints "regular empty file".
    is_regular = kind.lower().startswith("regular")
    return name, FileStatus(int(size), int(inode), float(modified), is_regular)
