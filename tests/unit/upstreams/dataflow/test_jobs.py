"""Jobs and messages of the API are converted to Python types."""

from __future__ import annotations

import json

import psutil
import pytest
from google.cloud import dataflow_v1beta3 as api

from deferrable_ops.upstreams.dataflow.jobs import (
    DRAINED,
    MAX_MESSAGES,
    PAUSED,
    RUNNING,
    DataflowTarget,
    Job,
    JobMessage,
    MessageCursor,
    MessageList,
    job_from_api,
    message_from_api,
    state_name,
    state_number,
)


def message(seconds: float, text: str = "said") -> JobMessage:
    said = api.JobMessage(id="1", message_text=text, message_importance=3)
    api.JobMessage.pb(said).time.FromNanoseconds(int(seconds * 1_000_000) * 1_000)
    return message_from_api(api.JobMessage.pb(said))


def found(*messages: JobMessage, left_out: int = 0) -> MessageList:
    return MessageList(messages, left_out)


def test_state_numbers_are_those_of_the_api() -> None:
    assert [state_name(state.value) for state in api.JobState] == [state.name for state in api.JobState]
    assert [state_number(state.name) for state in api.JobState] == [state.value for state in api.JobState]
    assert (DRAINED, PAUSED) == (api.JobState.JOB_STATE_DRAINED, api.JobState.JOB_STATE_PAUSED)


def test_unknown_state_keeps_its_number() -> None:
    message = api.Job.pb(api.Job(id="1"))
    message.current_state = 99
    job = job_from_api(message, "p", "r")
    assert (job.state, job.state_name, job.is_finished) == (99, "JOB_STATE_99", False)
    assert job.as_dict()["currentState"] == "JOB_STATE_99"


@pytest.mark.parametrize("kind, streaming", [(0, None), (1, False), (2, True)])
def test_type_of_a_job_is_unknown_until_the_api_returns_it(kind: int, streaming: bool | None) -> None:
    assert job_from_api(api.Job.pb(api.Job(type_=kind)), "p", "r").is_streaming is streaming


def test_a_job_becomes_the_json_of_the_api() -> None:
    described = api.Job(id="1", name="etl", type_=2, current_state=2, labels={"team": "a"}, project_id="p")
    shown = job_from_api(api.Job.pb(described), "p", "r").as_dict()
    assert shown == json.loads(json.dumps(shown))
    assert shown == {
        "id": "1",
        "name": "etl",
        "projectId": "p",
        "location": "r",
        "type": "JOB_TYPE_STREAMING",
        "currentState": "JOB_STATE_RUNNING",
        "labels": {"team": "a"},
    }


def test_a_job_made_by_hand_becomes_the_same_json() -> None:
    described = api.Job(id="1", name="etl", type_=2, current_state=2, labels={"team": "a"}, project_id="p")
    by_hand = Job("1", "etl", "p", "r", RUNNING, is_streaming=True, labels={"team": "a"})
    assert by_hand.as_dict() == job_from_api(api.Job.pb(described), "p", "r").as_dict()


def test_job_does_not_keep_its_list_in_memory() -> None:
    megabyte = "x" * 1_000_000
    in_list = api.ListJobsResponse(jobs=[api.Job(id="1"), api.Job(id="2", name=megabyte)])
    answer = api.ListJobsResponse.serialize(in_list)
    received = type(api.ListJobsResponse.pb(in_list)).FromString
    before = psutil.Process().memory_full_info().uss
    kept = [job_from_api(received(answer).jobs[0], "p", "r") for _ in range(50)]
    assert psutil.Process().memory_full_info().uss - before < 10 * len(megabyte)
    assert all(job.message.id == "1" for job in kept)


def test_times_sort_as_strings() -> None:
    times = [message(second).time for second in (9.5, 10, 10.25, 1_700_000_000)]
    assert times == sorted(times)
    assert times[2] == "1970-01-01T00:00:10.250000000Z"


def test_the_cursor_skips_what_was_read() -> None:
    read = [message(100, "a"), message(100, "b")]
    cursor = MessageCursor("").after(found(*read))
    assert cursor.unread(found(*read, new := message(100, "c"))) == found(new)


def test_cursor_includes_late_messages() -> None:
    cursor = MessageCursor("").after(found(message(100, "prompt")))
    late = message(95, "late")
    assert cursor.time <= late.time
    assert cursor.unread(found(late, message(100, "prompt"))) == found(late)


def test_cursor_does_not_grow_with_the_number_of_messages() -> None:
    said = [message(100 + number / 1000, str(number)) for number in range(1_000)]
    cursor = MessageCursor("").after(found(*said))
    assert len(cursor.ids) == 200
    assert cursor.unread(found(*(one for one in said if one.time >= cursor.time))) == found()


def test_messages_that_were_left_out_are_counted_once() -> None:
    said = [message(100 + number / 1_000_000, str(number)) for number in range(1_000)]
    first = found(*said[-MAX_MESSAGES:], left_out=1_000 - MAX_MESSAGES)
    assert MessageCursor("").unread(first) == first
    cursor = MessageCursor("").after(first)
    again = [one for one in said if one.time >= cursor.time]
    assert len(again) < MAX_MESSAGES
    assert cursor.unread(found(*again)) == found()


def test_messages_that_were_read_and_left_out_later_are_not_counted() -> None:
    read = [message(100, "a"), message(100, "b")]
    cursor = MessageCursor("").after(found(*read))
    new = [message(101, str(number)) for number in range(MAX_MESSAGES)]
    assert cursor.unread(found(*new, left_out=5)) == found(*new, left_out=3)


def test_the_cursor_after_the_last_nanosecond_of_a_second_is_the_next_second() -> None:
    last = api.JobMessage(id="1", message_text="x")
    api.JobMessage.pb(last).time.FromNanoseconds(59_999_999_999)
    cursor = MessageCursor("").after(found(message_from_api(api.JobMessage.pb(last)), left_out=1))
    assert cursor.time == "1970-01-01T00:01:00.000000000Z"


def test_the_cursor_never_goes_back() -> None:
    cursor = MessageCursor("").after(found(message(100, "a")))
    assert cursor.after(found(message(100, "a"))).time == cursor.time
    assert cursor.after(found()) is cursor


def test_the_cursor_survives_being_stored() -> None:
    cursor = MessageCursor("").after(found(message(100, "a")))
    assert MessageCursor.from_json(json.loads(json.dumps(cursor.as_json()))) == cursor


def test_outages_of_different_accounts_have_different_names() -> None:
    targets = [
        DataflowTarget("p", "r"),
        DataflowTarget("p", "r", "my_gcp"),
        DataflowTarget("p", "r", "my_gcp", ("a@p", "b@p")),
    ]
    assert [target.source for target in targets] == [
        "Dataflow (p, r)",
        "Dataflow (p, r, connection my_gcp)",
        "Dataflow (p, r, connection my_gcp, as b@p)",
    ]
