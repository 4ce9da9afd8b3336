"""Determines from the source of a check function whether the check uses something that only a worker has.

If the operator has only the dotted path of a check, this module does not import the check, because the import may take
seconds or may need a triggerer.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Final

from airflow.sdk.definitions.context import KNOWN_CONTEXT_KEYS

from deferrable_ops.exceptions import InputError
from deferrable_ops.high_availability.check_calls import (
    TRIGGERER_ATTRIBUTES,
    TRIGGERER_CONTEXT,
    missing_parameters,
)

WORKER_ONLY: Final = frozenset(KNOWN_CONTEXT_KEYS) - TRIGGERER_CONTEXT
"""The names of Airflow's context that a check gets only on a worker."""

_LOOKUPS: Final = frozenset({"get", "pop", "setdefault"})
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class CheckSource:
    """What is known about a check function without calling it.

    :param signature: the signature of the call, without ``self``; None if the signature is unknown.
    :param definition: the definition of the function in its source; None if the definition is unknown.
    :param is_class: whether the check is a class, whose instances are called.
    """

    signature: inspect.Signature | None
    definition: _Function | None
    is_class: bool = False

    def worker_only_use(self, op_args: Sequence[Any], op_kwargs: Mapping[str, Any]) -> str | None:
        """Return what the check uses that only a worker has, such as ``ti.xcom_push``; None if nothing was found.

        :raises InputError: if the check has a required parameter that no call sets.
        """
        # The arguments are for the class, and its instances are called without arguments.
        args, kwargs = ((), {}) if self.is_class else (op_args, op_kwargs)
        if self.signature is not None:
            known = {*KNOWN_CONTEXT_KEYS, *kwargs}
            if missing := missing_parameters(self.signature, args, known):
                raise InputError(
                    f"python_callable has the required parameter {missing[0]!r}, which is neither in op_kwargs= nor in "
                    "Airflow's context; set it in op_kwargs=, or give the parameter a default"
                )
            for name in list(self.signature.parameters)[len(args) :]:
                if name in WORKER_ONLY and name not in kwargs:
                    return name
        return None if self.definition is None else next(_worker_only_uses(self.definition), None)


def source_of(check: Callable[..., Any]) -> CheckSource:
    """Return what is known about a check function, or about a class whose instances are called."""
    function: Any = vars(check).get("__call__") if inspect.isclass(check) else check
    try:
        signature = inspect.signature(function)
        parsed = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError, ValueError):
        return CheckSource(_signature_of(function), None)
    found = parsed.body[0]
    definition = found if isinstance(found, _Function) else None
    if inspect.isclass(check):
        signature = _without_first(signature)
    return CheckSource(signature, definition, inspect.isclass(check))


def source_at(path: str) -> CheckSource:
    """Return what the source file of a check shows, from the dotted path of a function or of a class."""
    module, _, names = path.partition(":")
    parts = [*module.split("."), *filter(None, names.split("."))]
    lengths = [module.count(".") + 1] if names else range(len(parts) - 1, 0, -1)
    for length in lengths:
        file = _source_file(parts[:length])
        if file is not None:
            return _source_in(file, parts[length:])
    return CheckSource(None, None)


def _source_in(file: Path, names: Sequence[str]) -> CheckSource:
    try:
        node: Any = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return CheckSource(None, None)
    for name in names:
        node = _member(node, name)
    is_class = isinstance(node, ast.ClassDef)
    function = _member(node, "__call__") if is_class else node
    # A decorator may change the signature.
    if not isinstance(function, _Function) or function.decorator_list:
        return CheckSource(None, None)
    signature = _signature_in(function)
    return CheckSource(_without_first(signature) if is_class else signature, function, is_class)


def _source_file(parts: Sequence[str]) -> Path | None:
    """Return the source file of a module without importing the module or its packages."""
    search, spec = None, None
    for length in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:length]), search)
        if spec is None:
            return None
        search = spec.submodule_search_locations
        if search is None and length < len(parts):
            return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


def _member(node: Any, name: str) -> Any:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    body = getattr(node, "body", [])
    found = [one for one in body if isinstance(one, kinds) and one.name == name]
    return found[-1] if found else None


def _signature_of(function: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _without_first(signature: inspect.Signature) -> inspect.Signature:
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _signature_in(function: _Function) -> inspect.Signature:
    given = function.args
    kinds = inspect.Parameter
    by_position = [
        *((one, kinds.POSITIONAL_ONLY) for one in given.posonlyargs),
        *((one, kinds.POSITIONAL_OR_KEYWORD) for one in given.args),
    ]
    first_default = len(by_position) - len(given.defaults)
    parameters = [
        kinds(one.arg, kind, default=kinds.empty if place < first_default else None)
        for place, (one, kind) in enumerate(by_position)
    ]
    if given.vararg is not None:
        parameters.append(kinds(given.vararg.arg, kinds.VAR_POSITIONAL))
    parameters += [
        kinds(one.arg, kinds.KEYWORD_ONLY, default=kinds.empty if default is None else None)
        for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    if given.kwarg is not None:
        parameters.append(kinds(given.kwarg.arg, kinds.VAR_KEYWORD))
    return inspect.Signature(parameters)


def _worker_only_uses(function: _Function) -> Iterator[str]:
    context = None if function.args.kwarg is None else function.args.kwarg.arg
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    # The variables with an object of the context, by name.
    objects = {name: name for name in names if name in TRIGGERER_ATTRIBUTES}
    nodes = [node for statement in function.body for node in ast.walk(statement)]
    for node in nodes:
        match node:
            case ast.Assign(targets=[ast.Name(id=variable)], value=value):
                looked_up = _looked_up(value, context)
                if looked_up in TRIGGERER_ATTRIBUTES:
                    objects[variable] = looked_up
    for node in nodes:
        looked_up = _looked_up(node, context)
        if looked_up in WORKER_ONLY:
            yield looked_up
        if isinstance(node, ast.Attribute):
            of = objects.get(node.value.id) if isinstance(node.value, ast.Name) else None
            of = of or _looked_up(node.value, context)
            if of in TRIGGERER_ATTRIBUTES and node.attr not in TRIGGERER_ATTRIBUTES[of]:
                yield f"{of}.{node.attr}"


def _looked_up(node: ast.AST, context: str | None) -> str:
    """Return the name that an expression such as ``context["ti"]`` or ``context.get("ti")`` looks up, or ''."""
    match node:
        case ast.Subscript(value=ast.Name(id=variable), slice=ast.Constant(value=str(name))) if (
            variable == context
        ):
            return name
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id=variable), attr=method),
            args=[ast.Constant(value=str(name)), *_],
        ) if variable == context and method in _LOOKUPS:
            return name
    return ""
