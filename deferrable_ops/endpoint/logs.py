"""Logs of the standalone endpoint. Each line has a time. Each request is logged in one line with its client and wait
id.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

access_log = logging.getLogger("deferrable_ops.access")

WAIT: Final = "deferrable_ops.wait"
"""The key in the ASGI scope under which the wait id of a request is stored."""


class TextFormatter(logging.Formatter):
    """Formats a record as a line of text, with its time in UTC."""

    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self.converter = time.gmtime


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object in one line: time, level, logger, message, and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the log line for a log record, as a JSON object."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "request", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_config(*, as_json: bool) -> dict[str, Any]:
    """Return the logging configuration of the endpoint's processes.

    :param as_json: whether each line is a JSON object.
    """
    formatter = JsonFormatter if as_json else TextFormatter
    to_stderr: dict[str, Any] = {"handlers": ["stderr"], "level": "INFO", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": f"{__name__}.{formatter.__name__}"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {
            "uvicorn": to_stderr,
            # AccessLog replaces uvicorn's own access log, which would contain a second line for each request.
            "uvicorn.access": {"handlers": [], "propagate": False},
            "deferrable_ops": to_stderr,
        },
    }


class AccessLog:
    """Logs each request to an app after its response: client, method, path without tokens, status and wait id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the app, and log the request after its response."""
        if scope["type"] != "http" or not access_log.isEnabledFor(logging.INFO):
            await self._app(scope, receive, send)
            return
        status: int | None = None

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started_at = time.monotonic()
        try:
            await self._app(scope, receive, send_and_note)
        finally:
            _log(scope, status, time.monotonic() - started_at)


def _log(scope: Scope, status: int | None, seconds: float) -> None:
    host, port = scope.get("client") or ("-", 0)
    # The app has masked the token. The path is quoted, because it may contain a line break.
    path = quote(scope["path"])
    if scope["query_string"]:
        path = f"{path}?{scope['query_string'].decode('latin-1')}"
    request = {
        "client": f"{host}:{port}",
        "method": scope["method"],
        "path": path,
        "status": status,
        "wait": scope.get(WAIT),
        "seconds": round(seconds, 4),
    }
    access_log.info(
        '%s - "%s %s HTTP/%s" %s wait=%s %.4f s',
        request["client"],
        request["method"],
        path,
        scope["http_version"],
        "disconnected" if status is None else status,
        request["wait"] or "-",
        seconds,
        extra={"request": request},
    )
