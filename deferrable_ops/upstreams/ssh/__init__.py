"""A machine behind SSH, through one shared connection per address."""
