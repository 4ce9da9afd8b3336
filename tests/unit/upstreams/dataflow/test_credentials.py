"""Google credentials are loaded, with google-auth's own code against fake servers of Google."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from airflow.sdk.exceptions import AirflowNotFoundException

from deferrable_ops.exceptions import (
    ConfigurationError,
    DataflowRefused,
    DataflowUnavailable,
    MissingCredentials,
)
from deferrable_ops.testing.google import EMAIL, INVALID_GRANT, PERMISSION_DENIED, FakeGoogle, fake_google
from deferrable_ops.upstreams.dataflow.credentials import (
    LoadedCredentials,
    describe_account,
    is_refusal,
    load_credentials,
)

AWAY = 0
TARGET = ("loader@my-project.iam.gserviceaccount.com",)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let google-auth repeat its requests at once."""
    import google.auth._exponential_backoff

    without_sleep = types.SimpleNamespace(sleep=lambda _seconds: None)
    monkeypatch.setattr(google.auth._exponential_backoff, "time", without_sleep)


@pytest.fixture
def google(tmp_path: Path) -> Iterator[FakeGoogle]:
    """The machine has the key of a service account."""
    with fake_google(tmp_path) as fake:
        yield fake


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[FakeGoogle]:
    """The machine has a metadata server."""
    with fake_google(tmp_path, "metadata") as fake:
        yield fake


def test_application_default_credentials_are_loaded_and_a_token_is_fetched(google: FakeGoogle) -> None:
    credentials: Any = load_credentials(None, ()).credentials
    assert credentials.service_account_email == EMAIL
    assert credentials.scopes == ("https://www.googleapis.com/auth/cloud-platform",)
    assert google.calls["token"] == 1


def test_account_is_impersonated(google: FakeGoogle) -> None:
    credentials: Any = load_credentials(None, TARGET).credentials
    assert google.accepts(credentials.token)
    assert (google.calls["token"], google.calls["iam"]) == (1, 1)


def test_credentials_of_the_metadata_server_are_loaded(machine: FakeGoogle) -> None:
    assert machine.accepts(load_credentials(None, ()).credentials.token)


def test_revoked_key_is_refused(google: FakeGoogle) -> None:
    google.revoke()
    with pytest.raises(
        DataflowRefused, match=r"application default credentials.*Invalid JWT Signature.*replace"
    ):
        load_credentials(None, ())


def test_missing_permission_to_impersonate_is_refused(google: FakeGoogle) -> None:
    google.fail("iam", 403, PERMISSION_DENIED)
    with pytest.raises(DataflowRefused, match=r"getAccessToken.*serviceAccountTokenCreator"):
        load_credentials(None, TARGET)


@pytest.mark.parametrize(
    "server, status, body",
    [
        ("iam", 502, ""),
        ("iam", 500, '{"error": {"code": 500, "message": "internal", "status": "INTERNAL"}}'),
        ("iam", 503, '{"error": {"code": 503, "message": "try again", "status": "UNAVAILABLE"}}'),
        ("iam", 429, '{"error": {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED"}}'),
        # The page of a proxy has no reason.
        ("iam", 403, ""),
        ("iam", 200, "{}"),
        ("iam", AWAY, ""),
        ("token", 502, ""),
        ("token", 403, ""),
        ("token", AWAY, ""),
    ],
)
def test_other_errors_of_the_servers_are_no_refusal(
    google: FakeGoogle, server: Any, status: int, body: str
) -> None:
    google.fail(server, status, body, times=None)
    with pytest.raises(DataflowUnavailable, match="Google issued no token for"):
        load_credentials(None, TARGET)
    google.mend()
    assert google.accepts(load_credentials(None, TARGET).credentials.token)


@pytest.mark.parametrize("status", [AWAY, 404, 500, 503])
def test_metadata_server_that_fails_after_it_was_found_is_no_refusal(
    machine: FakeGoogle, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from google.auth.compute_engine import _metadata

    monkeypatch.setattr(_metadata, "is_on_gce", lambda request: True)
    machine.fail("metadata", status, times=None)
    with pytest.raises(DataflowUnavailable, match="Google issued no token"):
        load_credentials(None, ())
    machine.mend()
    assert machine.accepts(load_credentials(None, ()).credentials.token)


def test_metadata_server_that_does_not_answer_yet_is_a_missing_credential(machine: FakeGoogle) -> None:
    machine.fail("metadata", AWAY, times=None)
    with pytest.raises(MissingCredentials, match="no application default credentials"):
        load_credentials(None, ())


def test_error_for_missing_credentials_names_the_ways_to_provide_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    with pytest.raises(ConfigurationError, match=r"GOOGLE_APPLICATION_CREDENTIALS.*gcp_conn_id") as missing:
        load_credentials(None, ())
    assert not isinstance(missing.value, MissingCredentials), "a missing file does not appear by itself"


def test_malformed_key_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    file.write_text('{"type": "service_account", "private_key": "x"}')
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    with pytest.raises(ConfigurationError, match=r"key\.json"):
        load_credentials(None, ())


def test_error_for_a_connection_without_the_provider_names_the_package() -> None:
    with pytest.raises(ConfigurationError, match="pip install apache-airflow-providers-google"):
        load_credentials("my_gcp", ())


def test_project_is_that_of_the_key(google: FakeGoogle) -> None:
    assert load_credentials(None, ()).project_id == "my-project"
    assert load_credentials(None, TARGET).project_id == "my-project"


def test_universe_is_that_of_the_environment_or_of_the_credentials(
    machine: FakeGoogle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_credentials(None, ()).universe_domain == "googleapis.com"
    monkeypatch.setenv("GOOGLE_CLOUD_UNIVERSE_DOMAIN", "example.cloud")
    assert load_credentials(None, ()).universe_domain == "example.cloud"


class Hook:
    """The google provider's hook, as far as credentials need it. Airflow has the connections in `found`."""

    found: ClassVar[dict[str, LoadedCredentials]] = {}

    def __init__(self, gcp_conn_id: str, impersonation_chain: list[str] | None) -> None:
        self.gcp_conn_id = gcp_conn_id

    def get_credentials_and_project_id(self) -> LoadedCredentials:
        if self.gcp_conn_id not in self.found:
            raise AirflowNotFoundException(f"The conn_id `{self.gcp_conn_id}` isn't defined")
        return self.found[self.gcp_conn_id]


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> type[Hook]:
    """The google provider is installed."""
    name = "airflow.providers.google"
    for part in ("", ".common", ".common.hooks", ".common.hooks.base_google"):
        monkeypatch.setitem(sys.modules, f"{name}{part}", types.ModuleType(f"{name}{part}"))
    monkeypatch.setattr(
        sys.modules[f"{name}.common.hooks.base_google"], "GoogleBaseHook", Hook, raising=False
    )
    monkeypatch.setattr(Hook, "found", {})
    return Hook


def test_default_connection_is_used_where_it_exists(google: FakeGoogle, provider: type[Hook]) -> None:
    machine = load_credentials(None, ())
    assert machine.project_id == "my-project"
    provider.found["google_cloud_default"] = LoadedCredentials(machine.credentials, "of-the-connection")
    assert load_credentials(None, ()).project_id == "of-the-connection"


def test_connection_that_a_task_names_must_exist(provider: type[Hook]) -> None:
    with pytest.raises(ConfigurationError, match="there is no connection 'my_gcp'"):
        load_credentials("my_gcp", ())


def test_account_is_described_in_words() -> None:
    assert describe_account("my_gcp", ()) == "the account of the connection 'my_gcp'"
    assert describe_account(None, ("a@p", "b@p")).startswith(
        "b@p (impersonated by the default account (connection 'google_cloud_default', or"
    )


def test_refusals_of_workload_identity_federation_are_recognized() -> None:
    from google.auth.exceptions import OAuthError

    assert is_refusal(
        OAuthError("Error code invalid_grant: The given credential is rejected.", INVALID_GRANT)
    )
    assert not is_refusal(OAuthError("Error code temporarily_unavailable", "{}"))
