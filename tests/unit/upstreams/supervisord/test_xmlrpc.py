"""Text is decoded as supervisord sent it, although XML forbids control characters."""

from __future__ import annotations

import time
from itertools import pairwise
from xmlrpc import client

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deferrable_ops.upstreams.supervisord import xmlrpc as supervisord_xmlrpc

TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("\x00\x1b\r\n\t\x0b\x7f\x85<>&\ufdd0\ufdef\ufffe"),
    )
)


def sent(value: object) -> bytes:
    """Return an answer as encoded by supervisord: by the standard library, which escapes no control characters."""
    return client.dumps((value,), methodresponse=True).encode()


@given(text=TEXT)
@settings(deadline=None)
def test_text_is_decoded_unchanged(text: str) -> None:
    body = sent([{"faultString": text}, text])
    stand_ins = {character for character in text if "\ufdd0" <= character <= "\ufdef"}
    controls = {character for character in text if character < " " and character not in "\t\n"}
    if (stand_ins and controls) or {"\ufffe", "\uffff"} & set(text):
        with pytest.raises(supervisord_xmlrpc.UnreadableAnswer):
            supervisord_xmlrpc.answer(body)
    else:
        assert supervisord_xmlrpc.answer(body) == [{"faultString": text}, text]


def test_refusal_is_a_fault() -> None:
    with pytest.raises(client.Fault, match="BAD_NAME"):
        supervisord_xmlrpc.answer(client.dumps(client.Fault(10, "BAD_NAME: x")).encode())


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
def test_invalid_answer_is_refused(body: bytes) -> None:
    with pytest.raises(supervisord_xmlrpc.UnreadableAnswer, match="is not XML-RPC"):
        supervisord_xmlrpc.answer(body)


def test_large_integer_is_sent_as_text() -> None:
    arguments, method = client.loads(supervisord_xmlrpc.request("x.y", ["a", 2**31, 2**31 - 1, -1, True]))
    assert (method, arguments) == ("x.y", ("a", str(2**31), 2**31 - 1, -1, True))


BILLION_LAUGHS = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "ha">%s]><methodResponse><params><param>
<value><string>&b;</string></value></param></params></methodResponse>"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_answer_that_defines_entities_is_refused(encoding: str) -> None:
    grows = "".join(f'<!ENTITY {a} "{f"&{b};" * 10}">' for b, a in pairwise("bcdefghij"))
    for entities in ("", grows, '<!ENTITY c SYSTEM "file:///etc/hostname">'):
        with pytest.raises(supervisord_xmlrpc.UnreadableAnswer):
            supervisord_xmlrpc.answer((BILLION_LAUGHS % entities).encode(encoding))
    with pytest.raises(supervisord_xmlrpc.UnreadableAnswer, match="defines its own entities"):
        supervisord_xmlrpc.answer((BILLION_LAUGHS % "").encode())


def test_text_that_looks_like_entities_is_decoded_unchanged() -> None:
    text = "<!DOCTYPE a [<!ENTITY b 'ha'>]> &b; <" + "x" * 500
    assert supervisord_xmlrpc.answer(sent(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"\x00" * 2**24, id="control characters"),
        pytest.param(bytes(range(32)) * 2**19, id="all control characters"),
        pytest.param(b"<a>" * 2**22, id="deep"),
        pytest.param(b"<a/>" * 2**22, id="many"),
        pytest.param(b"<a " + b" ".join(b"a%d=''" % n for n in range(10**6)) + b"/>", id="attributes"),
        pytest.param(b"<a b='" + b"x" * 2**24, id="one tag"),
    ],
)
def test_answer_that_would_keep_the_parser_busy_is_refused_quickly(text: bytes) -> None:
    begun = time.process_time()
    with pytest.raises(supervisord_xmlrpc.UnreadableAnswer, match="more tags or control characters"):
        supervisord_xmlrpc.answer(b"<methodResponse>" + text + b"</methodResponse>")
    assert time.process_time() - begun < 1.0, "the parser takes 4 to 22 s for each of them"


def test_long_text_with_control_characters_is_decoded_quickly() -> None:
    text = "\x1b[0m\x00" * 20_000 + "é" * 2**22
    begun = time.process_time()
    assert supervisord_xmlrpc.answer(sent([text])) == [text]
    assert time.process_time() - begun < 1.0
