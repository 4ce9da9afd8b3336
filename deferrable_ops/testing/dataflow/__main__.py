"""``python -m deferrable_ops.testing.dataflow --port 8765``: run a fake Dataflow in a separate process."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from deferrable_ops.testing.dataflow.control import serve_control
from deferrable_ops.testing.dataflow.fake import fake_dataflow


def main() -> None:
    """Run a fake Dataflow until it is killed.

    The first line of output is a JSON object with the addresses of the gRPC server and of the HTTP server.
    """
    parser = argparse.ArgumentParser(
        prog="python -m deferrable_ops.testing.dataflow", description=main.__doc__
    )
    parser.add_argument("--port", type=int, default=0, help="port of the gRPC server; 0 selects a free port")
    parser.add_argument(
        "--control-port",
        type=int,
        default=0,
        help="port of the HTTP server for control; 0 selects a free port",
    )
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.port, arguments.control_port))


async def _serve(port: int, control_port: int) -> None:
    async with fake_dataflow(port) as fake:
        control = await serve_control(fake, control_port)
        sys.stdout.write(json.dumps({"dataflow": fake.host, "control": control}) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    main()
