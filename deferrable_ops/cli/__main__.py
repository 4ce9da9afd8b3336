"""``python -m deferrable_ops.cli`` runs the command ``deferrable-ops``."""

import sys

from deferrable_ops.cli.main import main

sys.exit(main())
