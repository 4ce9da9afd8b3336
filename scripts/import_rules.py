"""Who may import whom in deferrable_ops, and where heavy clients may be imported."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "deferrable_ops"
SOURCE = Path(__file__).parent.parent / PACKAGE

# Every room may import these, and they import no room.
GROUND = {"exceptions", "expressions", "outcome", "plain_data", "settings", "shared"}
ROOMS: dict[str, set[str]] = {
    "operators": {"triggers", "inbox", "events", "supervisord", "high_availability", "checks"},
    "triggers": {"upstreams", "inbox", "events", "supervisord", "high_availability"},
    "checks": {"upstreams", "high_availability"},
    "endpoint": {"inbox", "events"},
    "upstreams": {"events"},
    "inbox": set(),
    "events": set(),
    "supervisord": set(),
    "high_availability": set(),
}
# These stand above all rooms; no room imports them.
ABOVE = {"__init__", "cli", "plugin", "provider", "notifications", "testing"}
# One file each that may do more than its room.
EXCEPTIONS = {("upstreams/sqs.py", "inbox")}
# A file of operators/ belongs to the feature that its name begins with, or else to all of them.
FEATURES = ("webhook", "events", "dataflow", "high_availability", "supervisor")
BETWEEN_FEATURES = {("supervisor", "high_availability")}

# Servers that only tests start: they need the heavy client at once, and keep no event loop waiting.
FAKES = ("testing/dataflow/",)

HEAVY = {"aioboto3", "aiobotocore", "aiokafka", "asyncssh", "boto3", "botocore", "google", "grpc"}


@dataclass(frozen=True)
class Import:
    """One import statement's module.

    :param inside: within a function, so that it costs nothing until that is called.
    :param for_types: under `if TYPE_CHECKING`, so that it never costs anything.
    """

    module: str
    line: int
    inside: bool
    for_types: bool


def main() -> int:
    """Check every file of the package."""
    complaints = [complaint for file in sorted(SOURCE.rglob("*.py")) for complaint in check(file)]
    print("\n".join(complaints) or "import rules: ok")
    return 1 if complaints else 0


def check(file: Path) -> Iterator[str]:
    """Yield a line for every import of a file that breaks a rule."""
    path = file.relative_to(SOURCE).as_posix()
    for found in imports(ast.parse(file.read_text()), package_of(file)):
        reason = forbidden_room(path, found) or forbidden_weight(path, found)
        if reason:
            yield f"{PACKAGE}/{path}:{found.line}: imports {found.module}: {reason}"


def forbidden_room(path: str, found: Import) -> str | None:
    """Return why a file may not import this room, or None."""
    package, _, inner = found.module.partition(".")
    if package != PACKAGE:
        return None
    room, target = room_of(path), room_of(inner.replace(".", "/") or "__init__.py")
    if room in ABOVE or target in GROUND or (path, target) in EXCEPTIONS:
        return None
    if room == target:
        return forbidden_feature(path, inner.replace(".", "/")) if room == "operators" else None
    if room in GROUND:
        return f"{room} imports no other room"
    if target in ROOMS[room]:
        return None
    return f"{room} may import {', '.join(sorted(ROOMS[room])) or 'no other room'}"


def forbidden_feature(path: str, target: str) -> str | None:
    """Return why a file of one feature's operators may not import a file of another's, or None."""
    importing, imported = feature_of(path), feature_of(target)
    if None in {importing, imported} or importing == imported or (importing, imported) in BETWEEN_FEATURES:
        return None
    return "among operators, only supervisor imports another: high_availability"


def feature_of(path: str) -> str | None:
    """Return the feature that a file of operators/ belongs to, if it is one feature's alone."""
    name = path.partition("/")[2]
    return next((feature for feature in FEATURES if name.startswith(feature)), None)


def forbidden_weight(path: str, found: Import) -> str | None:
    """Return why a heavy client may not be imported here, or None."""
    if found.for_types or found.module.partition(".")[0] not in HEAVY:
        return None
    if path.startswith(FAKES):
        return None
    if room_of(path) != "upstreams":
        return "a heavy client is the upstream's that needs it"
    return None if found.inside else "a heavy client is imported inside the function that needs it"


def imports(
    tree: ast.AST, package: list[str], inside: bool = False, for_types: bool = False
) -> Iterator[Import]:
    """Go through every import below a node."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, inside, for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, package)
            # `from deferrable_ops import cli` names a module, `from deferrable_ops.cli.main import main` does not.
            names = [f"{module}.{alias.name}" for alias in node.names] if module == PACKAGE else [module]
            yield from (Import(name, node.lineno, inside, for_types) for name in names)
        else:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            yield from imports(node, package, inside or function, for_types or types)


def absolute(node: ast.ImportFrom, package: list[str]) -> str:
    """Return the module that a `from ... import` names, without leading dots."""
    base = package[: len(package) - node.level + 1] if node.level else []
    return ".".join([*base, *([node.module] if node.module else [])])


def package_of(file: Path) -> list[str]:
    """Return the package that a file's relative imports start from."""
    return [PACKAGE, *file.relative_to(SOURCE).parent.parts]


def room_of(path: str) -> str:
    """Return the room of a path below the package: its first folder, or the module's name."""
    room = path.split("/", maxsplit=1)[0].removesuffix(".py")
    known = room in ROOMS or room in GROUND or room in ABOVE
    return room if known else "__init__"


if __name__ == "__main__":
    sys.exit(main())
