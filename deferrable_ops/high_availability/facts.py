"""The data of a DAG run that its checks and limits use. The data is the same on a worker and in a triggerer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.limits import Limits, forced_limits
from deferrable_ops.high_availability.retrigger_backoff import RecentRetriggers

FORCE_RUN: Final = "airflow_ha_force_run"
RETRIGGER: Final = "{}-retrigger"
RECENT_RETRIGGER: Final = "{}-recent-retrigger"
FORCE_RETRIGGER: Final = "{}-force-retrigger"
REFERENCE_DATE: Final = "{}-referencedate"

_MOMENTS: Final = ("logical_date", "data_interval_start", "data_interval_end", "run_after", "start_date")


class WorkerOnlyAttribute(AttributeError):
    """A check in a triggerer used an attribute of Airflow's context that exists only on a worker."""


class LimitedNamespace:
    """An object of Airflow's context with the attributes that a triggerer can provide.

    :param name: the name of the object in the context.
    """

    def __init__(self, *, name: str, **attributes: Any) -> None:
        self._name = name
        self.__dict__.update(attributes)

    def __getattr__(self, attribute: str) -> Any:
        # Python itself looks up names with underscores, for example to copy or to print the object.
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        raise WorkerOnlyAttribute(f"{self._name}.{attribute}")

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if name != "_name")
        return f"{self._name}({shown})"


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The data of a DAG run that its checks and limits use.

    :param moments: the dates of the DAG run in ISO 8601. The keys of ``moments`` are Airflow's names of these dates,
        such as ``logical_date``. The value of a missing date is None.
    :param params: the DAG run's params after Airflow validated them.
    """

    dag_id: str
    run_id: str
    run_type: str
    moments: Mapping[str, str | None]
    conf: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, context: Mapping[str, Any]) -> RunFacts:
        """Return the data of the DAG run from a task's context, on a worker or in a triggerer.

        In a test of a DAG, the DAG run in the context may be a simple object that has only a conf and dates.
        """
        dag_run, params = context["dag_run"], context.get("params") or {}
        run_type = getattr(dag_run, "run_type", "")
        return cls(
            getattr(dag_run, "dag_id", ""),
            getattr(dag_run, "run_id", ""),
            str(getattr(run_type, "value", run_type)),
            {name: _isoformat(getattr(dag_run, name, None)) for name in _MOMENTS},
            dict(dag_run.conf or {}),
            {name: params[name] for name in params},
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunFacts:
        """Return the data of the DAG run from a JSON object that :meth:`as_json` returned."""
        return cls(**{name: data[name] for name in cls.__slots__ if name in data})

    def as_json(self) -> dict[str, Any]:
        """Return the data of the DAG run as a JSON object."""
        return asdict(self)

    def moment(self, name: str) -> datetime | None:
        """Return one of the DAG run's dates in UTC, or None if the DAG run does not have this date."""
        text = self.moments.get(name)
        return None if text is None else datetime.fromisoformat(text).astimezone(UTC)

    def retriggers(self, task_id: str) -> int:
        """Return how many retriggers there were from the first run of the chain to this run. In a chain, each DAG run
        has started the next one.

        :raises InputError: if the number of retriggers in the DAG run's conf or params is not a number.
        """
        return self._count(task_id, RETRIGGER)

    def recent_retriggers(self, task_id: str) -> RecentRetriggers:
        """Return how many retriggers there were since the last long run of the chain, and when this run started.

        :raises InputError: if the number of retriggers in the DAG run's conf or params is not a number.
        """
        # An older release of the library has not set the number of recent retriggers.
        name = RECENT_RETRIGGER if RECENT_RETRIGGER.format(task_id) in self.conf else RETRIGGER
        return RecentRetriggers(self._count(task_id, name), self.moment("start_date"))

    def reference(self, task_id: str, reference_date: str) -> datetime:
        """Return the reference date in UTC.

        ``runtime`` and ``endtime`` are computed from the reference date. A retriggered DAG run uses the reference date
        of the first run in its chain. If the DAG run does not have the date that the argument ``reference_date`` names,
        ``run_after`` is used, or else ``start_date``.

        :raises InputError: if the reference date in the run's conf is malformed.
        """
        name = REFERENCE_DATE.format(task_id)
        carried = self.conf.get(name)
        if carried is not None:
            return _parse_moment(name, carried)
        for candidate in (reference_date, "run_after", "start_date"):
            if (moment := self.moment(candidate)) is not None:
                return moment
        return datetime.now(UTC)

    def is_forced(self, task_id: str) -> bool:
        """Return whether the conf or the params of this DAG run switch all limits off."""
        return bool(self.conf.get(FORCE_RUN) or self.params.get(f"{task_id}-force-run"))

    def limits(self, task_id: str, declared: Limits) -> Limits:
        """Return the limits of this DAG run.

        The params ``{task_id}-force-...`` replace the limits that the operator's arguments set.

        :raises InputError: if a limit in the DAG run's params is invalid.
        """
        if self.is_forced(task_id):
            return Limits()
        return declared.overridden_by(forced_limits(task_id, self.params))

    def context(self) -> dict[str, Any]:
        """Return the part of Airflow's task context that a check receives both on a worker and in a triggerer."""
        dag_run = LimitedNamespace(
            name="dag_run",
            dag_id=self.dag_id,
            run_id=self.run_id,
            run_type=self.run_type,
            conf=dict(self.conf),
            **{name: self.moment(name) for name in _MOMENTS},
        )
        context: dict[str, Any] = {
            "dag_run": dag_run,
            "params": dict(self.params),
            "run_id": self.run_id,
        }
        for name in ("logical_date", "data_interval_start", "data_interval_end"):
            context[name] = self.moment(name)
        if (date := self.moment("logical_date")) is not None:
            context |= {"ds": f"{date:%Y-%m-%d}", "ds_nodash": f"{date:%Y%m%d}", "ts": date.isoformat()}
            context["ts_nodash"] = f"{date:%Y%m%dT%H%M%S}"
            context["ts_nodash_with_tz"] = date.isoformat().replace("-", "").replace(":", "")
        return context

    def _count(self, task_id: str, key: str) -> int:
        forced = self.params.get(FORCE_RETRIGGER.format(task_id))
        name = (key if forced is None else FORCE_RETRIGGER).format(task_id)
        value = self.conf.get(name, 0) if forced is None else forced
        try:
            return max(0, int(value))
        except (TypeError, ValueError):
            raise InputError(
                f"the run's conf or params have {name}={value!r}; the value must be a whole number"
            ) from None


def _parse_moment(name: str, value: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            f"the run's conf has {name}={value!r}; the value must be an ISO 8601 date and time"
        ) from None


def _isoformat(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
