"""A channel of an Airflow's endpoint, and the vendor that posts to it."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from real_airflow.airflow import RealAirflow

COMMAND = Path(sys.executable).with_name("deferrable-ops")


@dataclass(frozen=True)
class GitHubChannel:
    """A channel whose events are signed as GitHub signs them.

    :param url: where they are posted.
    :param secret: what they are signed with.
    """

    url: str
    secret: str

    @classmethod
    def add(cls, airflow: RealAirflow, name: str | None = None) -> GitHubChannel:
        """Make a channel as an operator does, with the command, beside an Airflow that runs.

        :param name: default one that nobody else has.
        """
        name = name or f"channel-{uuid.uuid4().hex[:8]}"
        done = subprocess.run(
            [COMMAND, "channels", "add", name, "--verify", "github"],
            env=airflow.environment,
            cwd=airflow.home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        url, secret = re.search(r"https?://\S+", done.stdout), re.search(r"again: (\S+)", done.stdout)
        assert url is not None, done.stdout
        assert secret is not None, done.stdout
        return cls(url[0], secret[1])

    @property
    def name(self) -> str:
        """What a ChannelEvent calls it."""
        return self.url.rpartition("/")[2]

    def request(self, payload: Any, *, secret: str | None = None) -> dict[str, Any]:
        """Return body and headers of an event; its delivery id comes from its body, so that a repetition has the same.

        :param secret: to sign with, if it is not the channel's.
        """
        body = json.dumps(payload).encode()
        signature = hmac.digest((secret or self.secret).encode(), body, hashlib.sha256).hex()
        headers = {
            "Content-Type": "application/json",
            "X-GitHub-Event": "deployment",
            "X-GitHub-Delivery": str(uuid.uuid5(uuid.NAMESPACE_OID, body.decode())),
            "X-Hub-Signature-256": f"sha256={signature}",
        }
        return {"content": body, "headers": headers}

    def post(self, payload: Any, *, secret: str | None = None) -> httpx.Response:
        """Post an event."""
        return httpx.post(self.url, **self.request(payload, secret=secret), timeout=30, trust_env=False)
