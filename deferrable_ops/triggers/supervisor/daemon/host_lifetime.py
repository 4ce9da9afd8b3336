"""Whether a daemon that is started here survives a restart of what starts it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from deferrable_ops.triggers.supervisor.host import Site

_CONTAINER_FILES: Final = (Path("/.dockerenv"), Path("/run/.containerenv"))
_CONTAINER: Final = re.compile(r"docker|kubepods|containerd|libpod|/lxc/")
_CONTAINER_VARIABLES: Final = ("KUBERNETES_SERVICE_HOST", "container")
_UNIT: Final = re.compile(r"/([^/\n]+\.service)(?:/|$)", re.MULTILINE)
_LETS_LIVE: Final = frozenset({"process", "none"})
_ASK_SECONDS: Final = 5.0


async def short_life_because(site: Site) -> str | None:
    """Return what would end the daemon together with the triggerer; None where nothing is known of that."""
    docker, podman = await site.machine.status(*_CONTAINER_FILES)
    groups = (await site.machine.read(Path("/proc/self/cgroup")) or b"").decode(errors="replace")
    init = (await site.machine.read(Path("/proc/1/cgroup")) or b"").decode(errors="replace")
    told = any(name in os.environ for name in _CONTAINER_VARIABLES)  # with cgroup v2 nothing else tells
    if told or docker is not None or podman is not None or _CONTAINER.search(groups + init):
        return "the triggerer runs in a container, with which everything in it ends"
    unit = _UNIT.search(groups)
    if unit is None:
        return None
    asked = ["systemctl", "show", "--property=KillMode", "--value", unit[1]]
    ended = await site.machine.run(asked, timeout=_ASK_SECONDS)
    mode = ended.output.strip() if ended.code == 0 else ""
    if mode in _LETS_LIVE:
        return None
    return (
        f"systemd ends all processes of the unit {unit[1]} when it stops (KillMode={mode or 'unknown'}); "
        "KillMode=process leaves them"
    )
