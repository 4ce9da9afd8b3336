"""Which templates a triggerer can render. What it cannot render makes it hang or fail, so this knows what it can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import jinja2
from jinja2 import nodes

# Measured on Airflow 3.3.2: these come with the trigger or are fetched by messages that its supervisor knows.
_NAMES: Final = frozenset(
    {
        "conf",
        "conn",
        "dag",
        "dag_run",
        "data_interval_end",
        "data_interval_start",
        "ds",
        "ds_nodash",
        "logical_date",
        "macros",
        "params",
        "run_id",
        "task",
        "task_instance",
        "task_instance_key_str",
        "ti",
        "ts",
        "ts_nodash",
        "ts_nodash_with_tz",
        "var",
    }
)
_TASK_INSTANCE_ATTRIBUTES: Final = frozenset({"dag_id", "id", "map_index", "run_id", "task_id", "try_number"})
_BLOCKS = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


def find_templates(value: Any) -> Iterator[str]:
    """Yield the texts in a value, nested or not, that Airflow would render."""
    if isinstance(value, str):
        if "{{" in value or "{%" in value:
            yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from find_templates(key)
            yield from find_templates(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from find_templates(item)


def needs_worker_because(template: str) -> str | None:
    """Return why only a worker can render a template; None when a triggerer can."""
    try:
        tree = jinja2.Environment().parse(template)  # noqa: S701 - parsed for its names, never rendered
    except jinja2.TemplateSyntaxError as error:
        return f"the template {template!r} is malformed ({error.message}), which a worker reports"
    if next(tree.find_all(_BLOCKS), None) is not None:
        return f"the template {template!r} includes another one"
    unknown = sorted(_free_names(tree) - _NAMES)
    if unknown:
        return f"the template {template!r} uses {unknown[0]}, which a triggerer does not have"
    for attribute in tree.find_all((nodes.Getattr, nodes.Getitem)):
        reason = _attribute_needs_worker_because(attribute)
        if reason is not None:
            return f"the template {template!r} uses {reason}, which a triggerer does not have"
    return None


def _free_names(tree: nodes.Template) -> set[str]:
    names = list(tree.find_all(nodes.Name))
    own = {name.name for name in names if name.ctx in ("store", "param")}
    return {name.name for name in names if name.ctx == "load"} - own


def _attribute_needs_worker_because(node: nodes.Node) -> str | None:
    if not isinstance(node, (nodes.Getattr, nodes.Getitem)) or not isinstance(node.node, nodes.Name):
        return None
    owner = node.node.name
    if isinstance(node, nodes.Getitem):
        name = node.arg.value if isinstance(node.arg, nodes.Const) else "[...]"
    else:
        name = node.attr
    if owner in ("ti", "task_instance") and name not in _TASK_INSTANCE_ATTRIBUTES:
        return f"{owner}.{name}"
    if owner == "dag_run" and str(name).startswith("get_"):
        return f"{owner}.{name}"
    return None
