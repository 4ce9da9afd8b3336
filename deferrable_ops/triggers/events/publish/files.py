"""Reads the messages to publish from files on the triggerer's machine.

These functions block, so an event loop must call them in a thread.
"""

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
from deferrable_ops.expressions import EVALUATION_ERRORS, compiled

MAX_FILE_BYTES: Final = 16 * 1_048_576
"""The largest total size of one task's files. It is limited, because the triggerer holds the files in memory."""

MAX_MESSAGES: Final = 20_000
"""The largest number of messages of one task. It is limited, because the triggerer holds the messages in memory and
sends them on its event loop."""

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
    """Return `file_format`, or by default the format that belongs to the suffix of the file's name.

    :raises InputError: if no `file_format` is given, and no format belongs to the suffix of the file's name.
    """
    if file_format is not None:
        return file_format
    found = _BY_SUFFIX.get(Path(path).suffix.lower())
    if found is None:
        raise InputError(
            f"the file {path!r} has an unknown suffix; give file_format='jsonl' (one JSON value per line), 'json' (a "
            "list of messages) or 'text' (each line is a message)"
        )
    return found


def check_path(argument: str, path: Any) -> None:
    """Check that a path is absolute, without access to the file system.

    :raises InputError: if `path` is not an absolute path.
    """
    if not isinstance(path, str) or not path:
        raise InputError(f"{argument}={path!r} must be the path of a file, as a string")
    if "://" in path:
        raise InputError(
            f"{argument}={path!r} is a URL, but the triggerer reads only files in its own file system; mount "
            "the storage on every triggerer, and give the path of the file"
        )
    if not Path(path).is_absolute() or "\x00" in path:
        raise InputError(f"{argument}={path!r} must be an absolute path")


def read_payloads(
    paths: Sequence[str],
    file_format: str | None = None,
    select: str | None = None,
    rules: Sequence[Mapping[str, Any]] | None = None,
    *,
    max_bytes: int = MAX_FILE_BYTES,
    max_messages: int = MAX_MESSAGES,
) -> tuple[list[Any], int]:
    """Read files. Return the payloads to publish, in order, and the number of messages that no merge rule matched.

    :param paths: absolute paths; ``*``, ``?`` and ``[...]`` are expanded to the matching files, sorted by name.
    :param select: a JMESPath expression that selects the messages from the list of all values of all files.
    :param rules: the merge rules, as :func:`~deferrable_ops.events.merging.rules_to_json` returned them.
    :param max_bytes: the largest total size of the files, in bytes.
    :param max_messages: the largest number of messages to publish.
    :raises InputError: if a file is missing, too large or malformed, or `select` or a merge rule cannot be applied.
    """
    payloads: list[Any] = []
    size_left = max_bytes
    for path in _expand(paths):
        content = _read(path, size_left)
        size_left -= len(content)
        if size_left < 0:
            raise InputError(
                f"the files up to {path!r} have together more than {max_bytes} bytes, the limit of one task; split the "
                "files over several tasks"
            )
        payloads += _values(path, content, format_of(path, file_format))
    if select is not None:
        payloads = _selected(payloads, select)
    left_over = 0
    if rules is not None:
        payloads, left_over = merge(payloads, rules_from_json(rules))
    if len(payloads) > max_messages:
        raise InputError(
            f"the files hold {len(payloads)} messages; a task publishes at most {max_messages}, "
            "so split the messages over several tasks"
        )
    return payloads, left_over


def _expand(patterns: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        if not glob.has_magic(pattern) or Path(pattern).exists():
            yield pattern
            continue
        # Do not use pathlib's glob, because it also returns hidden files.
        paths = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        if not paths:
            raise InputError(
                f"no file on this triggerer's machine matches {pattern!r}; correct the pattern, or add the files"
            )
        yield from paths


def _read(path: str, most: int) -> bytes:
    """Return the content of a file. If the file is larger than `most` bytes, return only its first `most` + 1 bytes."""
    try:
        # O_NONBLOCK: do not block when the path is a named pipe.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            is_file = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read(most + 1) if is_file else b""
    except IsADirectoryError:
        is_file, content = False, b""
    except OSError as error:
        raise InputError(
            f"the file {path!r} cannot be read on this triggerer's machine: {error.strerror or error}; "
            "make it readable under this path on every triggerer"
        ) from None
    if not is_file:
        raise InputError(f"{path!r} is not a regular file; give the path of a file")
    return content


def _values(path: str, content: bytes, file_format: str) -> list[Any]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"the file {path!r} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    if file_format == "json":
        value = _json(path, text)
        return value if isinstance(value, list) else [value]
    # Do not use splitlines(). It also splits at other characters, which a line of JSON or text may contain.
    lines = ((number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1))
    if file_format == "text":
        return [line for _, line in lines if line]
    return [_json(f"{path}:{number}", line) for number, line in lines if line.strip()]


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_raise_for_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where} is not JSON: {error}; correct the JSON, or give file_format='text' for lines of plain text"
        ) from None


def _raise_for_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _selected(payloads: list[Any], select: str) -> list[Any]:
    try:
        found = compiled(select).search(payloads)
    except EVALUATION_ERRORS as error:
        raise InputError(
            f"select={select!r} cannot be evaluated on these files: {error}; correct the expression"
        ) from None
    if found is None:
        return []
    if not isinstance(found, list):
        raise InputError(
            f"select={select!r} must yield a list of messages, but yields a "
            f"{type(found).__name__}; write it like \"[?topic == 'etl-finish'].data[]\""
        )
    return found
