"""How the inbox reaches its database: engines, transactions, schema and migrations."""
