"""A whole configuration of supervisord, for use with Airflow and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from deferrable_ops.exceptions import InputError
from deferrable_ops.supervisord.daemon_sections import (
    GroupConfiguration,
    IncludeConfiguration,
    InetHttpServerConfiguration,
    RpcInterfaceConfiguration,
    SupervisorctlConfiguration,
    SupervisordConfiguration,
    UnixHttpServerConfiguration,
)
from deferrable_ops.supervisord.program_sections import (
    EventListenerConfiguration,
    FcgiProgramConfiguration,
    ProgramConfiguration,
)
from deferrable_ops.supervisord.rendering import contains_here
from deferrable_ops.supervisord.section import Model, Section
from deferrable_ops.supervisord.values import REVEAL, FilePath, Name
from deferrable_ops.supervisord.yaml_files import validated, without_marks, yaml_mapping


class SupervisorConfiguration(Model):
    """All sections of one supervisord's file.

    :param config_path: where the file is meant to be; a relative path is one in ``working_dir``.
    :param working_dir: an absolute path: the daemon's own directory.
    :raises InputError: two sections contradict each other.
    """

    unix_http_server: UnixHttpServerConfiguration | None = None
    inet_http_server: InetHttpServerConfiguration | None = None
    supervisord: SupervisordConfiguration = Field(default_factory=SupervisordConfiguration)
    supervisorctl: SupervisorctlConfiguration = Field(default_factory=SupervisorctlConfiguration)
    include: IncludeConfiguration | None = None
    program: dict[Name, ProgramConfiguration] = Field(default_factory=dict)
    group: dict[Name, GroupConfiguration] = Field(default_factory=dict)
    fcgiprogram: dict[Name, FcgiProgramConfiguration] = Field(default_factory=dict)
    eventlistener: dict[Name, EventListenerConfiguration] = Field(default_factory=dict)
    rpcinterface: dict[Name, RpcInterfaceConfiguration] = Field(default_factory=dict)
    config_path: FilePath = FilePath("supervisord.conf")
    working_dir: FilePath | None = None

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Return the configuration that a YAML file holds; ``_target_`` and Hydra's other marks are passed over.

        :raises InputError: the file cannot be read, or what it holds is wrong; the message names file and field.
        """
        return validated(cls, without_marks(str(path), yaml_mapping(path)), str(path))

    def to_cfg(self) -> str:
        """Return supervisord's file as text, with passwords as they are: keep it in a file of mode 0600.

        :raises InputError: a value cannot be written into the file.
        """
        text = "\n".join(section.to_cfg(key) for key, section in self._sections())
        if self.include is not None and contains_here(text):
            raise InputError(
                "a value holds %%(here)s, as plain text, which supervisord replaces all the same where there is an "
                "[include]; leave one of the two out"
            )
        return text

    def with_secrets(self) -> dict[str, Any]:
        """Return the configuration as a JSON object that makes the same one again, with passwords as they are."""
        return self.model_dump(mode="json", context={REVEAL: True})

    @property
    def has_secrets(self) -> bool:
        """Whether the file holds a password."""
        servers = (self.unix_http_server, self.inet_http_server, self.supervisorctl)
        return any(server is not None and server.password is not None for server in servers)

    @property
    def programs(self) -> dict[str, ProgramConfiguration]:
        """All programs, with those of FastCGI."""
        return {**self.program, **self.fcgiprogram}

    def _sections(self) -> list[tuple[str, Section]]:
        single = (
            self.unix_http_server,
            self.inet_http_server,
            self.supervisord,
            self.supervisorctl,
            self.include,
        )
        named = (self.rpcinterface, self.program, self.fcgiprogram, self.eventlistener, self.group)
        return [
            *(("", section) for section in single if section is not None),
            *((key, section) for sections in named for key, section in sections.items()),
        ]

    @model_validator(mode="after")
    def _known_programs(self) -> Self:
        owner: dict[str, str] = {}
        for name, group in self.group.items():
            for program in group.programs:
                if program not in self.program and program not in self.fcgiprogram:
                    raise InputError(
                        f"group[{name!r}] names {program!r}, which is neither in program nor fcgiprogram"
                    )
                if owner.setdefault(program, name) != name:
                    raise InputError(f"group[{name!r}] and group[{owner[program]!r}] both have {program!r}")
        return self

    @model_validator(mode="after")
    def _one_of_each_name(self) -> Self:
        grouped = {program for group in self.group.values() for program in group.programs}
        alone = [name for name in (*self.program, *self.fcgiprogram) if name not in grouped]
        names = [*self.group, *alone, *self.eventlistener]
        twice = sorted(
            {name for name in names if names.count(name) > 1} | (set(self.program) & set(self.fcgiprogram))
        )
        if twice:
            raise InputError(
                f"{twice[0]!r} is the name of two process groups; each program outside a group, each group and each "
                "event listener needs a name of its own"
            )
        return self
