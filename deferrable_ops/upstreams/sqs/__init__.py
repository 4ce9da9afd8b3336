"""Amazon SQS: shared pollers and senders."""
