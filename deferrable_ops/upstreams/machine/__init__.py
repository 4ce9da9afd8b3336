"""Files and processes of a machine; this package implements the local one."""
