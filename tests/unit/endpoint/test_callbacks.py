"""The callback contract, over HTTP: each status, in the order of the checks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from unit.endpoint.support import Caller

from deferrable_ops.endpoint.resources import UnknownKeyLog
from deferrable_ops.exceptions import UnknownKey
from deferrable_ops.inbox import Inbox, WaitState
from deferrable_ops.outcome import Failure, Skip, Success

FOREIGN = "00000000-0000-5000-8000-000000000000.00000000." + "A" * 43


async def test_any_json_settles_a_wait_without_expressions(caller: Caller) -> None:
    answer = await caller.post(json=[1, "two", None])
    assert (answer.status_code, answer.json()["state"]) == (200, "success")
    assert (await caller.now()).outcome == Success([1, "two", None])


@pytest.mark.parametrize("body", [None, True, 0, "", [], {}])
async def test_falsy_json_is_a_result_too(caller: Caller, body: Any) -> None:
    assert (await caller.post(content=json.dumps(body))).status_code == 200
    assert (await caller.now()).outcome == Success(body)


@pytest.mark.parametrize(
    ("verb", "body", "outcome"),
    [
        ("success", {"rows": 3}, Success({"rows": 3})),
        ("failure", {"reason": "disk full"}, Failure("disk full", retryable=True)),
        ("failure", {"reason": "bad input", "retryable": False}, Failure("bad input", retryable=False)),
        ("failure", {}, Failure("the outside service reported a failure")),
        ("failure", {"whatever": "the service sends"}, Failure("the outside service reported a failure")),
        ("skip", {"reason": "nothing new"}, Skip("nothing new")),
    ],
)
async def test_verb_decides_the_outcome(caller: Caller, verb: str, body: Any, outcome: Any) -> None:
    assert (await caller.post(verb, json=body)).status_code == 200
    assert (await caller.now()).outcome == outcome


async def test_failure_when_is_evaluated_before_success_when(inbox: Inbox, http: httpx.AsyncClient) -> None:
    expected = {"failure_when": "state == 'failed'", "success_when": "state != 'running'", "result": "score"}
    progress = await Caller.of_new_wait(inbox, http, expected=expected)
    answer = await progress.post(json={"state": "running"})
    assert (answer.status_code, answer.json()["state"]) == (202, "waiting")
    assert (await progress.now()).state is WaitState.WAITING
    assert (await progress.post(json={"state": "done", "score": 0.9})).status_code == 200
    assert (await progress.now()).outcome == Success(0.9)
    failed = await Caller.of_new_wait(inbox, http, run_id="other", expected=expected)
    assert (await failed.post(json={"state": "failed"})).json()["state"] == "failed"


async def test_heartbeat_resets_the_timeout_and_shows_progress(inbox: Inbox, http: httpx.AsyncClient) -> None:
    caller = await Caller.of_new_wait(inbox, http, heartbeat_timeout=60.0)
    answer = await caller.post("heartbeat", json={"progress": 0.4, "message": "epoch 4"})
    assert (answer.status_code, answer.json()["state"]) == (200, "waiting")
    wait = await caller.now()
    assert wait.last_beat is not None
    assert wait.progress == {"progress": 0.4, "message": "epoch 4"}
    assert wait.state is WaitState.WAITING


@pytest.mark.parametrize("path", ["/callbacks", "/callbacks/success"])
async def test_token_may_be_in_the_header(caller: Caller, path: str) -> None:
    bearer = {"Authorization": f"bearer {caller.token}"}
    assert (await caller.http.post(path, json=1, headers=bearer)).status_code == 200
    assert (await caller.now()).outcome == Success(1)


async def test_get_returns_state_and_times_and_changes_nothing(caller: Caller) -> None:
    before = await caller.now()
    by_path = await caller.http.get(f"/callbacks/{caller.token}")
    by_header = await caller.http.get("/callbacks", headers={"Authorization": f"Bearer {caller.token}"})
    assert by_path.json() == by_header.json()
    assert set(by_path.json()) == {"wait", "state", "created_at", "deadline", "last_beat", "settled_at"}
    assert by_path.json()["state"] == "waiting"
    assert await caller.now() == before


async def test_get_returns_expired_before_the_watcher_has_settled_the_wait(
    inbox: Inbox, http: httpx.AsyncClient
) -> None:
    caller = await Caller.of_new_wait(inbox, http, timeout=-1.0)
    assert (await http.get(f"/callbacks/{caller.token}")).json()["state"] == "expired"


@pytest.mark.parametrize("token", ["x", "success2", "%00", "a.b.c", "ü"])
async def test_foreign_token_is_401(http: httpx.AsyncClient, inbox: Inbox, token: str) -> None:
    answer = await http.post(f"/callbacks/{token}", json={})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "error" in answer.json()


@pytest.mark.parametrize("header", [{}, {"Authorization": "Basic abc"}, {"Authorization": "Bearer "}])
async def test_missing_token_is_401(http: httpx.AsyncClient, header: dict[str, str]) -> None:
    assert (await http.post("/callbacks/success", json={}, headers=header)).status_code == 401


async def test_changed_last_character_of_the_signature_is_401(caller: Caller) -> None:
    changed = caller.token[:-2] + ("AA" if caller.token[-2:] != "AA" else "BB")
    assert (await caller.http.post(f"/callbacks/{changed}", json={})).status_code == 401


async def test_signature_is_checked_before_the_body(caller: Caller) -> None:
    forged = f"/callbacks/{caller.wait.id}.{caller.wait.key_id}.{'A' * 43}"
    assert (await caller.http.post(forged, content=b"x" * 300_000)).status_code == 401
    assert (await caller.http.post(forged, content=b"not json")).status_code == 401


async def test_token_of_another_inbox_is_404_with_a_warning_that_does_not_hold_it(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [await caller.http.post(f"/callbacks/{FOREIGN}", json={}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].json() == {
        "error": "this endpoint's inbox does not have the key that signed the token; "
        "check that the endpoint and the triggerer have the same [deferrable_ops] inbox_url"
    }
    by_name = await caller.http.patch(
        "/dag/sales/task/train/?state=success", headers={"Authorization": f"Bearer {FOREIGN}"}
    )
    assert by_name.status_code == 404
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "does not have the key 00000000" in warning.message
    assert "A" * 43 not in caplog.text


async def test_forged_and_revoked_tokens_get_the_same_answer(caller: Caller) -> None:
    forged = await caller.http.post(f"/callbacks/{caller.wait.id}.{caller.wait.key_id}.{'A' * 43}", json={})
    await caller.inbox.keys.rotate(revoke_old=True)
    revoked = await caller.post(json={})
    assert (forged.status_code, forged.content, forged.headers) == (401, revoked.content, revoked.headers)
    assert revoked.status_code == 401


def test_warnings_about_unknown_keys_are_counted_and_at_most_one_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    unknown = UnknownKeyLog(60.0, lambda: now[0])
    for now[0] in (0.0, 1.0, 59.0, 61.0, 62.0):
        unknown.add(UnknownKey("wait", "00000000"))
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "Answered 1 requests with 404",
        "Answered 3 requests with 404",
    ]


async def test_size_is_checked_before_json(caller: Caller) -> None:
    answer = await caller.post(content=b"x" * 262_145)
    assert answer.status_code == 413
    assert "max_payload_bytes" in answer.json()["error"]
    assert (await caller.now()).state is WaitState.WAITING


async def test_largest_allowed_body_is_accepted(caller: Caller) -> None:
    assert (await caller.post(content=b'"' + b"x" * 262_142 + b'"')).status_code == 200


async def test_streamed_body_above_the_limit_is_413(caller: Caller) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while sent < 10_000_000:
            sent += 50_000
            yield b"x" * 50_000

    assert (await caller.post(content=endless())).status_code == 413
    assert sent < 1_000_000


async def test_limit_is_a_setting(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__MAX_PAYLOAD_BYTES", "10")
    assert (await caller.post(content=b'"123456789"')).status_code == 413
    assert (await caller.post(content=b'"12345678"')).status_code == 200


@pytest.mark.parametrize("body", [b"", b" ", b"{", b"state=done", b"\xff", b"NaN", b'{"a": Infinity}'])
async def test_body_that_is_not_json_is_400(caller: Caller, body: bytes) -> None:
    answer = await caller.post(content=body)
    assert answer.status_code == 400
    assert "JSON" in answer.json()["error"]
    assert (await caller.now()).state is WaitState.WAITING


@pytest.mark.parametrize(
    ("verb", "body", "field"),
    [
        ("failure", [], "object"),
        ("failure", {"reason": 5}, "reason"),
        ("failure", {"reason": None}, "reason"),
        ("failure", {"retryable": "no"}, "retryable"),
        ("skip", "why", "object"),
        ("skip", {"reason": ["x"]}, "reason"),
        ("heartbeat", None, "object"),
        ("heartbeat", {"progress": 1.01}, "progress"),
        ("heartbeat", {"progress": -0.01}, "progress"),
        ("heartbeat", {"progress": True}, "progress"),
        ("heartbeat", {"progress": "0.5"}, "progress"),
        ("heartbeat", {"message": 1}, "message"),
    ],
)
async def test_body_that_does_not_fit_the_verb_is_400(
    caller: Caller, verb: str, body: Any, field: str
) -> None:
    answer = await caller.post(verb, content=json.dumps(body))
    assert answer.status_code == 400
    assert field in answer.json()["error"]
    assert (await caller.now()).state is WaitState.WAITING


@pytest.mark.parametrize("key", [b"", b"two words", b"k" * 256, b"\xff"])
async def test_malformed_idempotency_key_is_400(caller: Caller, key: bytes) -> None:
    answer = await caller.post(json={}, headers=[(b"Idempotency-Key", key)])
    assert answer.status_code == 400
    assert "Idempotency-Key" in answer.json()["error"]


async def test_idempotency_key_given_twice_is_400(caller: Caller) -> None:
    twice = [(b"Idempotency-Key", b"a"), (b"Idempotency-Key", b"a")]
    assert (await caller.post(json={}, headers=twice)).status_code == 400


async def test_same_callback_gets_the_same_receipt_byte_for_byte(caller: Caller) -> None:
    first = await caller.post(json={"rows": 3})
    again = await caller.post(json={"rows": 3})
    assert (again.status_code, again.content) == (200, first.content)


async def test_receipt_stays_the_same_after_the_wait_has_ended(caller: Caller) -> None:
    first = await caller.post("success", json={"rows": 3})
    assert (await caller.post("failure", json={})).status_code == 409
    again = await caller.post("success", json={"rows": 3})
    assert (again.status_code, again.content) == (200, first.content)


async def test_idempotency_key_with_other_content_is_422(caller: Caller) -> None:
    key = {"Idempotency-Key": "k-1"}
    assert (await caller.post("heartbeat", json={"progress": 0.1}, headers=key)).status_code == 200
    assert (await caller.post("heartbeat", json={"progress": 0.2}, headers=key)).status_code == 422
    assert (await caller.post("success", json={"progress": 0.1}, headers=key)).status_code == 422


async def test_idempotency_key_is_scoped_to_the_token(
    inbox: Inbox, http: httpx.AsyncClient, caller: Caller
) -> None:
    other = await Caller.of_new_wait(inbox, http, run_id="other")
    key = {"Idempotency-Key": "k-1"}
    assert (await caller.post("success", json=1, headers=key)).status_code == 200
    assert (await other.post("success", json=2, headers=key)).status_code == 200


async def test_settled_wait_rejects_later_callbacks(caller: Caller) -> None:
    await caller.post("success", json=1)
    for verb, body in (("success", 2), ("failure", {}), ("heartbeat", {}), ("", 3)):
        answer = await caller.post(verb, json=body)
        assert (answer.status_code, answer.json()["state"]) == (409, "success")
    assert (await caller.now()).outcome == Success(1)


async def test_expired_wait_is_410(inbox: Inbox, http: httpx.AsyncClient) -> None:
    caller = await Caller.of_new_wait(inbox, http, timeout=-1.0)
    answer = await caller.post("success", json=1)
    assert (answer.status_code, answer.json()["state"]) == (410, "expired")


async def test_superseded_and_killed_waits_are_410(
    inbox: Inbox, http: httpx.AsyncClient, caller: Caller
) -> None:
    newer = await Caller.of_new_wait(inbox, http, try_number=2)
    superseded = await caller.post("success", json=1)
    assert (superseded.status_code, superseded.json()["state"]) == (410, "superseded")
    await inbox.waits.kill([newer.wait.id])
    killed = await newer.post("success", json=1)
    assert (killed.status_code, killed.json()["state"]) == (410, "killed")


async def test_unknown_wait_is_404(caller: Caller) -> None:
    unknown = "11111111-1111-5111-8111-111111111111"
    token = await caller.inbox.keys.token(unknown, caller.wait.key_id)
    for answer in (
        await caller.http.post(f"/callbacks/{token}", json={}),
        await caller.http.get(f"/callbacks/{token}"),
    ):
        assert answer.status_code == 404
        assert "never seen this wait" in answer.json()["error"]


async def test_many_callbacks_at_once_settle_a_wait_once(caller: Caller) -> None:
    answers = await asyncio.gather(*(caller.post("success", json=n) for n in range(50)))
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [200] + [409] * 49
    assert (await caller.now()).outcome == Success(statuses.index(200))


async def test_revoked_key_is_401(caller: Caller) -> None:
    await caller.inbox.keys.rotate(revoke_old=True)
    assert (await caller.post(json={})).status_code == 401


async def test_token_of_a_key_made_a_moment_ago_elsewhere_is_accepted(
    caller: Caller, inbox_url: str, http: httpx.AsyncClient
) -> None:
    assert (await caller.post("heartbeat")).status_code == 200  # now the endpoint has read its keys
    other = await Inbox.open(inbox_url.replace("sqlite:", "sqlite+aiosqlite:"), retry_timeout=2)
    try:
        await other.keys.rotate(revoke_old=False)
        newest = await Caller.of_new_wait(other, http, run_id="newest")
        assert newest.wait.key_id != caller.wait.key_id
        assert (await newest.post(json={})).status_code == 200
    finally:
        await other.close()


async def test_every_answer_is_private_json(caller: Caller) -> None:
    for answer in (
        await caller.post("heartbeat"),
        await caller.post(content=b"{"),
        await caller.http.post("/callbacks/x", json={}),
        await caller.http.get("/callbacks"),
        await caller.http.put(f"/callbacks/{caller.token}"),
        await caller.http.get("/nowhere"),
        await caller.http.get("/openapi.json"),
    ):
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        answer.json()


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/callbacks/x", "GET, POST"),
        ("GET", "/callbacks/x/success", "POST"),
        ("POST", "/dag/d/task/t/", "PATCH"),
    ],
)
async def test_other_methods_are_405(http: httpx.AsyncClient, method: str, path: str, allowed: str) -> None:
    answer = await http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


async def test_unknown_verb_is_404(caller: Caller) -> None:
    assert (await caller.post("explode")).status_code == 404
