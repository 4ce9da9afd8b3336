"""How a value is written into supervisord's file, so that supervisor's own parser reads exactly that value.

The parser (supervisor 4.3, ``options.py``) is a RawConfigParser that knows no quoting and no escape: it strips each
value and cuts it at a ``;`` or ``#`` after a space. After that, supervisor expands ``%(name)s`` as Python does, some
fields twice.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Final

from deferrable_ops.exceptions import InputError

# What supervisor's parser can expand, by where it can; ENV_NAME everywhere.
IN_SERVER: Final = frozenset[str]()
IN_DAEMON: Final = frozenset({"here"})
IN_PROGRAM: Final = IN_DAEMON | {"program_name", "group_name", "host_node_name"}
IN_PROCESS: Final = IN_PROGRAM | {"process_num", "numprocs"}

_NUMBERS: Final = frozenset({"process_num", "numprocs"})
_EXPRESSION: Final = re.compile(r"\((\w+)\)[#0 +-]*[0-9]*(?:\.[0-9]+)?([a-zA-Z])")
_BEGINS_COMMENT: Final = re.compile(r"(?<=\s)(?=[;#])")
# Expands to nothing: what stands between a space and a ';' so that the parser sees no comment.
_BREAK: Final = "%(here).0s"
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_CONTROLS: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})


def section_text(header: str, lines: Iterable[tuple[str, str]]) -> str:
    """Return a section of the file, from values that are written already."""
    return "".join([f"[{header}]\n", *(f"{key}={value}\n" for key, value in lines)])


def render_value(argument: str, text: str, expressions: frozenset[str], expanded: int = 1) -> str:
    """Return a text as the file holds it.

    A ``%`` is doubled, unless it begins one of supervisor's own expressions that are known where the text stands, as in
    ``%(program_name)s``; with two ``%`` that is plain text too.

    :param argument: how the user calls it, for the error.
    :param expressions: the names that supervisor expands there.
    :param expanded: how many times it expands the text.
    :raises InputError: the text cannot be written: it holds a control character, or what begins a comment in a field
        where that cannot be hidden.
    """
    refuse_control_characters(argument, text)
    escaped = _escaped(text, expressions, expanded)
    stripped = escaped.strip()
    if stripped == escaped and not _BEGINS_COMMENT.search(escaped):
        return escaped
    if "here" not in expressions:
        raise InputError(
            f"{argument} begins or ends with a space, or has one before ';' or '#', where supervisord's parser sees a "
            "comment; leave the space out"
        )
    before = _BREAK if escaped[:1].isspace() else ""
    after = _BREAK if escaped[-1:].isspace() else ""
    return before + _BEGINS_COMMENT.sub(_BREAK, escaped) + after


def environment_text(argument: str, variables: Mapping[str, str]) -> str:
    """Return environment variables as supervisor's parser takes them: ``A="1",B="it's"``.

    :raises InputError: a name is none, or a value has quotes that the parser would cut off or cannot tell apart. The
        values are not shown.
    """
    return ",".join(
        f"{_variable(argument, name)}={_quoted(f'{argument}[{name!r}]', value)}"
        for name, value in variables.items()
    )


def refuse_control_characters(argument: str, text: str) -> None:
    """Check that a text is one line that can be encoded.

    :raises InputError: it holds a control character; a line break would begin an option or a section of its own.
    """
    for character in text:
        if unicodedata.category(character) in _CONTROLS:
            raise InputError(
                f"{argument} holds the control character {character!a}, which supervisord's file cannot; give one line "
                "of plain text (in YAML, fold several lines with >-)"
            )


def contains_here(text: str) -> bool:
    """Return whether a written text holds, as plain text, what ``[include]`` would replace even there."""
    return "%%(here)s" in text


def _escaped(text: str, expressions: frozenset[str], expanded: int) -> str:
    percent = "%" * 2**expanded
    pieces, position = [], 0
    for run in re.finditer("%+", text):
        pieces.append(text[position : run.start()])
        count = run.end() - run.start()
        if not _is_expression(text, run.end(), expressions):
            pieces.append(percent * count)
        elif count == 1:
            pieces.append("%")
        else:
            pieces.append(percent * (count - 1))
        position = run.end()
    return "".join([*pieces, text[position:]])


def _is_expression(text: str, position: int, expressions: frozenset[str]) -> bool:
    found = _EXPRESSION.match(text, position)
    if found is None:
        return False
    name, conversion = found.groups()
    if name in _NUMBERS:
        return name in expressions and conversion in "diouxXs"
    return conversion == "s" and (name in expressions or name.startswith("ENV_"))


def _variable(argument: str, name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise InputError(
            f"{argument} has the name {name!r}; give letters, digits, '_', '.' and '-', not beginning with a digit"
        )
    return name


def _quoted(argument: str, value: str) -> str:
    # The parser strips both kinds of quotes from both ends, and knows no escape between them.
    if value[:1] in ("'", '"') or value[-1:] in ("'", '"'):
        raise InputError(
            f"{argument} begins or ends with a quote, which supervisord's parser cuts off; put it into a file that the "
            "program reads"
        )
    if "'" in value and '"' in value:
        raise InputError(
            f"{argument} holds both ' and \", which supervisord's file cannot; put it into a file that the program "
            "reads"
        )
    return f"'{value}'" if '"' in value else f'"{value}"'
