"""What is kept to stop a task's outside work needs Airflow's key, and says so where there is none."""

from __future__ import annotations

import pytest

from deferrable_ops.exceptions import ConfigurationError
from deferrable_ops.inbox import Attempt
from deferrable_ops.inbox.database import encryption
from deferrable_ops.triggers.lifecycle import stored_trigger
from deferrable_ops.triggers.webhook.trigger import WebhookTrigger


def test_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_key() -> None:
        raise ValueError("Fernet key must be 32 url-safe base64-encoded bytes.")

    monkeypatch.setattr(encryption, "get_fernet", no_key)
    attempt = Attempt("01a1fd9a-991e-7f0c-8071-3e438f570c00", 1, "dag", "run", "task")
    with pytest.raises(ConfigurationError, match=r"\[core\] fernet_key is missing or malformed"):
        stored_trigger.seal(WebhookTrigger(), attempt)
