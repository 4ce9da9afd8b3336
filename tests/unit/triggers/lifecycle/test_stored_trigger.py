"""A trigger stored in the inbox is encrypted, and only triggers of this library are created from it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.triggers.base import BaseTrigger

from deferrable_ops.exceptions import ConfigurationError, InboxError
from deferrable_ops.inbox import Attempt
from deferrable_ops.inbox.database import encryption
from deferrable_ops.triggers.lifecycle import stored_trigger
from deferrable_ops.triggers.webhook.trigger import WebhookTrigger

ATTEMPT = Attempt("01a1fd9a-991e-7f0c-8071-3e438f570c00", 1, "dag", "run", "task")


def test_decrypted_trigger_is_the_same_trigger_and_the_stored_bytes_show_no_secret() -> None:
    trigger = WebhookTrigger(cancel_request={"url": "https://x", "headers": {"X": "hunter2"}})
    encrypted = stored_trigger.encrypt(trigger, ATTEMPT)
    again = stored_trigger.decrypt(encrypted)
    assert isinstance(again, WebhookTrigger)
    assert again.identify() == ATTEMPT
    assert again.serialize()[1]["cancel_request"] == trigger.cancel_request
    assert b"hunter2" not in encrypted


def test_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_key() -> None:
        raise ValueError("Fernet key must be 32 url-safe base64-encoded bytes.")

    monkeypatch.setattr(encryption, "get_fernet", no_key)
    with pytest.raises(ConfigurationError, match=r"\[core\] fernet_key is missing or malformed"):
        stored_trigger.encrypt(WebhookTrigger(), ATTEMPT)


class ForeignTrigger(BaseTrigger):
    """A trigger of another library."""

    feature = "foreign"

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.ForeignTrigger", {}

    async def run(self) -> Any:
        yield


@pytest.mark.parametrize("classpath", ["subprocess.run", "builtins.dict", f"{__name__}.ForeignTrigger"])
def test_other_classes_are_refused(classpath: str) -> None:
    encrypted = stored_trigger._fernet().encrypt(json.dumps([classpath, {}]).encode())
    with pytest.raises(InboxError, match=f"{classpath} is not a trigger of this library"):
        stored_trigger.decrypt(encrypted)
