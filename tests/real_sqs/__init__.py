"""SQS for tests: moto's server, behind a proxy that counts, and has the faults that it is told to have."""
