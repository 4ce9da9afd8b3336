"""Check who may import whom in deferrable_ops. docs/architecture.md explains the rules."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PACKAGE = "deferrable_ops"
SOURCE = Path(__file__).parent.parent / PACKAGE

# Every layer may import these files, and they import no layer.
GROUND = {
    "airflow_version",
    "backoff",
    "deployment",
    "error_table",
    "exceptions",
    "expressions",
    "outages",
    "outcome",
    "plain_data",
    "settings",
    "shared",
    "supervisor_calls",
    "throttle",
}
LAYERS: dict[str, set[str]] = {
    "operators": {"triggers", "inbox", "events", "supervisord", "high_availability", "checks"},
    "triggers": {"upstreams", "inbox", "events", "supervisord", "high_availability", "checks"},
    "checks": {"upstreams", "high_availability"},
    "endpoint": {"inbox", "events"},
    "upstreams": {"events"},
    "inbox": set(),
    "events": set(),
    "supervisord": set(),
    "high_availability": set(),
}
# These may import every layer, and no layer imports them.
ABOVE = {"__init__", "__main__", "cli", "metadata_database", "plugin", "provider", "testing"}

# A folder imports itself, the files directly in its layer, and the folders of the same layer named here.
FOLDERS: dict[str, dict[str, set[str]]] = {
    "operators": {
        "webhook": set(),
        "dataflow": set(),
        "events": set(),
        "high_availability": set(),
        "supervisor": {"high_availability"},
    },
    "triggers": {
        "lifecycle": set(),
        "webhook": {"lifecycle"},
        "dataflow": {"lifecycle"},
        "events": {"lifecycle"},
        "high_availability": {"lifecycle"},
        "supervisor": {"lifecycle", "high_availability"},
    },
    "upstreams": {
        "aws": set(),
        "dataflow": set(),
        "kafka": set(),
        "machine": set(),
        "sqs": {"aws"},
        "ssh": {"machine"},
        "supervisord": set(),
    },
    "inbox": {"database": set(), "waits": {"database"}, "events": {"database"}, "migrations": {"database"}},
}
# The features, each with the upstreams that are its own; all features share the files directly in upstreams/.
FEATURES: dict[str, set[str]] = {
    "webhook": set(),
    "dataflow": {"dataflow"},
    "events": {"kafka", "sqs"},
    "high_availability": set(),
    "supervisor": {"machine", "supervisord"},
}
# A supervisor's check of its programs is a high-availability check.
BETWEEN_FEATURES = {("supervisor", "high_availability")}

HEAVY = {"aioboto3", "aiobotocore", "aiohttp", "aiokafka", "asyncssh", "boto3", "botocore", "google", "grpc"}
# Servers that only tests start: they need these clients at once, and keep no event loop waiting.
FAKES = {"testing/dataflow/": HEAVY, "testing/service.py": {"aiohttp"}}


@dataclass(frozen=True)
class Import:
    """One imported module.

    :param module: its full name; where ``from package import name`` names a module, that module.
    :param inside: whether it is imported within a function, so that importing the file does not import it.
    :param for_types: whether it is imported under `if TYPE_CHECKING`, so never at run time.
    """

    module: str
    line: int
    inside: bool
    for_types: bool


def main() -> int:
    """Check every file of the package."""
    found = {file: list(imports(file)) for file in sorted(SOURCE.rglob("*.py"))}
    complaints = [complaint for file, imported in found.items() for complaint in check(file, imported)]
    complaints += circles(
        {name_of(file): {one.module for one in imported} for file, imported in found.items()}
    )
    print("\n".join(complaints) or "import rules: ok")
    return 1 if complaints else 0


def check(file: Path, imported: list[Import]) -> Iterator[str]:
    """Yield a line for every import of a file that breaks a rule, and one for a face that does more than re-export."""
    path = file.relative_to(SOURCE).as_posix()
    for one in imported:
        reason = forbidden(path, one) or forbidden_weight(path, one)
        if reason:
            yield f"{PACKAGE}/{path}:{one.line}: imports {one.module}: {reason}"
    if path.endswith("/__init__.py"):
        for node in ast.parse(file.read_text()).body:
            if not re_exports(node):
                yield f"{PACKAGE}/{path}:{node.lineno}: a folder's __init__.py only re-exports"


def forbidden(path: str, one: Import) -> str | None:
    """Return why a file may not import this module of the package, or None."""
    package, _, inner = one.module.partition(".")
    if package != PACKAGE:
        return None
    target = inner.replace(".", "/")
    layer, target_layer = layer_of(path), layer_of(target)
    if target_layer in GROUND:
        return None
    if layer in GROUND:
        return f"{layer} imports no layer"
    if not path.endswith("/__init__.py") and target and PurePosixPath(target) in PurePosixPath(path).parents:
        return "inside a folder, import the file that defines the name"
    if layer in ABOVE or layer == target_layer == "__init__":
        return None
    if layer != target_layer and target_layer not in LAYERS[layer]:
        return f"{layer} may import {', '.join(sorted(LAYERS[layer])) or 'no other layer'}"
    return forbidden_feature(path, target) or forbidden_folder(path, target)


def forbidden_folder(path: str, target: str) -> str | None:
    """Return why a file of one folder may not import a file of another folder in the same layer, or None."""
    layer, folder, target_folder = layer_of(path), second(path), second(target)
    folders = FOLDERS.get(layer, {})
    if layer != layer_of(target) or folder not in folders or target_folder not in folders:
        return None
    if folder == target_folder or target_folder in folders[folder]:
        return None
    return f"{layer}/{folder} may import {', '.join(sorted(folders[folder])) or 'no other folder'} of {layer}"


def forbidden_feature(path: str, target: str) -> str | None:
    """Return why a file of one feature may not import a file of another feature, or its upstream, or None."""
    feature = second(path) if layer_of(path) in {"operators", "triggers"} else None
    if feature not in FEATURES:
        return None
    layer, imported = layer_of(target), second(target)
    if layer in {"operators", "triggers"} and imported in FEATURES:
        allowed = feature == imported or (feature, imported) in BETWEEN_FEATURES
        return None if allowed else f"{feature} may not import {imported}, another feature"
    if layer == "upstreams" and imported in FOLDERS["upstreams"] and imported not in FEATURES[feature]:
        return f"{feature} may not import the upstream {imported}, which is another feature's"
    return None


def forbidden_weight(path: str, one: Import) -> str | None:
    """Return why a heavy client may not be imported here, or None."""
    client = one.module.partition(".")[0]
    if one.for_types or client not in HEAVY:
        return None
    if any(path.startswith(fake) and client in clients for fake, clients in FAKES.items()):
        return None
    if layer_of(path) != "upstreams":
        return "only the upstream that needs a heavy client imports it"
    return None if one.inside else "import a heavy client inside the function that needs it"


def re_exports(node: ast.stmt) -> bool:
    """Return whether a statement of an `__init__.py` only documents or re-exports, also lazily."""
    if isinstance(node, ast.FunctionDef):
        return node.name == "__getattr__"
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.Expr | ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign)


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Return a line for every group of modules that import each other, lazily or for types too (Tarjan)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found: list[str] = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        path.append(module)
        for imported in sorted(graph[module] & graph.keys()):
            if imported not in index:
                visit(imported)
            if imported in path:
                lowest[module] = min(lowest[module], lowest[imported])
        if lowest[module] == index[module]:
            circle = path[path.index(module) :]
            del path[path.index(module) :]
            if len(circle) > 1 or module in graph[module]:
                found.append(f"import circle: {' -> '.join([*circle, module])}")

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return found


def imports(file: Path) -> Iterator[Import]:
    """Yield everything that a file imports."""
    package = [PACKAGE, *file.relative_to(SOURCE).parent.parts]
    yield from _imports(ast.parse(file.read_text()), package)


def _imports(
    tree: ast.AST, package: list[str], inside: bool = False, for_types: bool = False
) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, inside, for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            modules = {imported_module(node, package, alias.name) for alias in node.names}
            yield from (Import(module, node.lineno, inside, for_types) for module in sorted(modules))
        else:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            yield from _imports(node, package, inside or function, for_types or types)


def imported_module(node: ast.ImportFrom, package: list[str], name: str) -> str:
    """Return the module that ``from ... import name`` needs: the name itself where that is a module."""
    base = package[: len(package) - node.level + 1] if node.level else []
    module = ".".join([*base, *([node.module] if node.module else [])])
    inner = SOURCE.joinpath(*module.split(".")[1:], name)
    is_module = module.partition(".")[0] == PACKAGE and (inner.is_dir() or inner.with_suffix(".py").is_file())
    return f"{module}.{name}" if is_module else module


def name_of(file: Path) -> str:
    """Return the full name of a file's module."""
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join([PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)])


def layer_of(path: str) -> str:
    """Return the layer of a path below the package: its first folder, or the module's name."""
    layer = path.split("/", maxsplit=1)[0].removesuffix(".py")
    return layer if layer in LAYERS or layer in GROUND or layer in ABOVE else "__init__"


def second(path: str) -> str | None:
    """Return the folder, or the module, of a path inside its layer; None for the layer itself."""
    parts = path.split("/")
    return parts[1].removesuffix(".py") if len(parts) > 1 else None


if __name__ == "__main__":
    sys.exit(main())
