"""What ``scripts/bench FEATURE`` runs: one package a feature, and what they share in ``common``."""
