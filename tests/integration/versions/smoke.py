"""Run by `test_matrix.py` with the Python and the Airflow of one combination: ``python smoke.py EXAMPLES``.

Prints the versions of Python and Airflow, how many modules were imported, and how many DAGs the examples have.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import pkgutil
import platform
import sys
from importlib.metadata import version

import deferrable_ops


def import_all() -> int:
    """Import every module of the package, and return their number."""
    names = [module.name for module in pkgutil.walk_packages(deferrable_ops.__path__, "deferrable_ops.")]
    modules = [name for name in names if not name.endswith("__main__")]
    for name in modules:
        importlib.import_module(name)
    return len(modules)


def parse_examples(folder: str) -> int:
    """Parse the examples as the dag-processor does, serialize their DAGs, and return the number of DAGs."""
    from airflow.dag_processing.dagbag import DagBag
    from airflow.serialization.serialized_objects import DagSerialization

    bag = DagBag(folder, bundle_name="examples")
    assert not bag.import_errors, bag.import_errors
    for dag in bag.dags.values():
        DagSerialization.deserialize_dag(DagSerialization.to_dict(dag)["dag"])
    return len(bag.dags)


async def use_inbox(url: str) -> None:
    """Register two waits in a new inbox; settle one, and end the other by a callback."""
    from deferrable_ops.inbox import Attempt, Inbox, NewWait, WaitState
    from deferrable_ops.inbox.waits.callbacks import Callback, Verb
    from deferrable_ops.outcome import Success

    inbox = await Inbox.open(url, retry_timeout=20)
    for number in (1, 2):
        attempt = Attempt(
            f"0198c0de-0000-7000-8000-00000000000{number}", 1, "dag", "run", f"task_{number}", -1
        )
        wait = await inbox.waits.register(NewWait(attempt, feature="webhook", timeout=3600.0))
        assert wait.state is WaitState.WAITING
        if number == 1:
            assert (await inbox.waits.settle(wait.id, Success({"rows": 3}))).state is WaitState.SUCCESS
        else:
            receipt = await inbox.callbacks.record(Callback(wait.id, Verb("success"), b"1", 1, source="test"))
            assert receipt.status == 200
        assert (await inbox.waits.get(wait.id)).state is WaitState.SUCCESS
    await inbox.close()


def main(examples: str) -> None:
    """Do all of it."""
    modules, dags = import_all(), parse_examples(examples)
    asyncio.run(use_inbox(f"sqlite+aiosqlite:///{os.environ['AIRFLOW_HOME']}/smoke.db"))
    print(
        f"python {platform.python_version()} airflow {version('apache-airflow')} modules {modules} dags {dags}"
    )


if __name__ == "__main__":
    main(sys.argv[1])
