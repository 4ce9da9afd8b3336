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
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b-\x1f]")
_STAND_IN: Final = re.compile(rb"\xef\xb7[\x90-\xaf]")
_CONTROLS_OF_STAND_INS: Final = {_FIRST_STAND_IN + code: code for code in range(32)}


class NotReadable(ValueError):
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
    :raises NotReadable: it is none.
    """
    controls = _CONTROL.search(body) is not None
    if controls:
        if _STAND_IN.search(body):
            raise NotReadable("supervisord's answer holds control characters, and what stands in for them")
        body = _CONTROL.sub(_stand_in, body)
    try:
        value = _answered(ElementTree.fromstring(body))  # noqa: S314 - expat limits what entities become
    except client.Fault:
        raise
    except Exception as error:  # the parser's errors, and those of whatever the answer made it do
        raise NotReadable(f"supervisord's answer is no XML-RPC: {type(error).__name__}") from None
    return _with_controls(value) if controls else value


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


def _stand_in(found: re.Match[bytes]) -> bytes:
    return chr(_FIRST_STAND_IN + found[0][0]).encode()


def _with_controls(value: Any) -> Any:
    if isinstance(value, str):
        return value.translate(_CONTROLS_OF_STAND_INS)
    if isinstance(value, list):
        return [_with_controls(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _with_controls(item) for key, item in value.items()}
    return value
