"""Settings that are read from a secrets backend."""

from __future__ import annotations

from typing import Any

import pytest

from deferrable_ops import settings


class SecretUrls:
    """A secrets backend whose secret changes, like a password that is rotated."""

    current = ""

    def __init__(self, **kwargs: Any) -> None:
        pass

    def get_config(self, key: str) -> str | None:
        return self.current if key == "inbox" else None


def test_inbox_url_of_a_secrets_backend_is_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__SECRETS__BACKEND", f"{__name__}.{SecretUrls.__name__}")
    monkeypatch.delenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL", raising=False)
    monkeypatch.setenv("AIRFLOW__DEFERRABLE_OPS__INBOX_URL_SECRET", "inbox")
    for password in ("old", "new"):
        monkeypatch.setattr(SecretUrls, "current", f"postgresql://me:{password}@db/inbox")
        assert settings.inbox_url() == f"postgresql+asyncpg://me:{password}@db/inbox"
