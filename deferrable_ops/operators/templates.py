"""Which templates a triggerer can render. What it cannot render makes it hang or fail, so this knows what it can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.defaults import DEFAULT_NAMESPACE

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
_OF_JINJA: Final = frozenset({*DEFAULT_NAMESPACE, "loop"})
# Of these a triggerer has no more than this: anything else, or the whole of them under another name, could hang, be
# missing, or (a plugin's macro) block it.
_TASK_INSTANCE: Final = frozenset({"dag_id", "id", "map_index", "run_id", "task_id", "try_number"})
_ATTRIBUTES: Final = {
    "ti": _TASK_INSTANCE,
    "task_instance": _TASK_INSTANCE,
    "task": frozenset({"owner", "retries", "task_display_name", "task_id"}),
    "dag": frozenset({"catchup", "dag_display_name", "dag_id", "description", "max_active_runs"}),
    "macros": frozenset(
        {
            "dateutil",
            "datetime",
            "datetime_diff_for_humans",
            "ds_add",
            "ds_format",
            "ds_format_locale",
            "json",
            "random",
            "time",
            "timedelta",
            "uuid",
            "yaml",
        }
    ),
}
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
    unknown = sorted(_free_names(tree) - _NAMES - _OF_JINJA) or sorted(_restricted_uses(tree))
    if unknown:
        return f"the template {template!r} uses {unknown[0]}, which a triggerer does not have"
    return None


def _free_names(tree: nodes.Template) -> set[str]:
    names = list(tree.find_all(nodes.Name))
    own = {name.name for name in names if name.ctx in ("store", "param")}
    own |= {macro.name for macro in tree.find_all(nodes.Macro)}
    return {name.name for name in names if name.ctx == "load"} - own


def _restricted_uses(tree: nodes.Template) -> set[str]:
    allowed, written = set(), {}
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        owner = getattr(node, "node", None)
        if isinstance(owner, nodes.Name) and owner.name in _ATTRIBUTES:
            written[id(owner)] = f"{owner.name}.{_attribute(node)}"
            if _attribute(node) in _ATTRIBUTES[owner.name]:
                allowed.add(id(owner))
    uses = [
        name for name in tree.find_all(nodes.Name) if name.name in _ATTRIBUTES and id(name) not in allowed
    ]
    return {written.get(id(name), name.name) for name in uses}


def _attribute(node: nodes.Node) -> str:
    if isinstance(node, nodes.Getattr):
        return node.attr
    return (
        str(node.arg.value)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const)
        else "[...]"
    )
