"""The command ``deferrable-ops``."""
