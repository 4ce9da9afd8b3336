"""The route that sets a task's state by its name, as airflow_webhook_plugin had it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.endpoint.support import Caller

from deferrable_ops.inbox import Inbox, WaitState
from deferrable_ops.outcome import Failure, Skip, Success

ROUTE = "/dag/sales/task/train/"
DATE = "2026-01-01T00:00:00+00:00"
STATIC = "the static token"


@pytest.fixture
def static_token(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__AUTH_TOKEN", STATIC)
    return STATIC


async def patch(caller: Caller, token: str | None = None, **request: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token or caller.token}", **request.pop("headers", {})}
    return await caller.http.patch(request.pop("path", ROUTE), headers=headers, **request)


def parameters(**changed: Any) -> dict[str, Any]:
    given = {"execution_date": DATE, "try_number": 1, "state": "success", **changed}
    return {name: value for name, value in given.items() if value is not None}


@pytest.mark.parametrize("place", ["params", "data", "json"])
async def test_parameters_are_read_from_query_form_or_json(caller: Caller, place: str) -> None:
    answer = await patch(caller, **{place: parameters()})
    assert answer.status_code == 200
    assert answer.json() == {
        "dag_id": "sales",
        "task_id": "train",
        "execution_date": DATE,
        "try_number": 1,
        "previous_state": "deferred",
        "state": "success",
        "message": "Task instance state was updated to 'success'.",
    }
    assert (await caller.now()).outcome == Success(None)


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        ("failed", Failure("the outside service reported a failure")),
        ("skipped", Skip("the outside service skipped the work")),
    ],
)
async def test_state_decides_the_outcome(caller: Caller, state: str, outcome: Any) -> None:
    assert (await patch(caller, json=parameters(state=state))).json()["state"] == state
    assert (await caller.now()).outcome == outcome


@pytest.mark.parametrize(
    "date",
    [
        "2026-01-01",
        "2026-01-01T00:00:00",
        "2026-01-01T00:00:00Z",
        "2026-01-01 00:00",
        "2026-01-01T01:00:00+01:00",
    ],
)
async def test_execution_date_is_any_iso_8601(caller: Caller, date: str) -> None:
    assert (await patch(caller, params=parameters(execution_date=date))).status_code == 200


async def test_unescaped_plus_sign_in_the_query_is_accepted(caller: Caller) -> None:
    query = f"execution_date={DATE}&try_number=1&state=success"
    assert (await patch(caller, path=f"{ROUTE}?{query}")).status_code == 200


async def test_run_id_selects_the_run(caller: Caller) -> None:
    given = parameters(execution_date=None, run_id="manual")
    answer = await patch(caller, json=given)
    assert answer.status_code == 200
    assert (answer.json()["run_id"], answer.json()["execution_date"]) == ("manual", None)


async def test_map_index_selects_the_mapped_instance(inbox: Inbox, http: httpx.AsyncClient) -> None:
    caller = await Caller.of_new_wait(inbox, http, map_index=2)
    assert (await patch(caller, json=parameters())).status_code == 400
    assert (await patch(caller, json=parameters(map_index=2))).status_code == 200


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"execution_date": None}, "execution_date"),
        ({"execution_date": "yesterday"}, "execution_date"),
        ({"execution_date": 5}, "execution_date"),
        ({"try_number": None}, "try_number"),
        ({"try_number": "one"}, "try_number"),
        ({"try_number": True}, "try_number"),
        ({"try_number": 1.0}, "try_number"),
        ({"try_number": -1}, "try_number"),
        ({"try_number": 2**31}, "try_number"),
        ({"map_index": "x"}, "map_index"),
        ({"map_index": -2}, "map_index"),
        ({"state": None}, "state"),
        ({"state": "queued"}, "state"),
        ({"state": ["success"]}, "state"),
    ],
)
async def test_missing_or_malformed_parameter_is_400_and_named(
    caller: Caller, changed: dict[str, Any], named: str
) -> None:
    answer = await patch(caller, json=parameters(**changed))
    assert (answer.status_code, answer.json()["parameter"]) == (400, named)
    assert named in answer.json()["error"]
    assert (await caller.now()).state is WaitState.WAITING


async def test_nul_character_is_400(caller: Caller) -> None:
    answer = await patch(caller, params=parameters(run_id="a\0b"))
    assert (answer.status_code, answer.json()["parameter"]) == (400, "run_id")


@pytest.mark.parametrize("path", ["/dag/other/task/train/", "/dag/sales/task/other/", "/dag/a%00/task/t/"])
async def test_unknown_task_instance_is_400(caller: Caller, path: str) -> None:
    assert (await patch(caller, path=path, json=parameters())).status_code == 400


async def test_other_attempt_is_400(caller: Caller) -> None:
    answer = await patch(caller, json=parameters(try_number=2))
    assert answer.status_code == 400
    assert "no such task instance" in answer.json()["error"]


@pytest.mark.parametrize(
    "request_",
    [
        {"content": b"[]", "headers": {"Content-Type": "application/json"}},
        {"content": b"{", "headers": {"Content-Type": "application/json"}},
        {"content": b"x", "headers": {"Content-Type": "text/plain"}},
        {"content": b"state=%ff", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        {"content": b"state=\xff", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
    ],
)
async def test_body_without_parameters_is_400(caller: Caller, request_: dict[str, Any]) -> None:
    assert (await patch(caller, **request_)).status_code == 400


async def test_token_is_valid_for_its_own_task_only(
    inbox: Inbox, http: httpx.AsyncClient, caller: Caller
) -> None:
    other = await Caller.of_new_wait(inbox, http, run_id="other", map_index=5)
    answer = await patch(other, token=caller.token, json=parameters(map_index=5))
    assert answer.status_code == 400
    assert (await other.now()).state is WaitState.WAITING


async def test_static_token_is_valid_for_every_task(caller: Caller, static_token: str) -> None:
    assert (await patch(caller, token=static_token, json=parameters())).status_code == 200


async def test_static_token_is_not_valid_for_callbacks(caller: Caller, static_token: str) -> None:
    bearer = {"Authorization": f"Bearer {static_token}"}
    assert (await caller.http.post("/callbacks", json={}, headers=bearer)).status_code == 401


@pytest.mark.parametrize("token", ["the static toke", "the static token ", "", "None"])
async def test_other_tokens_are_401(caller: Caller, static_token: str, token: str) -> None:
    answer = await caller.http.patch(ROUTE, headers={"Authorization": f"Bearer {token}x"}, json=parameters())
    assert answer.status_code == 401


async def test_static_token_is_off_when_empty(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__AUTH_TOKEN", "")
    for header in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer"}):
        assert (await caller.http.patch(ROUTE, headers=header, json=parameters())).status_code == 401


async def test_token_is_checked_before_the_parameters(caller: Caller) -> None:
    assert (await patch(caller, token="x", content=b"{")).status_code == 401


async def test_settled_task_is_409_with_its_state(caller: Caller) -> None:
    await caller.post("success", json=5)
    answer = await patch(caller, json=parameters(state="failed"))
    assert answer.status_code == 409
    assert (answer.json()["previous_state"], answer.json()["state"]) == ("success", "success")
    assert "not updated" in answer.json()["message"]


async def test_superseded_task_is_410(inbox: Inbox, http: httpx.AsyncClient, caller: Caller) -> None:
    await Caller.of_new_wait(inbox, http, try_number=2)
    answer = await patch(caller, json=parameters())
    assert (answer.status_code, answer.json()["state"]) == (410, None)


async def test_repeated_request_gets_the_same_answer(caller: Caller) -> None:
    first = await patch(caller, json=parameters())
    again = await patch(caller, json=parameters())
    assert (again.status_code, again.content) == (200, first.content)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    given=st.dictionaries(
        st.sampled_from(["execution_date", "run_id", "try_number", "map_index", "state"]) | st.text(),
        st.none()
        | st.text()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.sampled_from([DATE, "success", "1", "0001-01-01T00:00:00+14:00"]),
    )
)
async def test_no_parameters_make_the_endpoint_fail(
    caller: Caller, static_token: str, given: dict[str, Any]
) -> None:
    answer = await patch(caller, token=static_token, json=given)
    assert answer.status_code in (200, 400, 409)
