"""Encodes requests to supervisord, and decodes the responses. supervisord uses a variant of XML-RPC.

supervisord does not escape the texts in its responses, for example the error message of a command that it could not
start. Such a text may contain control characters, which are not allowed in XML, and line ends, which an XML parser
would change. Before parsing, this module replaces the control characters and line ends by other characters, which are
called stand-ins. After parsing, this module replaces the stand-ins by the original characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from xml.etree import ElementTree
from xmlrpc import client

_LARGEST_INT: Final = 2**31 - 1
_FIRST_STAND_IN: Final = 0xFDD0
# XML allows the 32 noncharacters that begin with U+FDD0. Each of them replaces one of the 32 control characters.
_CONTROLS: Final = bytes(code for code in range(32) if code not in b"\t\n")
_STAND_IN: Final = re.compile(rb"\xef\xb7[\x90-\xaf]")
# Size in bytes. The parser gets the answer in parts of this size, so that other threads can run between two parts.
_PART: Final = 2**16

# An answer of supervisord never exceeds these limits. A larger answer would keep the parser busy for many seconds.
_MOST_CONTROLS: Final = 100_000
# This is enough for 7,000 processes.
_MOST_TAGS: Final = 2**20
# XML-RPC has no attributes, so its tags are short.
_LONG_TAG: Final = re.compile(rb"<[^>]{100}")


class UnreadableAnswer(ValueError):
    """Raised if a response of supervisord is too large, is not valid XML-RPC, or contains undecodable text."""


def request(method: str, arguments: Sequence[Any]) -> bytes:
    """Return the body of the HTTP request for an XML-RPC call."""
    return client.dumps(tuple(map(sendable, arguments)), method).encode()


def sendable(argument: Any) -> Any:
    """Return an integer of more than 32 bits as a string, because XML-RPC integers have only 32 bits.

    supervisord also accepts a string instead of an integer.
    """
    return str(argument) if type(argument) is int and argument > _LARGEST_INT else argument


def answer(body: bytes) -> Any:
    """Return the value that an XML-RPC response contains.

    :raises xmlrpc.client.Fault: if the response contains an error.
    :raises UnreadableAnswer: if the response cannot be decoded.
    """
    controls = len(body) - len(body.translate(None, _CONTROLS))
    if controls > _MOST_CONTROLS or body.count(b"<") > _MOST_TAGS or _LONG_TAG.search(body):
        raise UnreadableAnswer(
            "cannot read supervisord's answer, because it contains more tags or control characters than supervisord "
            "ever sends; check that this is the address of a supervisord"
        )
    stand_ins = (
        {chr(_FIRST_STAND_IN + code): chr(code) for code in _CONTROLS if code in body} if controls else {}
    )
    if stand_ins and _STAND_IN.search(body):
        raise UnreadableAnswer(
            "cannot read supervisord's answer, because it contains both control characters and a character from the "
            "range U+FDD0 to U+FDEF. This library uses that range to replace control characters"
        )
    for stand_in, control in stand_ins.items():
        body = body.replace(control.encode(), stand_in.encode())
    # The body contains no zero bytes any more, so this search finds a DOCTYPE in every encoding. It finds no DOCTYPE in
    # the text of an answer, because supervisord writes &lt; for < in text.
    if b"<!DOCTYPE" in body:
        raise UnreadableAnswer(
            "cannot read supervisord's answer, because it defines its own entities, which are not part of XML-RPC; "
            "check that this is the address of a supervisord"
        )
    try:
        value = _response_value(_parse(body))
        return _restore_controls(value, stand_ins) if stand_ins else value
    except client.Fault:
        raise
    except Exception as error:
        # The parser failed, or the code below failed because the answer has another structure.
        raise UnreadableAnswer(f"supervisord's answer is not XML-RPC: {type(error).__name__}") from None


def _parse(body: bytes) -> ElementTree.Element:
    # This is safe: answers with a DOCTYPE were rejected, so this answer cannot define entities.
    parser = ElementTree.XMLParser(encoding="utf-8")  # noqa: S314
    for start in range(0, len(body), _PART):
        parser.feed(body[start : start + _PART])
    return parser.close()


def _response_value(response: ElementTree.Element) -> Any:
    """Return the value that a parsed response contains.

    This function is three times as fast as the module ``xmlrpc`` of the standard library.
    """
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


def _restore_controls(value: Any, stand_ins: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        # For a long string, str.translate() would take a hundred times as long.
        for stand_in, control in stand_ins.items():
            value = value.replace(stand_in, control)
        return value
    if isinstance(value, list):
        return [_restore_controls(item, stand_ins) for item in value]
    if isinstance(value, Mapping):
        return {key: _restore_controls(item, stand_ins) for key, item in value.items()}
    return value
