"""Validates the HTTP requests that users write in a DAG, and fills in placeholders and Airflow connections."""

from __future__ import annotations

import json as json_module
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final
from urllib.parse import urlsplit

from deferrable_ops import settings
from deferrable_ops.exceptions import ConfigurationError, InputError
from deferrable_ops.expressions import check_expression
from deferrable_ops.plain_data import is_known_later, is_output, require_serializable
from deferrable_ops.upstreams.connection_extra import read_connection
from deferrable_ops.upstreams.http import HttpRequest

PLACEHOLDERS: Final = ("${callback_url}", "${callback_token}", "${wait_id}")
EXPRESSIONS: Final = ("success_when", "failure_when", "result")
CALLBACK_HEADER: Final = "Callback-Url"

_PLACEHOLDER_LIKE = re.compile(r"\$\{[^{}$]{1,40}\}")
_METHODS = frozenset({"DELETE", "GET", "PATCH", "POST", "PUT"})
_CANCEL_KEYS = ("url", "http_conn_id", "path", "method", "headers", "json", "data")


@dataclass(frozen=True, slots=True)
class RequestTemplate:
    """An HTTP request as a user wrote it in a DAG, with placeholders and the id of an Airflow connection."""

    url: str | None = None
    http_conn_id: str | None = None
    path: str | None = None
    method: str = "POST"
    headers: dict[str, str] | None = None
    json: Any = None
    data: str | dict[str, str] | None = None

    async def fill(self, *, endpoint: str, token: str, wait_id: str) -> HttpRequest:
        """Return the HTTP request to send: the template with the values of its placeholders and of its Airflow
        connection. The returned request contains secrets.

        :raises InputError: if the URL of the result is not valid, or the Airflow connection cannot be used.
        """
        values = dict(zip(PLACEHOLDERS, (f"{endpoint}/callbacks/{token}", token, wait_id), strict=True))
        written = {
            "url": self.url,
            "path": self.path,
            "headers": self.headers,
            "json": self.json,
            "data": self.data,
        }
        filled = _fill(written, values)
        headers = dict(filled["headers"] or {})
        if not _mentions(written, PLACEHOLDERS):
            headers[CALLBACK_HEADER] = values["${callback_url}"]
        headers.setdefault("Idempotency-Key", wait_id)
        url, auth = filled["url"], None
        connection_headers: dict[str, str] = {}
        if self.http_conn_id is not None:
            base_url, auth, connection_headers = await _connection(self.http_conn_id)
            url = f"{base_url}/{(filled['path'] or '').lstrip('/')}"
            headers = {**connection_headers, **headers}
        _require_http(url)
        secrets = tuple(connection_headers.values())
        return HttpRequest(self.method, url, headers, filled["json"], filled["data"], auth, secrets)


def require_endpoint_url() -> str:
    """Return the URL at which other services reach the HTTP endpoint of this library.

    :raises ConfigurationError: if the URL is not configured, so no service can send a callback.
    """
    url = settings.endpoint_url()
    if url is None:
        raise ConfigurationError(
            "the endpoint's URL is not set, so no service can call back; set [deferrable_ops] endpoint_url, or [api] "
            "base_url, to the URL under which external services reach this Airflow"
        )
    return url


def validate(arguments: Mapping[str, Any]) -> None:
    """Check the arguments of a webhook operator or trigger. Arguments that contain a template are not checked.

    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """
    url, conn_id = arguments.get("url"), arguments.get("http_conn_id")
    if url is not None and conn_id is not None:
        raise InputError(
            "url= and http_conn_id= exclude each other; give url= alone, or http_conn_id= and path="
        )
    if arguments.get("path") is not None and conn_id is None:
        raise InputError("path= needs http_conn_id=; without a connection, give the full URL as url=")
    _validate_request(arguments, "")
    for name in EXPRESSIONS:
        if not is_known_later(arguments.get(name)):
            validate_expression(name, arguments.get(name))
    cancel = arguments.get("cancel_request")
    if cancel is not None:
        _validate_cancel_request(cancel)


def validate_expression(name: str, expression: Any) -> None:
    """Check a JMESPath expression after its templates were rendered. The expression may be None.

    :raises InputError: if the expression is malformed.
    """
    if expression is None:
        return
    if not isinstance(expression, str):
        raise InputError(
            f"{name}= must be a string with a JMESPath expression, such as {name}=\"state == 'done'\""
        )
    check_expression(name, expression)


def _validate_request(arguments: Mapping[str, Any], prefix: str) -> None:
    method = arguments.get("method", "POST")
    if not is_known_later(method) and method not in _METHODS:
        raise InputError(
            f"{prefix}method={method!r} is not supported; use one of {', '.join(sorted(_METHODS))}"
        )
    if arguments.get("json") is not None and arguments.get("data") is not None:
        raise InputError(f"{prefix}json= and {prefix}data= exclude each other; give only one of them")
    headers, data = arguments.get("headers"), arguments.get("data")
    if headers is not None and not is_known_later(headers) and not _is_text_mapping(headers):
        raise InputError(
            f"{prefix}headers= must be a dict of strings, such as {{'Accept': 'application/json'}}"
        )
    if data is not None and not is_output(data) and not isinstance(data, str) and not _is_text_mapping(data):
        raise InputError(
            f"{prefix}data= must be a string or a dict of strings (a form); for JSON use {prefix}json="
        )
    for name in ("headers", "json", "data"):
        require_serializable(prefix + name, arguments.get(name))
    for name in ("url", "path", "headers", "json", "data"):
        _refuse_misspelt_placeholders(prefix + name, arguments.get(name))
    url = arguments.get("url")
    if url is not None and not is_known_later(url):
        _require_http(url, prefix + "url")


def _validate_cancel_request(cancel: Any) -> None:
    if not isinstance(cancel, Mapping):
        raise InputError(
            "cancel_request= must be a dict, such as {'url': 'https://jobs.example.com/${wait_id}', 'method': 'DELETE'}"
        )
    unknown = sorted(set(cancel) - set(_CANCEL_KEYS))
    if unknown:
        raise InputError(f"cancel_request= has the unknown key {unknown[0]!r}; use {', '.join(_CANCEL_KEYS)}")
    if cancel.get("url") is None and cancel.get("http_conn_id") is None:
        raise InputError(
            "cancel_request= has neither 'url' nor 'http_conn_id'; add 'url', or add 'http_conn_id' and 'path'"
        )
    _validate_request(cancel, "cancel_request.")


def _require_http(url: Any, name: str = "url") -> None:
    try:
        parts = urlsplit(url)
        fine = isinstance(url, str) and parts.scheme in ("http", "https") and bool(parts.hostname)
        # Raises for an invalid port.
        _ = parts.port
    except (ValueError, TypeError, AttributeError):
        fine = False
    if not fine:
        raise InputError(f"{name}= must be a full http:// or https:// URL")


def _refuse_misspelt_placeholders(name: str, value: Any) -> None:
    """Refuse misspelt placeholders, which would be sent unchanged, so that the service could not send a callback."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_misspelt_placeholders(f"{name}[{key!r}]", [str(key), item])
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_misspelt_placeholders(name, item)
    elif isinstance(value, str):
        for written in set(_PLACEHOLDER_LIKE.findall(value)) - set(PLACEHOLDERS):
            if meant := get_close_matches(written.lower(), PLACEHOLDERS, n=1, cutoff=0.8):
                raise InputError(f"{name}= has {written}, which is not a placeholder; write {meant[0]}")


def _is_text_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        (isinstance(item, str) or is_output(item)) for pair in value.items() for item in pair
    )


def _fill(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for placeholder, filling in values.items():
            value = value.replace(placeholder, filling)
        return value
    if isinstance(value, Mapping):
        return {_fill(key, values): _fill(item, values) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_fill(item, values) for item in value]
    return value


def _mentions(value: Any, placeholders: tuple[str, ...]) -> bool:
    text = json_module.dumps(value)
    return any(placeholder in text for placeholder in placeholders)


async def _connection(conn_id: str) -> tuple[str, tuple[str, str] | None, dict[str, str]]:
    connection, extra = await read_connection(conn_id)
    if not connection.host:
        raise InputError(
            f"the connection http_conn_id={conn_id!r} has no host; add the host to the connection"
        )
    host = connection.host.rstrip("/")
    if "://" not in host:
        host = f"{connection.schema or 'https'}://{host}"
    if connection.port and urlsplit(host).port is None:
        host = f"{host}:{connection.port}"
    auth = (connection.login, connection.password or "") if connection.login else None
    headers = {str(name): str(value) for name, value in _headers(conn_id, extra).items()}
    return host, auth, headers


def _headers(conn_id: str, extra: Any) -> Mapping[Any, Any]:
    headers = extra.get("headers", {}) if isinstance(extra, Mapping) else None
    if not isinstance(headers, Mapping):
        raise InputError(
            f"the extra of the connection http_conn_id={conn_id!r} is not valid; "
            'write it as {"headers": {"X-Team": "data"}}'
        )
    return headers
