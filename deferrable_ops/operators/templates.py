"""Finds templates in arguments, and checks whether a triggerer can render them without hanging or failing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.defaults import DEFAULT_NAMESPACE

from deferrable_ops import settings

# The names that a template may use, tested on Airflow 3.3.2. A triggerer has their values itself, or can request them
# from its supervisor process.
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
# Airflow gives a triggerer neither the connections nor the variables of a team.
_OF_A_TEAM: Final = frozenset({"conn", "var"})
_JINJA_NAMES: Final = frozenset({*DEFAULT_NAMESPACE, "loop"})
# Of the following objects, a triggerer supports only the listed attributes. Any other attribute may be missing, may
# hang, or may block the event loop (a plugin's macro). The same may happen if a template uses the whole object.
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
    """Yield all strings in a value, at any depth, that contain a Jinja expression or statement."""
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


def renders_unchanged(value: Any) -> bool:
    """Return whether Airflow's rendering does not change a value, because no string in the value is a template."""
    if isinstance(value, str):
        # Jinja also removes comments and a line break at the end, and it replaces Windows' line breaks.
        return not (any(mark in value for mark in ("{{", "{%", "{#", "\r")) or value.endswith("\n"))
    if isinstance(value, Mapping):
        return all(renders_unchanged(key) and renders_unchanged(item) for key, item in value.items())
    if isinstance(value, (list, tuple, set)):
        return all(map(renders_unchanged, value))
    # Airflow renders objects of other classes in their own way.
    return value is None or isinstance(value, (bool, int, float))


def template_problem(template: str) -> str | None:
    """Return why a triggerer cannot render a template. Return None if a triggerer can render the template."""
    try:
        tree = jinja2.Environment().parse(template)  # noqa: S701 - only parsed, never rendered
    except jinja2.TemplateSyntaxError as error:
        return f"the template {template!r} is malformed ({error.message}), and only a worker can report this"
    if next(tree.find_all(_BLOCKS), None) is not None:
        return f"the template {template!r} includes another template"
    known = _NAMES - _OF_A_TEAM if settings.is_multi_team() else _NAMES
    unknown = sorted(_free_names(tree) - known - _JINJA_NAMES) or sorted(_restricted_uses(tree))
    if unknown:
        return f"the template {template!r} uses {unknown[0]}, which a triggerer does not have"
    return None


def _free_names(tree: nodes.Template) -> set[str]:
    names = list(tree.find_all(nodes.Name))
    assigned = {name.name for name in names if name.ctx in ("store", "param")}
    assigned |= {macro.name for macro in tree.find_all(nodes.Macro)}
    return {name.name for name in names if name.ctx == "load"} - assigned


def _restricted_uses(tree: nodes.Template) -> set[str]:
    """Return the unsupported uses of variables in a template, for example ``ti.xcom_pull``.

    A triggerer supports only the attributes in `_ATTRIBUTES` of these variables.
    """
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
