"""Sends notices about events of programs with Airflow's notifiers.

A notifier runs in a thread with its own event loop, so a notifier that blocks does not block the Triggerer. The task
never waits for a notifier, except for a few seconds when the task ends.
"""

from __future__ import annotations

import asyncio
import inspect
import pkgutil
import re
import time
from collections.abc import Iterable
from copy import deepcopy
from functools import partial
from typing import Any, ClassVar, Final

from deferrable_ops.exceptions import DeferrableOpsError
from deferrable_ops.inbox import Attempt
from deferrable_ops.supervisord.policy import ProgramNotifier
from deferrable_ops.supervisord.processes import ProcessState
from deferrable_ops.throttle import Throttle
from deferrable_ops.triggers.high_availability.threads import call_in_thread
from deferrable_ops.triggers.supervisor.configuration import mask_secrets
from deferrable_ops.triggers.supervisor.host import SupervisorHost
from deferrable_ops.triggers.supervisor.watch.process_xcoms import last_lines, status_of
from deferrable_ops.triggers.supervisor.watch.program_events import ProgramEvent, ProgramEventKind

# A notifier whose coroutine ignores its cancellation gets this time in addition, in seconds.
_GRACE: Final = 2.0
# If so many calls hang in threads of this process, no further notifier is called.
_MAX_HANGING: Final = 16
_LOG_BYTES: Final = 65536

# All tasks of this process share the threads of notifiers.
_calls = Throttle(8)


class Notices:
    """Sends the notices of one task.

    For each process and kind of event, at most one notice is sent per :attr:`min_interval`. Further events in this time
    are skipped, and the next notice contains the number of skipped events.
    """

    min_interval: ClassVar[float] = 60.0
    """The shortest time between two notices of one kind about one process, in seconds."""
    timeout: ClassVar[float] = 30.0
    """The longest time that one notifier may take, in seconds."""
    finish_timeout: ClassVar[float] = 10.0
    """The longest time that the task waits for its notices when it ends, in seconds."""
    max_running: ClassVar[int] = 20
    """The largest number of notices that are sent at the same time. Further notices are skipped."""

    __slots__ = ("_attempt", "_host", "_pending", "_running", "_sent", "_skipped")

    def __init__(self, host: SupervisorHost, attempt: Attempt) -> None:
        self._host = host
        self._attempt = attempt
        self._pending: list[ProgramEvent] = []
        self._sent: dict[tuple[str, ProgramEventKind], float] = {}
        self._skipped: dict[tuple[str, ProgramEventKind], int] = {}
        self._running: set[asyncio.Task[None]] = set()

    def add(self, events: Iterable[ProgramEvent]) -> None:
        """Add events, for which :meth:`send` sends notices."""
        self._pending += events

    def send(self) -> None:
        """Send a notice for each added event, in the background. This method never raises and never waits."""
        pending, self._pending = self._pending, []
        for event in pending:
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
        """Send the remaining notices. Wait for all notices, but at most `finish_timeout` seconds."""
        self.send()
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=self.finish_timeout)
            if late:
                self._host.log.warning("%d notices of program events were not sent in time", len(late))

    def cancel(self) -> None:
        """Stop waiting for the notices that are still being sent."""
        for task in self._running:
            task.cancel()

    async def _notify(self, event: ProgramEvent, skipped: int) -> None:
        try:
            context = await self._context(event, skipped)
        except Exception as error:
            self._host.log.warning(
                "Could not describe an event of the program %s, so no notice of this event is sent: %s",
                event.program,
                type(error).__name__,
            )
            return
        notifiers = self._host.cfg.on_program_event
        await asyncio.gather(*(self._call(notifier, deepcopy(context)) for notifier in notifiers))

    async def _context(self, event: ProgramEvent, skipped: int) -> dict[str, Any]:
        process = event.process
        lines, code = [], None
        try:
            async with asyncio.timeout(self.timeout):
                lines = await last_lines(self._host, process)
                code = await _last_exit_code(self._host, event)
        except TimeoutError:
            self._host.log.warning(
                "Could not read the last log lines of %s in time; the notice is sent without these lines",
                process.full_name,
            )
        status = status_of(event.program, process)
        reason = mask_secrets(event.reason, self._host.cfg)
        text = f"{process.full_name}: {event.kind.replace('_', ' ')}{f' ({reason})' if reason else ''}"
        status |= {"exitstatus": code, "spawnerr": mask_secrets(status["spawnerr"], self._host.cfg)}
        status |= {"kind": event.kind.value, "reason": reason, "last_lines": lines, "skipped": skipped}
        ids = {name: getattr(self._attempt, name) for name in ("dag_id", "run_id", "task_id")}
        return {"event": status, "message": text, "ti": self._attempt, **ids}

    async def _call(self, notifier: ProgramNotifier, context: dict[str, Any]) -> None:
        call = partial(_run, notifier, context, self.timeout)
        try:
            with _calls.slot() as granted:
                await granted
                await call_in_thread(call, self.timeout + _GRACE, max_hanging=_MAX_HANGING)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            # The message may contain the notifier's kwargs, which may be secret.
            self._host.log.warning(
                "Could not send a notice with %s (%s); the task continues",
                notifier.path,
                type(error).__name__,
            )


def _run(notifier: ProgramNotifier, context: dict[str, Any], timeout: float) -> None:
    """Call a notifier in this thread. Airflow itself forwards its calls for connections to the Triggerer's event
    loop.
    """
    try:
        asyncio.run(_notify_once(notifier, context, timeout))
    except asyncio.CancelledError:
        raise RuntimeError("the notifier was cancelled") from None


async def _notify_once(notifier: ProgramNotifier, context: dict[str, Any], timeout: float) -> None:
    async with asyncio.timeout(timeout):
        found: Any = pkgutil.resolve_name(notifier.path)
        if inspect.isclass(found):
            made: Any = found(**notifier.kwargs)
            # Airflow's notifiers are awaitable: they render their templates, and call async_notify.
            made.context = context
            await made
        else:
            own = {"context": context} if takes_context(found) else {}
            await found(**notifier.kwargs, **own)


def takes_context(function: Any) -> bool:
    """Return whether a function has a parameter ``context``. Airflow does the same check for an AsyncCallback."""
    parameters = inspect.signature(function).parameters
    return "context" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


async def _last_exit_code(host: SupervisorHost, event: ProgramEvent) -> int | None:
    """Return the exit code with which a process last ended. -1 means that a signal ended the process, and None means
    that the exit code is unknown.

    If the process has been started again since then, only the log of supervisord contains this exit code.
    """
    process = event.process
    if process.state in (ProcessState.EXITED, ProcessState.STOPPED):
        return process.exit_code
    try:
        log = await host.rpc.call("supervisor.readLog", -_LOG_BYTES, 0)
    except DeferrableOpsError:
        return None
    # supervisord writes "stopped" if it has stopped the process on request, for example for the pause of a crash loop.
    on_request = event.reason and event.kind in (ProgramEventKind.RESTARTED, ProgramEventKind.NOT_READY)
    how = "(?:exited|stopped)" if on_request else "exited"
    ends = re.findall(rf"{how}: {re.escape(process.name)} \((?:exit status (\d+)|terminated by )", str(log))
    return None if not ends else int(ends[-1]) if ends[-1] else -1
