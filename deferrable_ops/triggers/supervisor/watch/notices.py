"""Sends notices about events of programs with Airflow's notifiers. The watching task never waits for a notifier, except
for a few seconds at its end.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Iterable
from importlib import import_module
from typing import Any, ClassVar

from deferrable_ops.inbox import Attempt
from deferrable_ops.supervisord.policy import ProgramNotifier
from deferrable_ops.triggers.supervisor.configuration import mask_secrets
from deferrable_ops.triggers.supervisor.host import SupervisorHost
from deferrable_ops.triggers.supervisor.watch.process_xcoms import last_lines, status_of
from deferrable_ops.triggers.supervisor.watch.program_events import ProgramEvent, ProgramEventKind


class Notices:
    """Sends the notices of one watching task.

    For each process and kind of event, at most one notice is sent per :attr:`min_interval`. The next notice has the
    number of skipped events.
    """

    min_interval: ClassVar[float] = 60.0
    """The shortest time between two notices of one kind about one process, in seconds."""
    timeout: ClassVar[float] = 30.0
    """The longest time that one notifier may take, in seconds."""
    finish_timeout: ClassVar[float] = 10.0
    """The longest time that the task waits for its notices when it ends, in seconds."""
    max_running: ClassVar[int] = 20
    """The largest number of notices that are sent at the same time. Further notices are skipped."""

    __slots__ = ("_attempt", "_host", "_running", "_sent", "_skipped")

    def __init__(self, host: SupervisorHost, attempt: Attempt) -> None:
        self._host = host
        self._attempt = attempt
        self._sent: dict[tuple[str, ProgramEventKind], float] = {}
        self._skipped: dict[tuple[str, ProgramEventKind], int] = {}
        self._running: set[asyncio.Task[None]] = set()

    def send(self, events: Iterable[ProgramEvent]) -> None:
        """Send a notice for each event, in the background. This method never raises and never waits."""
        for event in events if self._host.cfg.on_program_event else ():
            key, now = (event.process.full_name, event.kind), time.monotonic()
            is_recent = now - self._sent.get(key, float("-inf")) < self.min_interval
            if is_recent or len(self._running) >= self.max_running:
                self._skipped[key] = self._skipped.get(key, 0) + 1
                continue
            self._sent[key] = now
            task = asyncio.create_task(self._notify(event, self._skipped.pop(key, 0)))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def finish(self) -> None:
        """Wait until the notices are sent, but at most `finish_timeout` seconds; then cancel them."""
        if not self._running:
            return
        _, late = await asyncio.wait(set(self._running), timeout=self.finish_timeout)
        self.cancel()
        if late:
            self._host.log.warning("%d notices of program events were not sent in time", len(late))

    def cancel(self) -> None:
        """Cancel the notices that are still being sent."""
        for task in self._running:
            task.cancel()

    async def _notify(self, event: ProgramEvent, skipped: int) -> None:
        try:
            async with asyncio.timeout(self.timeout):
                lines = await last_lines(self._host, event.process)
        except Exception:
            lines = []
        text = f"{event.process.full_name}: {event.kind.replace('_', ' ')}"
        reason = mask_secrets(event.reason, self._host.cfg)
        status = status_of(event.program, event.process)
        status["spawnerr"] = mask_secrets(status["spawnerr"], self._host.cfg)
        own = {"kind": event.kind.value, "reason": reason, "last_lines": lines, "skipped": skipped}
        task = {name: getattr(self._attempt, name) for name in ("dag_id", "run_id", "task_id")}
        context = {"event": {**status, **own}, "message": f"{text} ({reason})" if reason else text, **task}
        notifiers = self._host.cfg.on_program_event
        await asyncio.gather(*(self._call(notifier, dict(context)) for notifier in notifiers))

    async def _call(self, notifier: ProgramNotifier, context: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self.timeout):
                # An import may take seconds.
                found = await asyncio.to_thread(_load, notifier.path)
                await _run(found, notifier.kwargs, context)
        except Exception as error:
            # The message may contain the notifier's kwargs, which may be secret.
            self._host.log.warning(
                "Could not send a notice with %s (%s); the task continues",
                notifier.path,
                type(error).__name__,
            )


def _load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


async def _run(found: Any, kwargs: dict[str, Any], context: dict[str, Any]) -> None:
    if hasattr(found, "async_notify"):
        notifier = found(**kwargs)
        # Airflow's notifiers are awaitable: they render their templates, and call async_notify.
        notifier.context = context
        await notifier
        return
    parameters = inspect.signature(found).parameters
    takes_context = "context" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    await found(**kwargs, **({"context": context} if takes_context else {}))
