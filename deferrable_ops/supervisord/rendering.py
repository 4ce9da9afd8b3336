"""Escapes values for supervisord's configuration file, so that supervisor's parser reads exactly the original values.

The parser (supervisor 4.3, ``options.py``) is Python's RawConfigParser; its file format has no quotes and no escape
character. The parser removes spaces at both ends of a value, and treats a ``;`` or ``#`` after a space as the start of
a comment. After parsing, supervisor replaces ``%(name)s`` by a value, as Python's ``%`` operator does. In some fields,
supervisor makes this replacement twice.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Final

from deferrable_ops.exceptions import InputError

# The names that supervisor expands in each kind of section. In addition, it expands ENV_NAME in all sections.
IN_SERVER: Final = frozenset[str]()
IN_DAEMON: Final = frozenset({"here"})
IN_PROGRAM: Final = IN_DAEMON | {"program_name", "group_name", "host_node_name"}
IN_PROCESS: Final = IN_PROGRAM | {"process_num", "numprocs"}

_NUMBERS: Final = frozenset({"process_num", "numprocs"})
_EXPRESSION: Final = re.compile(r"\((\w+)\)[#0 +-]*[0-9]*(?:\.[0-9]+)?([a-zA-Z])")
_COMMENT_START: Final = re.compile(r"(?<=\s)(?=[;#])")
# supervisor expands this to an empty string. Between a space and a ';', it prevents that the parser finds a comment.
_BREAK: Final = "%(here).0s"
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_CONTROLS: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})


def section_text(header: str, lines: Iterable[tuple[str, str]]) -> str:
    """Return the text of a section of the configuration file. The values in `lines` must already be escaped."""
    return "".join([f"[{header}]\n", *(f"{key}={value}\n" for key, value in lines)])


def render_value(argument: str, text: str, expressions: frozenset[str], expanded: int = 1) -> str:
    """Return a value as escaped text, which can be written to supervisord's configuration file.

    Each ``%`` is doubled, unless it is the start of an expression that supervisor expands in this field, such as
    ``%(program_name)s``. In `text`, ``%%(program_name)s`` is plain text and not an expression.

    :param argument: the name of the value in error messages.
    :param expressions: the names that supervisor expands in this field, for example ``program_name``.
    :param expanded: how many times supervisor expands expressions in this field.
    :raises InputError: if `text` contains a control character, or a space that cannot be escaped in this field. Such a
        space is at the beginning or at the end of `text`, or before a ``;`` or ``#``.
    """
    refuse_control_characters(argument, text)
    escaped = _escaped(text, expressions, expanded)
    stripped = escaped.strip()
    if stripped == escaped and not _COMMENT_START.search(escaped):
        return escaped
    if "here" not in expressions:
        raise InputError(
            f"{argument} begins or ends with a space, or has a space before ';' or '#', which would start a comment in "
            "supervisord's file; remove the space"
        )
    before = _BREAK if escaped[:1].isspace() else ""
    after = _BREAK if escaped[-1:].isspace() else ""
    return before + _COMMENT_START.sub(_BREAK, escaped) + after


def environment_text(argument: str, variables: Mapping[str, str]) -> str:
    """Return environment variables in the syntax of supervisor's parser, for example ``A="1",B="it's"``.

    :raises InputError: if the name of a variable is invalid, or if supervisor's parser cannot read the quotes in the
        value of a variable. The error message does not contain the value.
    """
    return ",".join(
        f"{_variable(argument, name)}={_quoted(f'{argument}[{name!r}]', value)}"
        for name, value in variables.items()
    )


def needs_file(value: str) -> bool:
    """Return whether the value of an environment variable must be written to a separate file, because supervisor's
    parser cannot read the value. The parser supports no line breaks, and no escape character for quotes.
    """
    has_outer_quote = value[:1] in ("'", '"') or value[-1:] in ("'", '"')
    has_controls = any(unicodedata.category(character) == "Cc" for character in value)
    return has_outer_quote or has_controls or ("'" in value and '"' in value)


def shell_variables(argument: str, variables: Mapping[str, str], expressions: frozenset[str]) -> str:
    """Return a shell script that exports environment variables. The values may contain quotes and line breaks.

    :param expressions: the names that supervisor expands in its own file, but not in this script.
    :raises InputError: if a name is not allowed in a shell, or a value contains a null character or one of the
        expressions. The error message does not contain the value.
    """
    lines = []
    for name, value in variables.items():
        where = f"{argument}[{name!r}]"
        if not (name.isascii() and name.isidentifier()):
            raise InputError(
                f"{where} has a value with quotes or line breaks, so its name may only contain letters, digits and '_'"
            )
        if any(unicodedata.category(character) == "Cs" for character in value) or "\0" in value:
            raise InputError(
                f"{where} contains a character that no environment variable may contain; remove this character"
            )
        if any(_is_expression(value, run.end(), expressions) for run in re.finditer("%+", value)):
            raise InputError(
                f"{where} has a value with quotes or line breaks, in which supervisord does not replace expressions "
                "such as %(ENV_X)s; remove the expression"
            )
        lines.append(f"export {name}={shlex.quote(value)}\n")
    return "".join(lines)


def refuse_control_characters(argument: str, text: str) -> None:
    """Check that a text is a single line without control characters.

    :raises InputError: if the text contains a control character. For example, supervisor would parse the text after a
        line break as another option.
    """
    for character in text:
        if unicodedata.category(character) in _CONTROLS:
            raise InputError(
                f"{argument} contains the control character {character!a}, which supervisord's file cannot contain; "
                "give one line of plain text (in YAML, fold several lines with >-)"
            )


def contains_here(text: str) -> bool:
    """Return whether an escaped text contains the plain text ``%(here)s``.

    If the configuration file has a section ``[include]``, supervisord expands ``%(here)s`` even in an escaped text.
    """
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
            f"{argument} has the name {name!r}, which is not allowed for a variable; use letters, digits, '_', '.' and "
            "'-', and no digit at the beginning"
        )
    return name


def _quoted(argument: str, value: str) -> str:
    # The parser strips single and double quotes from both ends. It supports no escaping between them.
    if value[:1] in ("'", '"') or value[-1:] in ("'", '"'):
        raise InputError(
            f"{argument} begins or ends with a quote, which supervisord's parser removes; put the variable into the "
            "environment of a program"
        )
    if "'" in value and '"' in value:
        raise InputError(
            f"{argument} contains both ' and \", which supervisord's file cannot contain; put the variable into the "
            "environment of a program"
        )
    return f"'{value}'" if '"' in value else f'"{value}"'
