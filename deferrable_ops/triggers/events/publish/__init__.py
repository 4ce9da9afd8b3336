"""Publishes events to a channel, a Kafka topic or an SQS queue."""
