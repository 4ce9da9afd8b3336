"""Parses the URL of an SQS queue. AWS has several URLs for one queue, but only one ARN, which identifies the queue."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import SplitResult, urlsplit

_REGION: Final = r"(?P<region>[a-z]{2}(?:-[a-z]+)+-\d{1,2})"
_AMAZON: Final = r"amazonaws\.com(?:\.cn)?"
# The endpoints that botocore derives from the region.
_REGIONAL: Final = re.compile(rf"(?:sqs\.{_REGION}\.{_AMAZON})|(?:queue\.{_AMAZON})")
# Legacy, FIPS, dual-stack and private (VPC) endpoints.
_OTHERS: Final = tuple(
    re.compile(pattern)
    for pattern in (
        rf"{_REGION}\.queue\.{_AMAZON}",
        rf"sqs-fips\.{_REGION}\.{_AMAZON}",
        rf"sqs(?:-fips)?\.{_REGION}\.api\.(?:aws|amazonwebservices\.com\.cn)",
        rf"(?:[a-z0-9-]+\.)?vpce-[a-z0-9-]+\.sqs\.{_REGION}\.vpce\.{_AMAZON}",
    )
)
_PATH: Final = re.compile(r"/(?P<account>\d{12})/(?P<name>[A-Za-z0-9_-]{1,80}(?:\.fifo)?)/?")
_PARTITIONS: Final = {"cn-": "aws-cn", "us-gov-": "aws-us-gov"}


@dataclass(frozen=True, slots=True)
class Queue:
    """An SQS queue, identified by its URL.

    :param region: the AWS region of the queue; None if the queue's server is not AWS, or if the AWS endpoint is
        unknown.
    :param arn: the queue's ARN; None if the ARN cannot be derived from the URL.
    :param own_endpoint: the URL of the SQS server to which requests for this queue are sent; None if boto can derive
        the URL from the region.
    """

    url: str
    region: str | None
    arn: str | None
    own_endpoint: str | None

    @property
    def source(self) -> str:
        """The source name of the queue in the inbox.

        The name contains the ARN, so that all URLs of a queue have the same source name. If the ARN is unknown, the
        name contains the URL.
        """
        return f"sqs:{self.arn or self.url}"

    @property
    def is_fifo(self) -> bool:
        """True if the queue is a FIFO queue. The name of every FIFO queue ends with ``.fifo``."""
        return self.url.endswith(".fifo")


@lru_cache(maxsize=1_024)
def queue_of(url: str) -> Queue:
    """Parse the URL of a queue.

    :raises ValueError: if `url` is not a URL.
    """
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}"
    region, is_regional = _region(parts)
    path = _PATH.fullmatch(parts.path)
    arn = None
    if region and path:
        arn = f"arn:{_partition(region)}:sqs:{region}:{path['account']}:{path['name']}"
    return Queue(
        url=origin + parts.path.rstrip("/"),
        region=region,
        arn=arn,
        own_endpoint=None if is_regional else origin,
    )


def _region(parts: SplitResult) -> tuple[str | None, bool]:
    host = parts.hostname or ""
    if (found := _REGIONAL.fullmatch(host)) and parts.port is None:
        # The oldest endpoint has no region in its name.
        return found["region"] or "us-east-1", True
    for pattern in _OTHERS:
        if found := pattern.fullmatch(host):
            return found["region"], False
    return None, False


def _partition(region: str) -> str:
    return next((name for prefix, name in _PARTITIONS.items() if region.startswith(prefix)), "aws")
