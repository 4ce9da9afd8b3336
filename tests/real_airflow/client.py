"""Airflow's REST API, as far as tests ask it."""

from __future__ import annotations

from typing import Any

import httpx


class AirflowClient:
    """A logged-in user of one API server.

    :param url: the API server's address.
    :param user: its name, which is its password too (see `real_airflow.environment`).
    """

    def __init__(self, url: str, user: str = "admin") -> None:
        self.url = url
        self._user = user
        self._http = httpx.Client(base_url=url, timeout=120, trust_env=False)

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def is_up(self) -> bool:
        """Whether the API server answers, the login included."""
        try:
            self._log_in()
            return self._http.get("/api/v2/version").is_success
        except httpx.TransportError:
            return False

    def token(self) -> str:
        """Return a fresh bearer token of this user."""
        login = {"username": self._user, "password": self._user}
        answer = self._http.post("/auth/token", json=login).raise_for_status()
        token: str = answer.json()["access_token"]
        return token

    def get(self, path: str, **parameters: Any) -> Any:
        """Return the JSON of `GET /api/v2{path}`."""
        return self._request("GET", path, params=parameters)

    def find(self, path: str, **parameters: Any) -> Any | None:
        """Return the JSON of `GET /api/v2{path}`, or None where there is no such thing."""
        try:
            return self.get(path, **parameters)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == 404:
                return None
            raise

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON of `POST /api/v2{path}`."""
        return self._request("POST", path, json=body)

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON of `PATCH /api/v2{path}`."""
        return self._request("PATCH", path, json=body)

    def _request(self, method: str, path: str, **arguments: Any) -> Any:
        if "Authorization" not in self._http.headers:
            self._log_in()
        answer = self._http.request(method, f"/api/v2{path}", **arguments)
        if answer.is_error:
            raise httpx.HTTPStatusError(
                f"{method} {answer.url} answered {answer.status_code}: {answer.text[:2000]}",
                request=answer.request,
                response=answer,
            )
        return answer.json() if answer.content else None

    def _log_in(self) -> None:
        self._http.headers["Authorization"] = f"Bearer {self.token()}"
