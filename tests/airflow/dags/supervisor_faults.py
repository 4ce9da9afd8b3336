"""DAGs of tests/faults, one for each step; the test holds the triggerer in that step.

Each supervisord writes its pid to a file when it starts, by an event listener, and each program its own. The program
leaves a child process behind, and ends when the test creates a file.
"""

from __future__ import annotations

import os
from pathlib import Path

from airflow.sdk import DAG
from supervisor_holds import HeldCheck, HeldStep, HeldTeardown

from deferrable_ops.operators.supervisor import (
    EventListenerConfiguration,
    ProgramConfiguration,
    ProgramPolicy,
    Supervisor,
    SupervisorAirflowConfiguration,
)

FOLDERS = Path(os.environ.get("SUPERVISOR_FOLDERS", "/var/tmp/supervisor-tests"))
STEPS = (
    "configure-supervisor",
    "start-supervisor",
    "start-programs",
    "check-programs",
    "teardown",
    "restart-programs",
    "stop-programs",
    "stop-supervisor",
    "unconfigure-supervisor",
    "force-kill",
)
HELD = {"check-programs": HeldCheck, "teardown": HeldTeardown}

PROGRAM = "echo $$ >> {0}.starts; sleep 14400 & {1}until test -e {0}.end; do sleep 0.1; done"
FIRST_FAILS = "test -e {0}.failed || {{ touch {0}.failed; exit 1; }}; "


def config(name: str, step: str) -> SupervisorAirflowConfiguration:
    place = FOLDERS / name
    command = PROGRAM.format(place, FIRST_FAILS.format(place) if step == "restart-programs" else "")
    programs = {"test": ProgramConfiguration(command=f"sh -c '{command}'")}
    policies = {}
    if step == "stop-programs":  # one program ends the check, so that the other is left to stop
        programs["test"] = ProgramConfiguration(command=f"sh -c '{command}; exit 1'")
        programs["other"] = ProgramConfiguration(command="sleep 14400")
        policies["test"] = ProgramPolicy(exit_codes={1: "fail"})
    listener = f"sh -c 'echo $PPID >> {place}.supervisords; exec sleep 14400'"
    return SupervisorAirflowConfiguration(
        working_dir=place,
        program=programs,
        policies=policies,
        eventlistener={
            "witness": EventListenerConfiguration(command=listener, events=["TICK_3600"], autostart=True)
        },
        startsecs=0,
        check_interval=0.5,
        stopwaitsecs=5,
        # A held step must not time out. A triggerer that stays away for five minutes stays away longer.
        command_timeout=200,
        reference_date="start_date",
        maxretrigger=0 if step == "force-kill" else 1,
    )


for held in STEPS:
    with DAG(f"supf_{held}", schedule=None) as dag:
        supervisor = Supervisor(cfg=config(dag.dag_id, held))
        supervisor.task_of(held).trigger_class = HELD.get(held, HeldStep)
