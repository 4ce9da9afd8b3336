"""What DAG files import: operators that only defer."""
