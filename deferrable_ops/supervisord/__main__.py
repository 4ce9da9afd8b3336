"""``python -m deferrable_ops.supervisord`` generates supervisord's configuration file from YAML, without Airflow."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord.arguments import add_commands


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command ``render`` or ``check``, and return its exit code: 0 for success, 2 for invalid input."""
    parser = argparse.ArgumentParser(
        "python -m deferrable_ops.supervisord",
        description="Generate supervisord's configuration file from YAML.",
    )
    add_commands(parser.add_subparsers(required=True, metavar="COMMAND"))
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
