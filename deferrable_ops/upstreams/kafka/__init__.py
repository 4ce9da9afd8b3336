"""Apache Kafka: consumers and producers that all triggers in a process share."""
