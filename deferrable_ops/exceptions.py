"""Every error that the library raises on purpose.

DeferrableOpsError
├── ConfigurationError        a setting is missing or malformed: fix the deployment
├── InputError                an operator's argument is wrong: fix the DAG            (a ValueError)
├── InboxError
│   ├── InboxUnavailable      the database does not answer now: try again
│   ├── UnknownWait           this inbox has never seen the wait, or has pruned it
│   └── UnknownChannel        this inbox has no channel of this name
├── TokenRefused              a callback token is malformed, forged or revoked
├── DataflowError
│   ├── DataflowUnavailable   Dataflow does not answer now: try again
│   ├── DataflowRefused       Dataflow said no, and will again: fix the permission, or the request
│   └── LaunchUncertain       nobody knows whether the job was created: look for it before launching again
├── KafkaError
│   ├── KafkaUnavailable      no broker answers now: try again
│   └── KafkaRefused          the cluster said no, and will again: fix the credentials, the topic or its permission
├── SqsRefused                SQS said no, and will again: fix the credentials, the queue's URL or its permission
├── MachineError
│   ├── MachineUnavailable    a machine does not answer now, or took too long: try again
│   └── MachineRefused        a machine said no, and will again: fix the login, the host key or the permission
└── SupervisordError
    ├── SupervisordUnavailable  supervisord does not answer now: try again
    └── SupervisordRefused      supervisord said no, and will again: fix the login, or what was asked of it
"""

from __future__ import annotations


class DeferrableOpsError(Exception):
    """Base of every error that the library raises on purpose."""


class ConfigurationError(DeferrableOpsError):
    """A setting is missing or malformed; the message names the setting and the fix."""


class InputError(DeferrableOpsError, ValueError):
    """An operator's argument is wrong; the message names the argument and the fix."""


class InboxError(DeferrableOpsError):
    """Base of what can go wrong with the inbox."""


class InboxUnavailable(InboxError):
    """The inbox does not answer now; what was asked is safe to ask again."""


class UnknownWait(InboxError):
    """This inbox has never seen the wait, or has pruned it after its retention."""


class UnknownChannel(InboxError):
    """This inbox has no channel of this name."""


class TokenRefused(DeferrableOpsError):
    """A callback token is malformed, forged, or signed with a key that was revoked."""


class DataflowError(DeferrableOpsError):
    """Base of what can go wrong with Dataflow."""


class DataflowUnavailable(DataflowError):
    """Dataflow does not answer now, or asks to slow down; what was asked may be asked again."""


class DataflowRefused(DataflowError):
    """Dataflow said no, and will again; the message names the permission or the resource, and the fix.

    :param code: the gRPC status, as ``PERMISSION_DENIED``; empty when the credentials themselves were refused.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class LaunchUncertain(DataflowError):
    """The job that was asked for may exist or not: look for its name before launching again.

    :param already_exists: Dataflow said that a job of this name is active.
    """

    def __init__(self, message: str, already_exists: bool = False) -> None:
        super().__init__(message)
        self.already_exists = already_exists


class KafkaError(DeferrableOpsError):
    """Base of what can go wrong with Kafka."""


class KafkaUnavailable(KafkaError):
    """No broker answers now; what was asked may be asked again."""


class KafkaRefused(KafkaError):
    """The cluster said no, and will again; the message names the credentials or the topic, and the fix."""


class SqsRefused(DeferrableOpsError):
    """SQS said no, and will again; the message names the credentials, the queue or the permission, and the fix."""


class MachineError(DeferrableOpsError):
    """Base of what can go wrong with the machine on which a supervisord runs."""


class MachineUnavailable(MachineError):
    """The machine does not answer now, or took too long; what was asked may have been done, and may be asked again."""


class MachineRefused(MachineError):
    """The machine said no, and will again; the message names the login, the host key or the path, and the fix."""


class SupervisordError(DeferrableOpsError):
    """Base of what can go wrong with supervisord."""


class SupervisordUnavailable(SupervisordError):
    """supervisord does not answer now; what was asked may have been done."""


class SupervisordRefused(SupervisordError):
    """supervisord said no, and will again.

    :param code: its fault code, as 10 (BAD_NAME) or 60 (ALREADY_STARTED); 0 when it refused the login.
    """

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code
