"""Google credentials are loaded; tested without Google and without the google provider."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from deferrable_ops.exceptions import ConfigurationError, DataflowRefused
from deferrable_ops.upstreams.dataflow.credentials import describe_account, is_temporary, load_credentials


class TokenService:
    """A fake of Google's token service, which returns or refuses tokens."""

    def __init__(self) -> None:
        self.answer: tuple[int, dict[str, Any]] = (200, {"access_token": "a token", "expires_in": 3600})
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                status, body = service.answer
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/token"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> Iterator[TokenService]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    service = TokenService()
    yield service
    service.stop()


@pytest.fixture
def key_file(tmp_path: Path, tokens: TokenService, monkeypatch: pytest.MonkeyPatch) -> Path:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = tmp_path / "key.json"
    account = {
        "type": "service_account",
        "project_id": "p",
        "private_key_id": "1",
        "private_key": key.decode(),
        "client_email": "etl@p.iam.gserviceaccount.com",
        "token_uri": tokens.url,
    }
    file.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    return file


@pytest.mark.usefixtures("key_file")
def test_application_default_credentials_are_loaded_and_a_token_is_fetched() -> None:
    credentials: Any = load_credentials(None, ())
    assert credentials.service_account_email == "etl@p.iam.gserviceaccount.com"
    assert credentials.scopes == ("https://www.googleapis.com/auth/cloud-platform",)


@pytest.mark.usefixtures("key_file")
def test_revoked_credentials_are_refused_for_good(tokens: TokenService) -> None:
    tokens.answer = (400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."})
    with pytest.raises(
        DataflowRefused, match=r"application default credentials.*Invalid JWT Signature.*replace"
    ):
        load_credentials(None, ())


@pytest.mark.usefixtures("key_file")
def test_credentials_are_accepted_while_the_network_is_down(tokens: TokenService) -> None:
    tokens.server.server_close()
    assert load_credentials(None, ()) is not None


def test_error_for_missing_credentials_names_the_ways_to_provide_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    with pytest.raises(ConfigurationError, match=r"GOOGLE_APPLICATION_CREDENTIALS.*gcp_conn_id"):
        load_credentials(None, ())


def test_error_for_a_connection_without_the_provider_names_the_package() -> None:
    with pytest.raises(ConfigurationError, match="pip install apache-airflow-providers-google"):
        load_credentials("my_gcp", ())


def test_account_is_described_in_words() -> None:
    assert describe_account("my_gcp", ()) == "the account of the connection 'my_gcp'"
    assert describe_account(None, ("a@p", "b@p")).startswith(
        "b@p (impersonated by the account of the application default"
    )


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_outage_of_iam_or_of_the_metadata_server_is_no_refusal() -> None:
    """google-auth marks neither as retryable."""
    from google.auth.exceptions import RefreshError, TransportError

    unavailable = '{"error": {"code": 503, "message": "try again", "status": "UNAVAILABLE"}}'
    denied = '{"error": {"code": 403, "message": "no permission", "status": "PERMISSION_DENIED"}}'
    assert is_temporary(TransportError("the metadata server does not answer"))
    assert is_temporary(raised_from(RefreshError("no answer"), TransportError("no answer")))
    assert is_temporary(RefreshError("Unable to acquire impersonated credentials", unavailable))
    assert is_temporary(RefreshError("Unable to acquire impersonated credentials. status code: 500"))
    assert is_temporary(RefreshError("server_error", retryable=True))
    assert not is_temporary(RefreshError("Unable to acquire impersonated credentials", denied))
    assert not is_temporary(RefreshError("invalid_grant: account not found"))
