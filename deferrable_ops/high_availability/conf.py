"""Validates and computes the conf of the next DAG run, if a task starts its own DAG again (a retrigger)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.facts import (
    FORCE_RETRIGGER,
    FORCE_RUN,
    RECENT_RETRIGGER,
    REFERENCE_DATE,
    RETRIGGER,
    RunFacts,
)
from deferrable_ops.high_availability.retrigger_backoff import DEFAULT_RESET_AFTER
from deferrable_ops.plain_data import has_template

_FORCED = ("run", "runtime", "endtime", "maxretrigger")
_OPENLINEAGE = "openlineage"
# Airflow writes these keys into the conf's part `openlineage`, unless the part has one of them already.
_LINEAGE_PREFIXES = ("parent", "root")


def check_conf(argument: str, conf: Any) -> None:
    """Validate the argument ``conf`` when the DAG is parsed.

    A ``conf`` with Jinja templates is validated later, after rendering.

    :param argument: the name of the operator's argument that contains the conf; error messages show this name.
    :raises InputError: if the conf is neither a dict nor a string that contains a JSON object.
    """
    if isinstance(conf, str) and has_template(conf):
        return
    read_conf(argument, conf)


def read_conf(argument: str, conf: Any) -> dict[str, Any]:
    """Return a conf as a new dict.

    :param conf: the conf after its Jinja templates were rendered.
    :raises InputError: if the conf is neither a dict nor a string that contains a JSON object.
    """
    if conf is None:
        return {}
    if isinstance(conf, str):
        try:
            conf = json.loads(conf) if conf.strip() else {}
        except ValueError as error:
            raise InputError(
                f"{argument} is not valid JSON ({error}); give a dict, or a JSON object as a string"
            ) from None
    if not isinstance(conf, Mapping):
        raise InputError(f"{argument} is a {type(conf).__name__}; give a dict, or a JSON object as a string")
    return dict(conf)


def next_conf(
    given: Mapping[str, Any],
    facts: RunFacts,
    *,
    task_id: str,
    reference_date: str,
    ended_at: datetime,
    reset_after: float = DEFAULT_RESET_AFTER,
    others: Sequence[str] = (),
    replaces: bool = False,
) -> dict[str, Any]:
    """Return the conf of the next DAG run, which a retrigger starts.

    The next run keeps this run's conf, and thus the params that were set for this run. The key
    ``{task_id}-force-retrigger``, which sets the number of retriggers, is not copied: it applies to only one run.

    :param given: the conf that the user has set for the next DAG run. The keys in `given` replace equal keys of this
        run's conf.
    :param ended_at: when the checks of this run ended; a datetime with a timezone.
    :param reset_after: a run that is longer than this number of seconds is a long run.
    :param others: the ids of the DAG's other high availability tasks.
    :param replaces: whether `given` replaces the whole conf of this run. If True, only these keys of this run's conf
        are copied: ``airflow_ha_force_run``, ``{task_id}-force-...``, and the numbers of retriggers and the reference
        date of each task in `others`.
    :raises InputError: if a value of this run's conf is malformed.
    """
    chain = [task_id, *others]
    if replaces:
        names = [FORCE_RUN, *(f"{task}-force-{what}" for task in chain for what in _FORCED)]
        names += [
            name.format(task) for task in others for name in (RETRIGGER, RECENT_RETRIGGER, REFERENCE_DATE)
        ]
        kept = {name: facts.conf[name] for name in names if name in facts.conf}
    else:
        kept = _without_lineage(facts.conf)
    for task in chain:
        kept.pop(FORCE_RETRIGGER.format(task), None)
        if facts.params.get(FORCE_RETRIGGER.format(task)) is not None:
            kept[RETRIGGER.format(task)] = facts.retriggers(task)
    recent = {task: facts.recent_retriggers(task).at(ended_at, reset_after) for task in chain}
    kept |= {RECENT_RETRIGGER.format(task): recent[task] for task in others if RETRIGGER.format(task) in kept}
    return {
        **kept,
        **given,
        RETRIGGER.format(task_id): facts.retriggers(task_id) + 1,
        RECENT_RETRIGGER.format(task_id): recent[task_id] + 1,
        REFERENCE_DATE.format(task_id): facts.reference(task_id, reference_date).isoformat(),
    }


def _without_lineage(conf: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a conf without the parent run that Airflow has recorded in it for OpenLineage.

    If the copy contained the parent of this run, Airflow would not record the parent of the next run.
    """
    copy = dict(conf)
    lineage = copy.get(_OPENLINEAGE)
    if isinstance(lineage, Mapping):
        own = {key: value for key, value in lineage.items() if not key.startswith(_LINEAGE_PREFIXES)}
        del copy[_OPENLINEAGE]
        copy |= {_OPENLINEAGE: own} if own else {}
    return copy
