"""The inbox's database: engines, transactions, schema and migrations."""
