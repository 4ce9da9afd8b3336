"""What a publishing task reads from files, on the machine of its triggerer. It blocks: only in a thread."""

from __future__ import annotations

import glob
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from deferrable_ops.events.merging import merge, rules_from_json
from deferrable_ops.exceptions import InputError
from deferrable_ops.expressions import CANNOT_BE_EVALUATED, compiled

LARGEST: Final = 16 * 1_048_576
"""Bytes that the files of one task may have: they are held in the triggerer's memory."""

MOST_MESSAGES: Final = 20_000
"""That a task publishes: they are held in the triggerer's memory, and sent on its event loop."""

FORMATS: Final = ("jsonl", "json", "text")
_BY_SUFFIX: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".txt": "text",
    ".text": "text",
    ".log": "text",
}


def format_of(path: str, file_format: str | None) -> str:
    """Return the format of a file: the one that is given, or what its name says.

    :raises InputError: it says nothing.
    """
    if file_format is not None:
        return file_format
    found = _BY_SUFFIX.get(Path(path).suffix.lower())
    if found is None:
        raise InputError(
            f"the name of the file {path!r} does not tell its format; give file_format= as 'jsonl' (a JSON value a "
            "line), 'json' (a list of messages) or 'text' (a text a line)"
        )
    return found


def check_path(argument: str, path: Any) -> None:
    """Check a path, as far as that is possible without a file system.

    :raises InputError: it is not the absolute path of a file.
    """
    if not isinstance(path, str) or not path:
        raise InputError(f"{argument}={path!r} must be the path of a file, as a text")
    if "://" in path:
        raise InputError(
            f"{argument}={path!r} is a URL; files are read from the file system of the triggerers only: mount it there"
        )
    if not Path(path).is_absolute() or "\x00" in path:
        raise InputError(f"{argument}={path!r} must be absolute: a triggerer's own directory says nothing")


def read_payloads(
    paths: Sequence[str],
    file_format: str | None = None,
    select: str | None = None,
    rules: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[list[Any], int]:
    """Return what is to be published of files, one after the other, and how many messages no rule took.

    :param paths: absolute; with ``*``, ``?`` and ``[...]``, all that there are, by their names' order.
    :param select: a JMESPath expression that picks the messages out of the list of all values of all files.
    :param rules: what :func:`~deferrable_ops.events.merging.rules_to_json` wrote.
    :raises InputError: a file is missing, too large or not of its format, or there is nothing to pick or to merge.
    """
    payloads: list[Any] = []
    size_left = LARGEST
    for path in _found(paths):
        content = _read(path, size_left)
        size_left -= len(content)
        payloads += _values(path, content, format_of(path, file_format))
    if select is not None:
        payloads = _selected(payloads, select)
    left_over = 0
    if rules is not None:
        payloads, left_over = merge(payloads, rules_from_json(rules))
    if len(payloads) > MOST_MESSAGES:
        raise InputError(
            f"the files hold {len(payloads)} messages, and a task publishes at most {MOST_MESSAGES}; split them"
        )
    return payloads, left_over


def _found(patterns: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        if not glob.has_magic(pattern) or Path(pattern).exists():
            yield pattern
            continue
        paths = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - pathlib's takes hidden files, too
        if not paths:
            raise InputError(f"no file on this triggerer's machine is like {pattern!r}")
        yield from paths


def _read(path: str, most: int) -> bytes:
    try:
        # A pipe that nobody writes to would hold up its thread for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read(most + 1) if is_file else b""
    except IsADirectoryError:
        is_file, content = False, b""
    except OSError as error:
        raise InputError(
            f"the file {path!r} cannot be read on this triggerer's machine: {error.strerror or error}; "
            "its path must lead there from every triggerer"
        ) from None
    if not is_file:
        raise InputError(f"{path!r} is not a file")
    if len(content) > most:
        raise InputError(
            f"the files of a task may have {LARGEST} bytes together, and with {path!r} they have more; split them"
        )
    return content


def _values(path: str, content: bytes, file_format: str) -> list[Any]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"the file {path!r} is not UTF-8 at byte {error.start}") from None
    if file_format == "json":
        value = _json(path, text)
        return value if isinstance(value, list) else [value]
    # Only line feeds end a line: JSON and texts may hold the other characters that Python takes for ends of lines.
    lines = ((number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1))
    if file_format == "text":
        return [line for _, line in lines if line]
    return [_json(f"{path}:{number}", line) for number, line in lines if line.strip()]


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}; give file_format='text' for plain lines") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"JSON does not have {name}")


def _selected(payloads: list[Any], select: str) -> list[Any]:
    try:
        found = compiled(select).search(payloads)
    except CANNOT_BE_EVALUATED as error:
        raise InputError(f"select={select!r} cannot be evaluated on these files: {error}") from None
    if found is None:
        return []
    if not isinstance(found, list):
        raise InputError(
            f"select={select!r} must pick a list of messages out of the list of all values, and picks a "
            f"{type(found).__name__}; write it as \"[?topic == 'etl-finish'].data[]\""
        )
    return found
