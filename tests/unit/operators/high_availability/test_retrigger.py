"""Starting the next run on a worker, after a retrigger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from airflow.sdk import DAG, Param
from airflow.sdk.definitions.param import process_params
from airflow.sdk.exceptions import AirflowSkipException, DagRunTriggerException

from deferrable_ops.exceptions import InputError
from deferrable_ops.operators.high_availability import HighAvailabilityOperator
from deferrable_ops.outcome import Skip, Success, outcome_to_json

START = datetime(2026, 3, 1, 22, tzinfo=UTC)
CHOSEN = {"outcome": outcome_to_json(Success({"attempt": "01a1fd9a", "ended_at": START.timestamp()}))}


class Retrigger:
    """The retrigger gate of a run, and a fake of Airflow.

    :param exists: whether the next run exists already.
    :param conf: the conf of the run.
    :param merged: the argument `conf` of the check.
    :param wanted: the argument `pass_trigger_kwargs` of the check.
    """

    def __init__(
        self, exists: bool = False, conf: Any = None, merged: Any = None, wanted: Any = None
    ) -> None:
        with DAG("dag", schedule=None, start_date=START, params={"venue": Param(type="string")}) as dag:
            self.check, _other = (
                HighAvailabilityOperator(
                    task_id=name, python_callable="a.b", conf=merged, pass_trigger_kwargs=wanted
                )
                for name in ("ha", "other")
            )
        self.ti = MagicMock(**{"get_dr_count.return_value": int(exists)})
        run = SimpleNamespace(dag_id="dag", run_id="run", run_type="manual", conf=conf, start_date=START)
        self.context: Any = {
            "ti": self.ti,
            "task_instance": self.ti,
            "dag_run": run,
            "params": {},
            "dag": dag,
        }

    def start(self, event: dict[str, Any] = CHOSEN) -> DagRunTriggerException:
        """Return the request to start the next run."""
        with pytest.raises(DagRunTriggerException) as started:
            self.check.retrigger_pass.retrigger(self.context, event)
        return started.value


def test_next_run_id_contains_the_attempt_of_the_check() -> None:
    started = Retrigger().start()
    assert (started.trigger_dag_id, started.dag_run_id) == ("dag", "retrigger_1__01a1fd9a")
    assert started.conf == {
        "ha-retrigger": 1,
        "ha-recent-retrigger": 1,
        "ha-referencedate": START.isoformat(),
    }
    assert Retrigger(conf={"ha-retrigger": "4"}).start().dag_run_id == "retrigger_5__01a1fd9a"


def test_existing_run_is_not_started_again() -> None:
    retrigger = Retrigger(exists=True)
    retrigger.check.retrigger_pass.retrigger(retrigger.context, CHOSEN)
    retrigger.ti.get_dr_count.assert_called_once_with("dag", run_ids=["retrigger_1__01a1fd9a"])
    retrigger.ti.xcom_push.assert_called_once_with(key="trigger_run_id", value="retrigger_1__01a1fd9a")


@pytest.mark.parametrize("conf", [{"counter": 2}, '{"counter": 2}'])
def test_conf_is_a_dict_or_a_json_string(conf: Any) -> None:
    with DAG("dag", schedule=None, start_date=START):
        ha = HighAvailabilityOperator(task_id="ha", python_callable="a.b", pass_trigger_kwargs={"conf": conf})
    retrigger = Retrigger()
    retrigger.check = ha
    started = retrigger.start().conf
    assert started is not None
    assert started["counter"] == 2
    assert started["ha-retrigger"] == 1


def test_invalid_json_after_rendering_is_named() -> None:
    retrigger = Retrigger()
    retrigger.check.retrigger_pass.conf = '{"counter": }'
    with pytest.raises(InputError, match="conf is not valid JSON"):
        retrigger.check.retrigger_pass.retrigger(retrigger.context, CHOSEN)


def test_next_run_keeps_the_conf_and_so_its_params() -> None:
    retrigger = Retrigger(conf={"venue": "LSE", "limits": {"AAPL": 5}})
    conf = retrigger.start().conf
    assert conf is not None
    assert conf["limits"] == {"AAPL": 5}
    check: Any = retrigger.check
    # The param has no default, so a run without a value would end the chain.
    assert process_params(check.dag, check, conf, suppress_exception=False)["venue"] == "LSE"


@pytest.mark.parametrize("merged", [{"venue": "NYSE", "try": 2}, '{"venue": "NYSE", "try": 2}'])
def test_conf_of_the_check_is_merged_into_the_conf_of_the_run(merged: Any) -> None:
    conf = Retrigger(conf={"venue": "LSE", "book": "a"}, merged=merged).start().conf
    assert conf is not None
    assert (conf["venue"], conf["book"], conf["try"]) == ("NYSE", "a", 2)


@pytest.mark.parametrize("given", [{"try": 2}, {}])
def test_conf_of_the_trigger_kwargs_replaces_the_conf(given: dict[str, Any]) -> None:
    retrigger = Retrigger(
        conf={"venue": "LSE", "other-retrigger": 3}, merged={"book": "a"}, wanted={"conf": given}
    )
    assert retrigger.start().conf == {
        **given,
        "other-retrigger": 3,
        "other-recent-retrigger": 3,
        "ha-retrigger": 1,
        "ha-recent-retrigger": 1,
        "ha-referencedate": START.isoformat(),
    }


def test_retrigger_after_a_long_run_counts_from_one() -> None:
    ended = (START + timedelta(minutes=11)).timestamp()
    event = {"outcome": outcome_to_json(Success({"attempt": "01a1fd9a", "ended_at": ended}))}
    request = Retrigger(conf={"ha-retrigger": 4}).start(event)
    assert request.dag_run_id == "retrigger_5__01a1fd9a"
    assert request.conf is not None
    assert request.conf["ha-recent-retrigger"] == 1


def test_event_of_an_older_release_has_no_time() -> None:
    event = {"outcome": outcome_to_json(Success({"attempt": "01a1fd9a"}))}
    assert Retrigger().start(event).dag_run_id == "retrigger_1__01a1fd9a"


def test_counts_of_other_checks_are_carried_over() -> None:
    assert Retrigger(conf={"other-retrigger": 3, "mine": 1}).start().conf == {
        "mine": 1,
        "other-retrigger": 3,
        "other-recent-retrigger": 3,
        "ha-retrigger": 1,
        "ha-recent-retrigger": 1,
        "ha-referencedate": START.isoformat(),
    }


def test_arguments_of_airflows_operator_are_used() -> None:
    started = Retrigger(
        wanted={
            "trigger_dag_id": "other_dag",
            "trigger_run_id": "mine",
            "note": "again",
            "reset_dag_run": True,
        }
    )
    request = started.start()
    assert (request.trigger_dag_id, request.dag_run_id, request.note) == ("other_dag", "mine", "again")
    assert request.reset_dag_run is True
    started.ti.get_dr_count.assert_not_called()


def test_skipped_gate_starts_no_run() -> None:
    retrigger = Retrigger()
    with pytest.raises(AirflowSkipException, match="ended as"):
        retrigger.check.retrigger_pass.retrigger(
            retrigger.context, {"outcome": outcome_to_json(Skip("ha ended as pass/stop"))}
        )
    retrigger.ti.get_dr_count.assert_not_called()
