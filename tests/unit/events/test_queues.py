"""Parsing the URL of a queue."""

from __future__ import annotations

import pytest

from deferrable_ops.events.queues import queue_of

PAYMENTS = "arn:aws:sqs:eu-west-1:123456789012:payments"


@pytest.mark.parametrize(
    "url",
    [
        "https://sqs.eu-west-1.amazonaws.com/123456789012/payments",
        "https://SQS.eu-west-1.amazonaws.com/123456789012/payments/",
        "http://sqs.eu-west-1.amazonaws.com/123456789012/payments",
        "https://eu-west-1.queue.amazonaws.com/123456789012/payments",
        "https://sqs-fips.eu-west-1.amazonaws.com/123456789012/payments",
        "https://sqs.eu-west-1.api.aws/123456789012/payments",
        "https://vpce-0a1b-c2d3.sqs.eu-west-1.vpce.amazonaws.com/123456789012/payments",
        "https://eu-west-1a.vpce-0a1b-c2d3.sqs.eu-west-1.vpce.amazonaws.com/123456789012/payments",
    ],
)
def test_all_urls_of_a_queue_have_one_source(url: str) -> None:
    queue = queue_of(url)
    assert queue.source == f"sqs:{PAYMENTS}"
    assert queue.region == "eu-west-1"


@pytest.mark.parametrize(
    ("url", "arn"),
    [
        ("https://queue.amazonaws.com/123456789012/a", "arn:aws:sqs:us-east-1:123456789012:a"),
        (
            "https://sqs.cn-north-1.amazonaws.com.cn/123456789012/a",
            "arn:aws-cn:sqs:cn-north-1:123456789012:a",
        ),
        (
            "https://sqs.us-gov-west-1.amazonaws.com/123456789012/a.fifo",
            "arn:aws-us-gov:sqs:us-gov-west-1:123456789012:a.fifo",
        ),
    ],
)
def test_arn_has_the_partition_of_the_region(url: str, arn: str) -> None:
    assert queue_of(url).arn == arn


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:4566/000000000000/payments",
        "http://127.0.0.1:9324/queue/payments",
        "https://sqs.eu-west-1.amazonaws.com.example.com/123456789012/payments",
        "https://sqs.eu-west-1.amazonaws.com:8443/123456789012/payments",
        "https://evil.example/sqs.eu-west-1.amazonaws.com/123456789012/payments",
        "https://xsqs.eu-west-1.amazonaws.com/123456789012/payments",
    ],
)
def test_queue_of_another_server_is_identified_by_its_url(url: str) -> None:
    queue = queue_of(url)
    assert queue.source == f"sqs:{url}"
    assert queue.region is None
    assert queue.own_endpoint == "/".join(url.split("/")[:3])


def test_path_without_an_account_has_no_arn() -> None:
    assert queue_of("https://sqs.eu-west-1.amazonaws.com/queue/payments").arn is None


def test_only_regional_endpoints_are_derived_by_botocore() -> None:
    path = "/123456789012/payments"
    assert queue_of(f"https://sqs.eu-west-1.amazonaws.com{path}").own_endpoint is None
    private = "https://vpce-0a1b.sqs.eu-west-1.vpce.amazonaws.com"
    assert queue_of(private + path).own_endpoint == private


def test_fifo_queue_is_recognized_by_its_name() -> None:
    assert queue_of("https://sqs.eu-west-1.amazonaws.com/123456789012/a.fifo").is_fifo
    assert queue_of("https://sqs.eu-west-1.amazonaws.com/123456789012/a.fifo/").is_fifo
    assert not queue_of("https://sqs.eu-west-1.amazonaws.com/123456789012/fifo").is_fifo
