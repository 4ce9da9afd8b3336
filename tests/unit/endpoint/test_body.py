"""Request bodies: which JSON is accepted, and the limits of size and time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from deferrable_ops.endpoint.body import BodyReader, Disconnected, parse_json
from deferrable_ops.endpoint.responses import RequestRejected

STORABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | STORABLE,
    lambda inner: st.lists(inner) | st.dictionaries(STORABLE, inner),
)


@given(VALUES, st.booleans())
def test_every_json_value_is_parsed_unchanged(value: Any, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary())
def test_any_bytes_are_json_or_rejected(body: bytes) -> None:
    try:
        value = parse_json(body)
    except RequestRejected as refused:
        status = refused.response.status
    else:
        json.dumps(value, allow_nan=False).encode()
        status = 200
    assert status in (200, 400)


@given(st.text())
def test_any_string_is_storable_or_rejected(value: str) -> None:
    storable = "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)
    encoded = json.dumps(value).encode()
    if storable:
        assert parse_json(encoded) == value
    else:
        assert _error(encoded) == (
            "the body cannot be stored; remove \\u0000, and every \\ud800 to \\udfff without its other half"
        )


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "empty"),
        (b"NaN", "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b"1e400", "double"),
        (b"-1e999", "double"),
        (b"18446744073709551616", "64 bits"),
        (b"-9223372036854775809", "64 bits"),
        (b"9" * 10_000, "64 bits"),
        (b'"\xff"', "byte 1 is not UTF-8"),
        (b'"\xed\xa0\x80"', "UTF-8"),
        (b'"\\ud800"', "without its other half"),
        (b'{"\\ud83d\\ude00\\ude00": 1}', "without its other half"),
        (b'{"\\u0000": 1}', "u0000"),
        (b'"a\\\\\\u0000"', "u0000"),
        (b'"\0"', "JSON"),
        (b"\xef\xbb\xbf{}", "JSON"),
        (b"{'a': 1}", "JSON"),
        (b"[1,]", "JSON"),
        (b"1 2", "JSON"),
        (b"[" * 101 + b"]" * 101, "100 levels"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "100 levels"),
        (b"[" * 100_000, "100 levels"),
    ],
)
def test_a_value_that_could_not_be_stored_is_rejected_with_the_reason(body: bytes, problem: str) -> None:
    assert problem in _error(body)


@pytest.mark.parametrize(
    "body",
    [
        b"18446744073709551615",
        b'"a\\\\u0000"',
        b'"\\ud83d\\ude00"',
        b"[" * 100 + b"]" * 100,
        b'"' + b"[" * 1000 + b'"',
        b"1e-400",
        b'{"a": 1, "a": 2}',
    ],
)
def test_a_storable_value_is_accepted(body: bytes) -> None:
    assert parse_json(body) == json.loads(body)


async def test_slow_body_is_408() -> None:
    async def stalled() -> Message:
        return await asyncio.Future()

    with pytest.raises(RequestRejected) as refused:
        await BodyReader(seconds=0.05).read({"headers": []}, stalled, 100)
    assert refused.value.response.status == 408
    assert (b"connection", b"close") in refused.value.response.headers


async def test_slow_body_does_not_cancel_a_quick_one() -> None:
    bodies = BodyReader(seconds=0.05)

    async def stalled() -> Message:
        return await asyncio.Future()

    async def quick() -> Message:
        return {"type": "http.request", "body": b"{}"}

    slow = asyncio.create_task(bodies.read({"headers": []}, stalled, 100))
    while not slow.done():
        assert await bodies.read({"headers": []}, quick, 100) == b"{}"
        await asyncio.sleep(0.01)
    assert isinstance(slow.exception(), RequestRejected)


async def test_cancelled_reading_stays_cancelled() -> None:
    async def stalled() -> Message:
        return await asyncio.Future()

    reading = asyncio.create_task(BodyReader().read({"headers": []}, stalled, 100))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_too_large_content_length_is_rejected_without_reading() -> None:
    async def unread() -> Message:
        raise AssertionError("the body was read")

    with pytest.raises(RequestRejected) as refused:
        await BodyReader().read({"headers": [(b"content-length", b"101")]}, unread, 100)
    assert refused.value.response.status == 413


async def test_client_that_disconnects_raises_disconnected() -> None:
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(Disconnected):
        await BodyReader().read({"headers": []}, gone, 100)


@given(st.lists(st.binary(max_size=40), max_size=6))
async def test_chunks_make_up_the_body(chunks: list[bytes]) -> None:
    messages: list[Message] = [
        *({"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks),
        {"type": "http.request"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    whole = b"".join(chunks)
    if len(whole) <= 100:
        assert await BodyReader().read({"headers": []}, receive, 100) == whole
    else:
        with pytest.raises(RequestRejected):
            await BodyReader().read({"headers": []}, receive, 100)


def _error(body: bytes) -> str:
    with pytest.raises(RequestRejected) as refused:
        parse_json(body)
    assert refused.value.response.status == 400
    error: str = json.loads(refused.value.response.body)["error"]
    return error
