"""XML-RPC as supervisord speaks it.

supervisord puts text into its answers as it is, as in the error of a command that it cannot start: control characters,
which XML does not have, and line ends that an XML parser makes into others. Both are carried past the parser.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from xml.etree import ElementTree
from xmlrpc import client

_LARGEST_INT: Final = 2**31 - 1
_FIRST_STAND_IN: Final = 0xFDD0
# The 32 characters from U+FDD0 mean nothing and XML allows them: each stands in for one of the 32 control characters.
_CONTROLS: Final = bytes(code for code in range(32) if code not in b"\t\n")
_STAND_IN: Final = re.compile(rb"\xef\xb7[\x90-\xaf]")
_PART: Final = 2**16  # bytes that the parser is given at once: other threads run in between

# An answer that is beyond these is none of supervisord's, and would keep the parser busy for many seconds.
_MOST_CONTROLS: Final = 100_000
_MOST_TAGS: Final = 2**20  # those of 7,000 processes
_LONG_TAG: Final = re.compile(rb"<[^>]{100}")  # XML-RPC has no attributes


class UnreadableAnswer(ValueError):
    """An answer is no XML-RPC, or holds text that XML cannot carry."""


def request(method: str, arguments: Sequence[Any]) -> bytes:
    """Return a request's body."""
    return client.dumps(tuple(map(sendable, arguments)), method).encode()


def sendable(argument: Any) -> Any:
    """Return an argument; an integer that XML-RPC has no room for as text, which supervisord takes as well."""
    return str(argument) if type(argument) is int and argument > _LARGEST_INT else argument


def answer(body: bytes) -> Any:
    """Return what an answer holds.

    :raises xmlrpc.client.Fault: supervisord refused.
    :raises UnreadableAnswer: it is none.
    """
    controls = len(body) - len(body.translate(None, _CONTROLS))
    if controls > _MOST_CONTROLS or body.count(b"<") > _MOST_TAGS or _LONG_TAG.search(body):
        raise UnreadableAnswer(
            "supervisord's answer holds more tags or control characters than any of its answers"
        )
    stand_ins = (
        {chr(_FIRST_STAND_IN + code): chr(code) for code in _CONTROLS if code in body} if controls else {}
    )
    if stand_ins and _STAND_IN.search(body):
        raise UnreadableAnswer("supervisord's answer holds control characters, and what stands in for them")
    for stand_in, control in stand_ins.items():
        body = body.replace(control.encode(), stand_in.encode())
    # No zero byte is left, so this is found in whatever encoding. supervisord's text has &lt; in its place.
    if b"<!DOCTYPE" in body:
        raise UnreadableAnswer("supervisord's answer defines its own entities, which XML-RPC has no use for")
    try:
        value = _answered(_parsed(body))
        return _with_controls(value, stand_ins) if stand_ins else value
    except client.Fault:
        raise
    except Exception as error:  # the parser's errors, and those of whatever the answer made it do
        raise UnreadableAnswer(f"supervisord's answer is no XML-RPC: {type(error).__name__}") from None


def _parsed(body: bytes) -> ElementTree.Element:
    parser = ElementTree.XMLParser(encoding="utf-8")  # noqa: S314 - without a DOCTYPE there are no entities
    for start in range(0, len(body), _PART):
        parser.feed(body[start : start + _PART])
    return parser.close()


def _answered(response: ElementTree.Element) -> Any:
    """Return what a response holds. The standard library's parser takes three times as long for the same."""
    if response.tag != "methodResponse":
        raise ValueError(response.tag)
    (part,) = response
    if part.tag == "fault":
        fault = _value(part[0])
        raise client.Fault(int(fault["faultCode"]), str(fault["faultString"]))
    ((value,),) = part
    return _value(value)


def _value(element: ElementTree.Element) -> Any:
    if not len(element):
        return element.text or ""
    (typed,) = element
    match typed.tag:
        case "string":
            return typed.text or ""
        case "int" | "i4":
            return int(typed.text or "")
        case "boolean":
            return bool(int(typed.text or ""))
        case "struct":
            return {name.text or "": _value(value) for name, value in typed}
        case "array":
            return [_value(value) for value in typed[0]]
        case "double":
            return float(typed.text or "")
    raise ValueError(typed.tag)


def _with_controls(value: Any, stand_ins: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        # translate() would take a hundred times as long for a long text.
        for stand_in, control in stand_ins.items():
            value = value.replace(stand_in, control)
        return value
    if isinstance(value, list):
        return [_with_controls(item, stand_ins) for item in value]
    if isinstance(value, Mapping):
        return {key: _with_controls(item, stand_ins) for key, item in value.items()}
    return value
