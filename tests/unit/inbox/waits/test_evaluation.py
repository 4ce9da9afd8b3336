from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deferrable_ops.inbox.waits.callbacks import Verb
from deferrable_ops.inbox.waits.evaluation import evaluate
from deferrable_ops.outcome import Failure, Success, outcome_from_json, outcome_to_json

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)
expressions = st.sampled_from(
    [
        "a",
        "@",
        "&a",
        "[?a > `1`]",
        "length(@)",
        "max_by(@, &a)",
        "join(',', @)",
        "`0`",
        "a || b",
        "not_null(a)",
        "*.a",
    ]
)
expected = st.dictionaries(st.sampled_from(["success_when", "failure_when", "result"]), expressions)


@given(verb=st.sampled_from(list(Verb)), payload=json_values, expected=expected)
def test_every_evaluation_can_be_stored_and_read(
    verb: Verb, payload: object, expected: dict[str, str]
) -> None:
    evaluation = evaluate(verb, payload, expected)
    json.dumps(evaluation.progress)
    if evaluation.outcome is not None:
        kept = json.loads(json.dumps(outcome_to_json(evaluation.outcome)))
        assert type(outcome_from_json(kept)) is type(evaluation.outcome)


@given(payload=st.fixed_dictionaries({"retryable": json_values, "reason": json_values}))
def test_only_retryable_false_makes_a_failure_final(payload: dict[str, object]) -> None:
    outcome = evaluate(Verb.FAILURE, payload, {}).outcome
    assert isinstance(outcome, Failure)
    assert outcome.retryable is (payload["retryable"] is not False)
    assert isinstance(outcome.reason, str)


@pytest.mark.parametrize(
    ("value", "true"),
    [
        (True, True),
        (0, True),
        ("x", True),
        ([0], True),
        (None, False),
        (False, False),
        ("", False),
        ([], False),
        ({}, False),
    ],
)
def test_truth_values_are_those_of_jmespath(value: object, true: bool) -> None:
    ends = evaluate(Verb.POST, {"a": value}, {"success_when": "a"}).outcome is not None
    assert ends is true


def test_without_expressions_any_payload_is_success() -> None:
    assert evaluate(Verb.POST, {"state": "failed"}, {}).outcome == Success({"state": "failed"})


def test_wait_with_only_a_result_ends_at_the_first_callback() -> None:
    assert evaluate(Verb.POST, {"rows": 3}, {"result": "rows"}).outcome == Success(3)
