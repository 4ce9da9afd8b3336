"""Amazon SQS: pollers and senders that all triggers in a process share."""
