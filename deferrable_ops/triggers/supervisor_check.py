"""Watching a supervisord's programs: a check that polls in the triggerer, together with all others of that daemon."""

from __future__ import annotations

from typing import Any, ClassVar

from deferrable_ops.triggers.high_availability import HighAvailabilityTrigger


class SupervisorCheckTrigger(HighAvailabilityTrigger):
    """Watches the programs of a supervisord, until they, a limit or the timeout end that.

    :param configuration: what ``seal_configuration`` made of a SupervisorAirflowConfiguration, or of one for SSH.
    :param rules: what :meth:`Rules.as_json` wrote; its pace is ``check_interval``.
    :param soft_fail: a timeout skips the task.
    :param run_facts: what :meth:`RunFacts.as_json` wrote, where a worker deferred the task; None where the scheduler
        did, because Airflow tells then.
    """

    feature: ClassVar[str] = "supervisor"
    classpath: ClassVar[str] = "deferrable_ops.triggers.supervisor_check.SupervisorCheckTrigger"
    arguments: ClassVar[tuple[str, ...]] = ("configuration", "rules", "soft_fail", "run_facts")

    def __init__(self, *, configuration: str = "", **base: Any) -> None:
        super().__init__(**base)
        self.configuration = configuration
