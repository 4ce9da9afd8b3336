from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.events.support import json_values

from deferrable_ops.events.payloads import decode_payload


@given(st.binary() | st.text().map(str.encode) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_body_becomes_a_storable_value(body: bytes) -> None:
    value = decode_payload(body)
    kept = json.dumps(value, allow_nan=False, ensure_ascii=False)
    kept.encode()
    assert "\x00" not in str(value)
    assert json.loads(kept) == value


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": [1, 2.5, null, true]}', {"a": [1, 2.5, None, True]}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'"\\u00e4\\ud83d\\ude00"', "ä😀"),
        (b"done", "done"),
        (b"", ""),
        (b"NaN", "NaN"),
        (b"1e999", "1e999"),
        (b"18446744073709551616", "18446744073709551616"),
        (b"18446744073709551615", 18446744073709551615),
        (b'{"a": "\\u0000"}', '{"a": "\\u0000"}'),
        (b'"\\ud800"', '"\\ud800"'),
        (b"a\x00\xff", "a\\x00\\xff"),
        (b"[" * 100 + b"]" * 100, json.loads("[" * 100 + "]" * 100)),
        (b"[" * 100 + b"1" + b"]" * 100, json.loads("[" * 100 + "1" + "]" * 100)),
        (b"[" * 100 + b'"["' + b"]" * 100, json.loads("[" * 100 + '"["' + "]" * 100)),
        (b"[" * 101 + b"]" * 101, "[" * 101 + "]" * 101),
        (b"[" * 102 + b"]" * 102, "[" * 102 + "]" * 102),
        (b"[" * 100_000, "[" * 100_000),
    ],
)
def test_json_is_decoded_and_other_bodies_stay_text(body: bytes, value: Any) -> None:
    assert decode_payload(body) == value
