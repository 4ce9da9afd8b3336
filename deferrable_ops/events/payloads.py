"""Decodes the bytes of a message into a value that Airflow and the inbox (in SQLite or Postgres) can store."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from deferrable_ops.plain_data import MAX_PAYLOAD_DEPTH, is_nested_deeper

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def decode_payload(body: bytes) -> Any:
    """Return the JSON value of a message's body, or a string if the body is not JSON. Never raises.

    A body that is JSON is also returned as a string if it contains one of these values, which cannot be stored:

    * an integer that does not fit into 64 bits, or a number that does not fit into a double, because XComs are sent as
      MessagePack,
    * the character U+0000, or one of U+D800 to U+DFFF without its other half, because Postgres cannot store them, or
    * more nested levels than :data:`MAX_PAYLOAD_DEPTH`.
    """
    text = decode_text(body)
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return text
    if text.count("[") + text.count("{") > MAX_PAYLOAD_DEPTH and is_nested_deeper(value, MAX_PAYLOAD_DEPTH):
        return text
    if "\\u" in text and _has_unstorable_character(value):
        return text
    return value


def decode_text(body: bytes) -> str:
    r"""Decode UTF-8. NUL bytes, and bytes that are not valid UTF-8, are replaced by escape sequences like ``\xff``.

    Never raises.
    """
    return body.decode("utf-8-sig", "backslashreplace").replace("\x00", "\\x00")


def _has_unstorable_character(value: Any) -> bool:
    level = [value]
    while level:
        if any(isinstance(item, str) and _UNSTORABLE.search(item) for item in level):
            return True
        level = [part for item in level for part in _parts(item)]
    return False


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else ()


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**64:
        raise ValueError("beyond 64 bits")
    return value


def _double(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("beyond a double")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON value")


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_double, parse_constant=_constant)
