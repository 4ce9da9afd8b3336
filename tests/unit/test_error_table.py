"""The error table: each error has one kind, and the documentation lists every row."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from deferrable_ops import exceptions
from deferrable_ops.error_table import (
    CODES,
    ERRORS,
    CodeRow,
    ErrorKind,
    ErrorRow,
    find_code,
    kind_of,
    kind_of_code,
    retry_can_help,
)
from deferrable_ops.exceptions import DataflowLaunchRefused, LaunchRefused
from deferrable_ops.upstreams.http import InvalidUrl, RequestFailed

DOCS = Path(__file__).parents[2] / "docs" / "errors.md"
# Errors that only the endpoint, the CLI or the base classes of other errors use. No trigger meets them.
NOT_IN_A_TRIGGER = {
    "DataflowError",
    "DeferrableOpsError",
    "InboxError",
    "KafkaError",
    "MachineError",
    "SupervisordError",
    "TokenRefused",
    "UnknownChannel",
    "UnknownKey",
    "UnknownWait",
}


@pytest.mark.parametrize("row", ERRORS, ids=lambda row: row.what)
def test_each_exception_of_a_row_has_the_kind_of_the_row(row: ErrorRow) -> None:
    for exception in row.exceptions:
        error = exception("a message")
        assert kind_of(error, started=False) is row.kind
        assert kind_of(error, started=True) is row.once_started
        if row.kind is not ErrorKind.TASK:
            assert retry_can_help(error)


@pytest.mark.parametrize("row", CODES, ids=lambda row: f"{row.system}: {row.what}")
def test_each_code_of_a_row_has_the_kind_of_the_row(row: CodeRow) -> None:
    for code in row.codes:
        assert find_code(row.system, code) is row
        assert kind_of_code(row.system, code) is row.kind


def test_each_exception_of_the_library_is_in_the_table() -> None:
    listed = {exception for row in ERRORS for exception in row.exceptions}
    missing = {
        name
        for name, exception in inspect.getmembers(exceptions, inspect.isclass)
        if exception.__module__ == exceptions.__name__ and not listed.intersection(exception.__mro__)
    }
    assert missing == NOT_IN_A_TRIGGER


@pytest.mark.parametrize(
    ("system", "code", "kind"),
    [
        ("http", "500", ErrorKind.TEMPORARY),
        ("http", "503", ErrorKind.TEMPORARY),
        ("http", "429", ErrorKind.TEMPORARY),
        ("http", "404", ErrorKind.TASK),
        ("google", "PERMISSION_DENIED", ErrorKind.TASK),
        ("aws", "AccessDenied", ErrorKind.TASK),
    ],
)
def test_code_that_is_not_in_the_table_is_permanent_unless_it_is_a_5xx(
    system: str, code: str, kind: ErrorKind
) -> None:
    assert kind_of_code(system, code) is kind


def test_refused_launch_is_permanent_although_the_same_refusal_of_a_read_may_pass() -> None:
    refused = DataflowLaunchRefused("no", "PERMISSION_DENIED")
    assert kind_of(refused, started=True) is ErrorKind.TASK
    assert not retry_can_help(refused)
    assert retry_can_help(LaunchRefused("403", retry_can_help=True))


def test_lost_connection_of_an_http_request_may_pass_and_an_invalid_url_does_not() -> None:
    assert kind_of(RequestFailed(OSError("reset")), started=False) is ErrorKind.TEMPORARY
    assert kind_of(InvalidUrl(ValueError("x")), started=True) is ErrorKind.TASK


def test_fault_of_a_program_fails_the_task_and_a_retry_may_help() -> None:
    assert kind_of(KeyError("x"), started=True) is ErrorKind.TASK
    assert retry_can_help(KeyError("x"))


def test_documentation_has_every_row() -> None:
    text = " ".join(DOCS.read_text().split())
    missing = [row.what for row in (*ERRORS, *CODES) if row.what not in text]
    assert missing == []
    assert all(kind.value in text for kind in ErrorKind)
