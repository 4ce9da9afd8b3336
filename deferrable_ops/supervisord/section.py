"""Base classes of the configuration: pydantic models that reject unknown fields, and models of sections of
supervisord's configuration file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, SecretStr, model_validator

from deferrable_ops.plain_data import has_template
from deferrable_ops.supervisord.rendering import IN_DAEMON, environment_text, render_value, section_text
from deferrable_ops.supervisord.values import plain


class Model(BaseModel):
    """Base class of all models of the configuration.

    An instance of a model cannot be changed, and unknown fields are rejected. A field with the value None is treated as
    a field that the user did not set. Validation errors contain a field's name, but never its value.
    """

    # A DAG file that imports an operator, and uses no or few of the models, is parsed faster with defer_build.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _without_none(cls, data: Any) -> Any:
        data = plain(data)
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if value is not None}
        return data


class Section(Model):
    """A section of supervisord's configuration file. The fields have the names and defaults of supervisor 4.3."""

    _header: ClassVar[str]
    # The names that supervisor expands in the fields of this section. _expressions_of contains other names for some
    # fields.
    _expressions: ClassVar[frozenset[str]] = IN_DAEMON
    _expressions_of: ClassVar[Mapping[str, frozenset[str]]] = {}
    _expanded_twice: ClassVar[frozenset[str]] = frozenset()
    # The fields that only this library uses. supervisord's configuration file does not contain them.
    _not_in_file: ClassVar[frozenset[str]] = frozenset()

    def to_cfg(self, key: str = "") -> str:
        """Return the section as text for supervisord's configuration file. Fields that have their default value are
        omitted. Passwords in the text are not masked.

        :param key: name of the program, group or plugin in the section's header; "" if the header has no such name.
        :raises InputError: if a value contains characters that the configuration file cannot contain.
        """
        header = f"{self._header}:{key}" if key else self._header
        return section_text(header, self._lines(header))

    @model_validator(mode="after")
    def _check_writable(self) -> Self:
        if not any(has_template(str(value)) for value in self.__dict__.values()):
            self.to_cfg()
        return self

    def _lines(self, header: str) -> Iterator[tuple[str, str]]:
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name in self._not_in_file:
                continue
            if value is not None and (
                field.is_required() or value != field.get_default(call_default_factory=True)
            ):
                yield name, self._render_field(header, name, value)

    def _render_field(self, header: str, name: str, value: Any) -> str:
        argument = f"{name} in [{header}]"
        return render_value(
            argument,
            _as_text(argument, value),
            self._expressions_of.get(name, self._expressions),
            2 if name in self._expanded_twice else 1,
        )


def _as_text(argument: str, value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case SecretStr():
            return value.get_secret_value()
        case dict():
            return environment_text(argument, value)
        case list():
            return ",".join(map(str, value))
    return str(value)
