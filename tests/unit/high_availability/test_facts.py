"""The facts of a DAG run, and the conf of its next one."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from unit.high_availability.support import START, facts

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability import conf as confs
from deferrable_ops.high_availability.conf import check_conf, read_conf
from deferrable_ops.high_availability.facts import RunFacts

SOON = START + timedelta(minutes=10)
MUCH_LATER = START + timedelta(minutes=10, seconds=1)
NO_INTERVAL: dict[str, Any] = {"logical_date": None, "data_interval_start": None, "data_interval_end": None}


def next_conf(
    given: dict[str, Any], run: RunFacts, task_id: str = "ha", ended_at: datetime = SOON, **arguments: Any
) -> dict[str, Any]:
    return confs.next_conf(
        given, run, task_id=task_id, reference_date="start_date", ended_at=ended_at, **arguments
    )


def test_facts_round_trip_as_json() -> None:
    run = facts({"counter": 3}, {"ha-force-run": True})
    assert RunFacts.from_json(json.loads(json.dumps(run.as_json()))) == run


@pytest.mark.parametrize(
    "reference_date, moment",
    [
        ("data_interval_end", datetime(2026, 3, 1, tzinfo=UTC)),
        ("logical_date", datetime(2026, 2, 28, tzinfo=UTC)),
        ("start_date", START),
    ],
)
def test_reference_is_the_named_date(reference_date: str, moment: datetime) -> None:
    assert facts().reference("ha", reference_date) == moment


@pytest.mark.parametrize("reference_date", ["data_interval_end", "logical_date"])
def test_run_without_a_data_interval_uses_run_after(reference_date: str) -> None:
    assert facts(**NO_INTERVAL).reference("ha", reference_date) == datetime(2026, 3, 1, 11, tzinfo=UTC)
    assert facts(**NO_INTERVAL, run_after=None).reference("ha", reference_date) == START


@pytest.mark.parametrize("text", ["2026-01-02T03:04:05", "2026-01-02T04:04:05+01:00"])
def test_carried_reference_date_takes_precedence_and_defaults_to_utc(text: str) -> None:
    moment = facts({"ha-referencedate": text}).reference("ha", "start_date")
    assert moment == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    "conf, params, count",
    [
        ({}, {}, 0),
        ({"ha-retrigger": 2}, {}, 2),
        ({"ha-retrigger": "2"}, {}, 2),
        ({"ha-retrigger": 2}, {"ha-force-retrigger": 0}, 0),
        ({"ha-retrigger": 2}, {"ha-force-retrigger": None}, 2),
    ],
)
def test_count_of_retriggers_is_carried_and_can_be_forced(
    conf: dict[str, Any], params: dict[str, Any], count: int
) -> None:
    assert facts(conf, params).retriggers("ha") == count


@pytest.mark.parametrize(
    "conf", [{"ha-retrigger": "many"}, {"ha-retrigger": [1]}, {"ha-referencedate": "soon"}]
)
def test_malformed_conf_value_is_named(conf: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(conf))):
        next_conf({}, facts(conf))


def test_next_conf_has_the_count_and_the_reference_of_the_chain() -> None:
    first = next_conf({"counter": 2}, facts())
    assert first == {
        "counter": 2,
        "ha-retrigger": 1,
        "ha-recent-retrigger": 1,
        "ha-referencedate": START.isoformat(),
    }
    second = next_conf({}, facts(first))
    assert second == {
        "counter": 2,
        "ha-retrigger": 2,
        "ha-recent-retrigger": 2,
        "ha-referencedate": START.isoformat(),
    }


def test_conf_is_carried_over_except_a_forced_count() -> None:
    conf = {
        "airflow_ha_force_run": True,
        "ha-force-runtime": 60,
        "ha-force-retrigger": 4,
        "mine": 1,
    }
    run = facts(conf, {"ha-force-retrigger": 4})
    conf_after = next_conf({}, run)
    assert "ha-force-retrigger" not in conf_after
    assert conf_after == {
        "airflow_ha_force_run": True,
        "ha-force-runtime": 60,
        "mine": 1,
        "ha-retrigger": 5,
        "ha-recent-retrigger": 5,
        "ha-referencedate": START.isoformat(),
    }


def test_replaced_conf_keeps_only_the_forced_values() -> None:
    conf = {"airflow_ha_force_run": True, "ha-force-runtime": 60, "ha-force-retrigger": 4, "mine": 1}
    conf_after = next_conf({"a": 1}, facts(conf), replaces=True)
    kept = {name: conf_after[name] for name in conf_after if not name.startswith("ha-re")}
    assert kept == {"a": 1, "airflow_ha_force_run": True, "ha-force-runtime": 60}


@pytest.mark.parametrize("replaces", [True, False])
def test_other_high_availability_tasks_keep_their_count(replaces: bool) -> None:
    conf = {"payments-retrigger": 3, "payments-referencedate": "2026-01-01T00:00:00+00:00", "x-retrigger": 1}
    after = next_conf(
        {},
        facts(conf),
        task_id="orders",
        others=["payments"],
        replaces=replaces,
    )
    assert after["payments-retrigger"] == 3
    assert after["payments-referencedate"] == "2026-01-01T00:00:00+00:00"
    assert ("x-retrigger" in after) is not replaces


@pytest.mark.parametrize("ended_at, recent", [(SOON, (6, 2)), (MUCH_LATER, (1, 0))])
def test_recent_retriggers_are_counted_from_the_last_long_run(
    ended_at: datetime, recent: tuple[int, int]
) -> None:
    conf = {
        "orders-retrigger": 9,
        "orders-recent-retrigger": 5,
        "payments-retrigger": 4,
        "payments-recent-retrigger": 2,
    }
    after = next_conf({}, facts(conf), "orders", ended_at, others=["payments"])
    assert (after["orders-recent-retrigger"], after["payments-recent-retrigger"]) == recent
    assert (after["orders-retrigger"], after["payments-retrigger"]) == (10, 4)


def test_recent_retriggers_of_an_older_release_are_all_retriggers() -> None:
    assert facts({"ha-retrigger": 3}).recent_retriggers("ha").at(SOON, 600) == 3
    assert facts({}, {"ha-force-retrigger": 4}).recent_retriggers("ha").at(SOON, 600) == 4


def test_forced_count_of_another_task_becomes_its_count() -> None:
    forced = {"payments-force-retrigger": 7}
    after = next_conf({}, facts(forced, forced), task_id="orders", others=["payments"])
    assert after["payments-retrigger"] == 7
    assert "payments-force-retrigger" not in after


def test_parent_of_openlineage_is_not_carried_over() -> None:
    # Airflow adds the parent of the next run, unless the conf has one already.
    lineage = {"parentRunId": "a", "rootParentRunId": "b", "mine": "c"}
    after = next_conf({}, facts({"openlineage": lineage}))
    assert after["openlineage"] == {"mine": "c"}


def test_given_conf_is_not_changed() -> None:
    given = {"counter": 2}
    next_conf(given, facts())
    assert given == {"counter": 2}


@pytest.mark.parametrize(
    "conf, expected", [(None, {}), ("", {}), ({"a": 1}, {"a": 1}), ('{"a": 1}', {"a": 1})]
)
def test_conf_is_a_dict_or_a_json_string(conf: Any, expected: dict[str, Any]) -> None:
    assert read_conf("conf", conf) == expected


@pytest.mark.parametrize("conf", ["{'a': 1}", "[1]", [1], 5])
def test_conf_of_another_type_is_refused(conf: Any) -> None:
    with pytest.raises(InputError, match="conf "):
        check_conf("conf", conf)


def test_conf_with_templates_is_validated_after_rendering() -> None:
    check_conf("conf", '{"counter": {{ ti.xcom_pull("get-count") }}}')


def test_check_gets_the_run_as_plain_data() -> None:
    context = facts({"counter": 3}, {"p": 1}).context()
    assert context["dag_run"].conf == {"counter": 3}
    assert context["dag_run"].start_date == START
    assert context["ds"] == "2026-02-28"
    assert context["params"] == {"p": 1}
    assert "ds" not in facts(**NO_INTERVAL).context()
    assert facts(**NO_INTERVAL).context()["logical_date"] is None
