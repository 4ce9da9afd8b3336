"""The outside service of these tests does what a test tells it to."""

from __future__ import annotations

import threading

import httpx
import pytest

from real_airflow import Answer, OutsideService, ReceivedRequest

BODY = {"model": "churn", "notify": {"url": "http://nobody/deferrable-ops/callbacks/token"}}


def test_request_is_recorded_with_its_key_its_body_and_its_callback_url(outside: OutsideService) -> None:
    answer = httpx.post(f"{outside.url}/train?x=1", json=BODY, headers={"Idempotency-Key": "k1"})

    [request] = outside.wait_for_requests("/train")
    assert answer.json() == {"accepted": True}
    assert (request.idempotency_key, request.body, request.query) == ("k1", BODY, {"x": "1"})
    assert request.callback_url == BODY["notify"]["url"]


def test_header_names_the_callback_url_where_the_body_does_not() -> None:
    request = ReceivedRequest("POST", "/", {"callback-url": "http://nobody/hook"}, {}, "", 0)

    assert request.callback_url == "http://nobody/hook"


def test_scripted_answers_come_in_order_and_the_last_is_repeated(outside: OutsideService) -> None:
    outside.script("/train", Answer(status=503), Answer(drop=True), Answer(status=201))

    assert httpx.post(f"{outside.url}/train").status_code == 503
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.post(f"{outside.url}/train")
    assert [httpx.post(f"{outside.url}/train").status_code for _ in range(2)] == [201, 201]


def test_held_request_is_recorded_and_answered_only_when_released(outside: OutsideService) -> None:
    release = outside.hold("/train", Answer(status=202))
    answers: list[int] = []
    caller = threading.Thread(target=lambda: answers.append(httpx.post(f"{outside.url}/train").status_code))
    caller.start()

    outside.wait_for_requests("/train")
    assert answers == []
    release.set()
    caller.join(timeout=10)
    assert answers == [202]


def test_callbacks_reach_their_address_in_order_before_the_answer_where_told_so(
    outside: OutsideService,
) -> None:
    answer = Answer(callback={"state": "done"}, callback_after=None, heartbeats=({"progress": 0.5},))
    outside.script("/train", answer)
    url = f"{outside.url}/deferrable-ops/callbacks/t"
    httpx.post(f"{outside.url}/train", headers={"Callback-Url": url})

    received = [(request.path, request.body) for request in outside.requests()[1:]]
    assert received == [
        ("/deferrable-ops/callbacks/t/heartbeat", {"progress": 0.5}),
        ("/deferrable-ops/callbacks/t", {"state": "done"}),
    ]
