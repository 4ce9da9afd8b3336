"""Ready-made checks that run in the Triggerer: an HTTP service, a TCP port, a file."""

from deferrable_ops.checks.base import ReadyCheck
from deferrable_ops.checks.file import FileCheck
from deferrable_ops.checks.http import HttpCheck
from deferrable_ops.checks.tcp import TcpCheck

__all__ = ["FileCheck", "HttpCheck", "ReadyCheck", "TcpCheck"]
