"""Checks the arguments of a task that publishes messages: one destination and one kind of content."""

from __future__ import annotations

from collections.abc import Mapping
from glob import has_magic
from typing import Any, Final

from deferrable_ops.events.messages import (
    KafkaMessage,
    SqsMessage,
    messages_from_json,
    payloads_from_json,
)
from deferrable_ops.events.specifications import ChannelEvent, KafkaEvent, SqsEvent
from deferrable_ops.exceptions import InputError
from deferrable_ops.expressions import check_expression
from deferrable_ops.plain_data import is_known_later
from deferrable_ops.triggers.events.arguments import check_payload
from deferrable_ops.triggers.events.publish.files import FORMATS, MAX_MESSAGES, check_path, format_of

DESTINATIONS: Final = ("channel", "kafka", "sqs")
_CONTENTS: Final = ("payload", "messages", "file", "files")
_ONLY_FOR: Final[dict[str, tuple[str, ...]]] = {
    "key": ("kafka",),
    "group_id": ("sqs",),
    "file_format": ("file", "files"),
    "select": ("file", "files"),
    "merge": ("file", "files"),
}

Arguments = Mapping[str, Any]
"""The operator's arguments by name. None means that an argument is not given."""


def destination_of(arguments: Arguments) -> str:
    """Return the name of the argument that gives the destination, which is ``channel``, ``kafka`` or ``sqs``.

    :raises InputError: if no destination or more than one destination is given.
    """
    given = [name for name in DESTINATIONS if arguments.get(name) is not None]
    if len(given) != 1:
        problem = (
            f"{' and '.join(f'{name}=' for name in given)} are given" if given else "no destination is given"
        )
        raise InputError(
            f"{problem}; give one destination, as channel=, kafka= (a topic) or sqs= (a queue URL)"
        )
    return given[0]


def content_of(arguments: Arguments) -> str:
    """Return the name of the argument that gives the content, for example ``payload`` or ``files``.

    If no content is given, return ``payload``, so that the payload None is published.

    :raises InputError: if more than one argument gives a content.
    """
    given = [name for name in _CONTENTS if arguments.get(name) is not None]
    if len(given) > 1:
        raise InputError(
            f"{' and '.join(f'{name}=' for name in given)} are given; give only one of payload=, messages=, file= and "
            "files="
        )
    return given[0] if given else "payload"


def check_arguments(arguments: Arguments) -> None:
    """Check all arguments that contain no template and no output of another task.

    :raises InputError: if an argument is invalid. The error message shows the wrong argument and how to correct it.
    """
    destination, content = destination_of(arguments), content_of(arguments)
    for name, needed in _ONLY_FOR.items():
        if arguments.get(name) is not None and destination not in needed and content not in needed:
            raise InputError(
                f"{name}= is allowed only with {' or '.join(f'{one}=' for one in needed)}; leave {name}= out"
            )
    if arguments.get("transactional") not in (True, False):
        raise InputError(f"transactional={arguments.get('transactional')!r} must be True or False")
    _check_destination(destination, arguments)
    for name in ("key", "group_id"):
        value = arguments.get(name)
        if value is not None and not is_known_later(value) and (not isinstance(value, str) or not value):
            raise InputError(f"{name}={value!r} must be a non-empty string")
    if content in ("file", "files"):
        _check_files(arguments)
    elif not _has_runtime_value(arguments.get(content)):
        check_messages(destination, content, arguments)


def check_messages(destination: str, content: str, arguments: Arguments) -> list[Any]:
    """Check and return the messages in the argument ``payload`` or ``messages``, converted for the destination.

    :raises InputError: if a message is invalid, or there are too many messages.
    """
    if content == "payload":
        return messages_of(destination, [arguments.get(content)], arguments, "messages")
    found = messages_of(destination, arguments.get(content), arguments, content)
    if len(found) > MAX_MESSAGES:
        raise InputError(
            f"{content}= has {len(found)} messages; a task publishes at most {MAX_MESSAGES}, "
            "so split the messages over several tasks"
        )
    return found


def messages_of(destination: str, given: Any, arguments: Arguments, argument: str) -> list[Any]:
    """Return payloads for a channel, KafkaMessages for a Kafka topic, or SqsMessages for an SQS queue.

    A KafkaMessage without a key gets the task's ``key``, and an SqsMessage without a group gets the task's
    ``group_id``.

    :param argument: the name of the argument that contains the messages; error texts contain this name.
    :raises InputError: if one of the messages is invalid.
    """
    if destination == "kafka":
        return messages_from_json(given, KafkaMessage, argument, **_given(arguments, "key"))
    if destination == "sqs":
        return messages_from_json(given, SqsMessage, argument, **_given(arguments, "group_id"))
    payloads = payloads_from_json(given, argument)
    for index, payload in enumerate(payloads):
        try:
            check_payload(payload)
        except InputError as error:
            raise InputError(f"{argument}[{index}]: {error}") from None
    return payloads


def _given(arguments: Arguments, name: str) -> dict[str, Any]:
    return {} if arguments.get(name) is None else {name: arguments[name]}


def _check_destination(destination: str, arguments: Arguments) -> None:
    value = arguments[destination]
    try:
        if destination == "kafka":
            KafkaEvent(value, kafka_conn_id=arguments["kafka_conn_id"])
        elif destination == "sqs":
            SqsEvent(value, dedicated=True, aws_conn_id=arguments["aws_conn_id"])
        else:
            ChannelEvent(value)
    except InputError as error:
        raise InputError(f"{destination}=: {error}") from None


def _check_files(arguments: Arguments) -> None:
    file_format, select = arguments.get("file_format"), arguments.get("select")
    if file_format is not None and file_format not in FORMATS:
        raise InputError(f"file_format={file_format!r} is unknown; give one of {', '.join(FORMATS)}")
    if select is not None and not is_known_later(select):
        check_expression("select", select)
    paths = paths_of(arguments)
    if is_known_later(paths):
        return
    if not isinstance(paths, (list, tuple)) or not paths:
        raise InputError("files= must be a list of at least one path; for a single path, use file=")
    for path in paths:
        if not is_known_later(path):
            check_path("file" if arguments.get("files") is None else "files", path)
            # For a pattern, the format depends on the files that match it.
            if not has_magic(path):
                format_of(path, file_format)


def paths_of(arguments: Arguments) -> Any:
    """Return the argument ``files``, or a list with the path in the argument ``file``."""
    return [arguments["file"]] if arguments.get("files") is None else arguments["files"]


def _has_runtime_value(value: Any) -> bool:
    """Return whether a value contains, at any depth, a template or the output of another task."""
    if isinstance(value, Mapping):
        return any(map(_has_runtime_value, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_has_runtime_value, value))
    return is_known_later(value)
