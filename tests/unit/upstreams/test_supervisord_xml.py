"""Text arrives as supervisord sent it, although XML has no control characters."""

from __future__ import annotations

from xmlrpc import client

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deferrable_ops.upstreams import supervisord_xml

TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("\x00\x1b\r\n\t\x0b\x7f\x85<>&\ufdd0\ufdef\ufffe"),
    )
)


def sent(value: object) -> bytes:
    """An answer as supervisord makes it: by the standard library, which puts every character in as it is."""
    return client.dumps((value,), methodresponse=True).encode()


@given(text=TEXT)
@settings(deadline=None)
def test_text_arrives_as_it_was_written(text: str) -> None:
    body = sent([{"faultString": text}, text])
    stand_ins = {character for character in text if "\ufdd0" <= character <= "\ufdef"}
    controls = {character for character in text if character < " " and character not in "\t\n"}
    if (stand_ins and controls) or {"\ufffe", "\uffff"} & set(text):
        with pytest.raises(supervisord_xml.NotReadable):
            supervisord_xml.answer(body)
        return
    assert supervisord_xml.answer(body) == [{"faultString": text}, text]


def test_refusal_is_a_fault() -> None:
    with pytest.raises(client.Fault, match="BAD_NAME"):
        supervisord_xml.answer(client.dumps(client.Fault(10, "BAD_NAME: x")).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"<methodResponse></methodResponse>",
        sent(1)[:-20],
        b"\xff\xfe",
        sent(1).replace(b"<int>1</int>", b"<int>one</int>"),
    ],
)
def test_answer_that_is_none_is_not_readable(body: bytes) -> None:
    with pytest.raises(supervisord_xml.NotReadable, match="is no XML-RPC"):
        supervisord_xml.answer(body)


def test_number_that_xmlrpc_has_no_room_for_goes_as_text() -> None:
    arguments, method = client.loads(supervisord_xml.request("x.y", ["a", 2**31, 2**31 - 1, -1, True]))
    assert (method, arguments) == ("x.y", ("a", str(2**31), 2**31 - 1, -1, True))
