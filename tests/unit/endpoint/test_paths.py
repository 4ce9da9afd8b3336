"""Paths: finding the route, and keeping tokens out of access logs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deferrable_ops.endpoint.paths import find_callback, find_channel, find_task, is_channel_name, mask_tokens
from deferrable_ops.events import ChannelEvent
from deferrable_ops.exceptions import InputError
from deferrable_ops.inbox.waits.callbacks import Verb

WAIT_ID = "7e230a22-651f-5a46-9adf-ea8756e35ab0"
TOKEN = f"{WAIT_ID}.08634b41.VJx81jlTWoezBTgYCMTXk4b53T9eWFuVPjj5kNonmS0"


@pytest.mark.parametrize(
    ("path", "meaning"),
    [
        ("/callbacks", (None, Verb.POST)),
        ("/callbacks/", (None, Verb.POST)),
        ("/callbacks/success", (None, Verb.SUCCESS)),
        ("/callbacks/heartbeat/", (None, Verb.HEARTBEAT)),
        ("/callbacks/TOKEN", ("TOKEN", Verb.POST)),
        ("/callbacks/TOKEN/", ("TOKEN", Verb.POST)),
        ("/callbacks/TOKEN/skip", ("TOKEN", Verb.SKIP)),
        ("/callbacks/TOKEN/failure/", ("TOKEN", Verb.FAILURE)),
        ("/callbacks/TOKEN/post", None),
        ("/callbacks/TOKEN/skip/more", None),
        ("/callbacksTOKEN", None),
        ("/", None),
    ],
)
def test_path_names_token_and_verb(path: str, meaning: Any) -> None:
    assert find_callback(path) == meaning


@pytest.mark.parametrize(
    ("path", "meaning"),
    [
        ("/dag/d/task/t/", ("d", "t")),
        ("/dag/d/task/t", ("d", "t")),
        ("/dag/ü.1/task/group.t/", ("ü.1", "group.t")),
        ("/dag//task/t/", None),
        ("/dag/d/task/t/x", None),
    ],
)
def test_path_names_dag_and_task(path: str, meaning: Any) -> None:
    assert find_task(path) == meaning


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/channels/orders", "orders"),
        ("/channels/orders/", "orders"),
        ("/channels/ü", "ü"),
        ("/channels/", None),
        ("/channels/a/b", None),
        ("/channel/a", None),
    ],
)
def test_path_names_a_channel(path: str, name: str | None) -> None:
    assert find_channel(path) == name


@given(st.text(max_size=130))
def test_channel_names_are_those_that_a_sensor_accepts(name: str) -> None:
    try:
        known = ChannelEvent(name).name == name and "{" not in name
    except InputError:
        known = False
    assert is_channel_name(name) == known


@pytest.mark.parametrize("name", ["orders", "a.b_c-d", "x" * 128, "9"])
def test_ordinary_names_are_channel_names(name: str) -> None:
    assert is_channel_name(ChannelEvent(name).name)


@pytest.mark.parametrize(
    ("path", "masked"),
    [
        (f"/callbacks/{TOKEN}", f"/callbacks/{WAIT_ID}.masked"),
        (f"/callbacks/{TOKEN}/success", f"/callbacks/{WAIT_ID}.masked/success"),
        (f"/callbacks/{TOKEN[:-3]}/success", f"/callbacks/{WAIT_ID}.masked/success"),
        (f"/callbacks/{TOKEN}/mistyped/{TOKEN}", f"/callbacks/{WAIT_ID}.masked/mistyped/{WAIT_ID}.masked"),
        ("/callbacks/some-other-secret", "/callbacks/masked"),
        ("/callbacks/some/other/secret", "/callbacks/masked/masked/masked"),
        ("/callbacks/success", "/callbacks/success"),
        (f"/callback/{TOKEN}", f"/callback/{WAIT_ID}.masked"),
        (f"//callbacks/{TOKEN}", f"//callbacks/{WAIT_ID}.masked"),
        ("/openapi.json", "/openapi.json"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "/deferrable-ops", "/airflow/deferrable-ops"])
def test_access_log_has_the_wait_id_and_not_the_token(prefix: str, path: str, masked: str) -> None:
    scope: dict[str, Any] = {"path": prefix + path, "raw_path": (prefix + path).encode(), "query_string": b""}
    mask_tokens(scope, path)
    assert scope["path"] == prefix + masked
    assert scope["raw_path"].decode() == prefix + masked


def test_token_in_the_query_is_masked() -> None:
    scope: dict[str, Any] = {"path": "/x", "query_string": f"a=1&t={TOKEN}&\xff".encode("latin-1")}
    mask_tokens(scope, "/x")
    assert scope["query_string"] == f"a=1&t={WAIT_ID}.masked&\xff".encode("latin-1")


@given(st.text(), st.text())
def test_token_is_masked_anywhere_in_the_path(before: str, after: str) -> None:
    path = f"/callbacks/{before}{TOKEN}{after}"
    scope: dict[str, Any] = {"path": path, "query_string": b""}
    mask_tokens(scope, path)
    assert TOKEN[-43:] not in scope["path"]
