"""A fake of the Google servers that issue access tokens, on loopback. google-auth can use it without a change.

The servers follow these pages of Google's documentation:

- the token endpoint: "Using OAuth 2.0 for Server to Server Applications", developers.google.com/identity;
- IAM: "Method: projects.serviceAccounts.generateAccessToken", cloud.google.com/iam/docs/reference/credentials/rest;
- the metadata server: "Authenticate workloads using metadata server" and "About VM metadata", cloud.google.com/compute.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

Server = Literal["token", "iam", "metadata"]

EMAIL = "etl@my-project.iam.gserviceaccount.com"
"""The service account of the key file and of the metadata server."""

INVALID_GRANT = json.dumps({"error": "invalid_grant", "error_description": "Invalid JWT Signature."})
"""The response of the token endpoint, with the status 400, if a key was revoked."""

PERMISSION_DENIED = json.dumps(
    {
        "error": {
            "code": 403,
            "message": "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist).",
            "status": "PERMISSION_DENIED",
        }
    }
)
"""The response of IAM, with the status 403, if an account must not impersonate another account."""

_SERVERS = ("token", "iam", "metadata")


class FakeGoogle:
    """The token endpoint, IAM and the metadata server on one port of the loopback address.

    :ivar calls: the number of calls of each server.
    :ivar token_seconds: for how many seconds a new token is valid. google-auth requests a new token 225 s before a
        token expires. So with fewer than 225 s, google-auth requests a token for each API call.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.token_seconds = 3600
        self._failures: dict[str, list[tuple[int, str, float]]] = defaultdict(list)
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._valid_from = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def fail(self, server: Server, status: int = 502, body: str = "", times: int | None = 1) -> None:
        """Make the next calls of a server fail.

        :param status: the HTTP status of the response; 0 closes the connection without a response, like a metadata
            server that does not run yet.
        :param body: the body of the response; by default the HTML page of a proxy.
        :param times: how many calls fail. If `times` is None, all calls fail until :meth:`mend` is called.
        :raises ValueError: if `server` is not one of the fake servers.
        """
        if server not in _SERVERS:
            raise ValueError(f"there is no server {server!r}; give one of {', '.join(_SERVERS)}")
        failure = status, body or f"<html><title>Error {status}</title></html>", times or float("inf")
        with self._lock:
            self._failures[server].append(failure)

    def revoke(self) -> None:
        """Revoke the key: its tokens become invalid, and the token endpoint answers ``invalid_grant``."""
        self._valid_from = next(self._numbers)
        self.fail("token", 400, INVALID_GRANT, times=None)

    def mend(self) -> None:
        """Remove the injected failures of all servers."""
        with self._lock:
            self._failures.clear()

    def accepts(self, token: str) -> bool:
        """Return whether Google's APIs would accept an access token of these fake servers."""
        _, _, number = token.partition("fake-token-")
        return number.isdigit() and int(number) > self._valid_from

    def write_key(self, file: Path) -> Path:
        """Write a service account's key, as JSON, and return the path of the file."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        account = {
            "type": "service_account",
            "project_id": "my-project",
            "private_key_id": "1",
            "private_key": key.decode(),
            "client_email": EMAIL,
            "token_uri": f"http://{self.host}/token",
        }
        file.write_text(json.dumps(account))
        return file

    def start(self) -> None:
        """Start the servers."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the servers."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def respond(self, method: str, path: str) -> tuple[int, Mapping[str, str], str] | None:
        """Return the status, the headers and the body of a response, or None to close the connection."""
        server = _server_of(path)
        with self._lock:
            self.calls[server] += 1
            failure = self._next_failure(server)
            token = f"fake-token-{next(self._numbers)}"
        if failure is not None:
            status, body = failure
            return (status, {"Content-Type": "text/html"}, body) if status else None
        if server == "metadata":
            return self._metadata(path, token)
        if method != "POST":
            return 405, {}, ""
        if server == "iam":
            expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + self.token_seconds))
            return _json({"accessToken": token, "expireTime": expires})
        return _json({"access_token": token, "expires_in": self.token_seconds, "token_type": "Bearer"})

    def _metadata(self, path: str, token: str) -> tuple[int, Mapping[str, str], str]:
        flavor = {"Metadata-Flavor": "Google"}
        what = path.partition("?")[0].removeprefix("/computeMetadata/v1/")
        if what == "/":
            return 200, flavor, ""
        if what == "project/project-id":
            return 200, {**flavor, "Content-Type": "application/text"}, "my-project"
        if what.endswith("/token"):
            return _json(
                {"access_token": token, "expires_in": self.token_seconds, "token_type": "Bearer"}, **flavor
            )
        if what in ("instance/service-accounts/default/", f"instance/service-accounts/{EMAIL}/"):
            scopes = ["https://www.googleapis.com/auth/cloud-platform"]
            return _json({"aliases": ["default"], "email": EMAIL, "scopes": scopes}, **flavor)
        return 404, {**flavor, "Content-Type": "text/html"}, "not found"

    def _next_failure(self, server: str) -> tuple[int, str] | None:
        failures = self._failures[server]
        if not failures:
            return None
        status, body, times = failures[0]
        failures[0] = status, body, times - 1
        if times <= 1:
            failures.pop(0)
        return status, body


@contextmanager
def fake_google(directory: Path, source: Literal["key", "metadata"] = "key") -> Iterator[FakeGoogle]:
    """Run the fake servers. In the ``with`` block, this process gets its application default credentials
    from the fake servers.

    :param directory: an empty directory for the key file.
    :param source: whether the credentials come from a service account's key, or from the metadata server.
    """
    # google-auth reads these values when it is imported.
    metadata, iam = import_module("google.auth.compute_engine._metadata"), import_module("google.auth.iam")
    fake = FakeGoogle()
    fake.start()
    environment = {
        "NO_PROXY": "127.0.0.1",
        # Without the credentials that gcloud has stored.
        "CLOUDSDK_CONFIG": str(directory),
        "GCE_METADATA_HOST": fake.host,
        "GCE_METADATA_IP": fake.host,
    }
    if source == "key":
        environment["GOOGLE_APPLICATION_CREDENTIALS"] = str(fake.write_key(directory / "key.json"))
    endpoint = f"http://{fake.host}/v1/projects/-/serviceAccounts/{{}}:generateAccessToken"
    with ExitStack() as stack:
        stack.callback(fake.stop)
        stack.enter_context(patch.dict(os.environ, environment))
        if source == "metadata":
            os.environ.pop("GOOGLE_APPLICATION_CREDENTIALS", None)
        stack.enter_context(patch.object(metadata, "_GCE_METADATA_HOST", fake.host))
        stack.enter_context(patch.object(iam, "_IAM_ENDPOINT", endpoint))
        yield fake


def _server_of(path: str) -> str:
    if path.endswith(":generateAccessToken"):
        return "iam"
    return "token" if path == "/token" else "metadata"


def _json(value: Any, **headers: str) -> tuple[int, Mapping[str, str], str]:
    return 200, {"Content-Type": "application/json", **headers}, json.dumps(value)


def _handler(fake: FakeGoogle) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._respond()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._respond()

        def log_message(self, *_: object) -> None:
            pass

        def _respond(self) -> None:
            response = fake.respond(self.command, self.path)
            if response is None:
                self.close_connection = True
                return
            status, headers, body = response
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

    return Handler
