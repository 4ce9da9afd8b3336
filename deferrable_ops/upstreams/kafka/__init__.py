"""Apache Kafka: shared consumers and producers."""
