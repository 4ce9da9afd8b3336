"""``python -m deferrable_ops.testing.dataflow --port 8765``: a fake Dataflow in a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from deferrable_ops.testing.dataflow.control import serve_control
from deferrable_ops.testing.dataflow.fake import fake_dataflow


def main() -> None:
    """Serve until killed. The first line of the output says where, as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m deferrable_ops.testing.dataflow", description=main.__doc__
    )
    parser.add_argument("--port", type=int, default=0, help="of the gRPC server; 0 takes a free one")
    parser.add_argument("--control-port", type=int, default=0, help="of the HTTP control; 0 takes a free one")
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
