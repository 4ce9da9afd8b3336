"""The complete configuration of one supervisord, for use with or without Airflow."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
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
    environment_file,
    start_order,
)
from deferrable_ops.supervisord.rendering import contains_here
from deferrable_ops.supervisord.section import Model, Section
from deferrable_ops.supervisord.values import REVEAL, FilePath, Name
from deferrable_ops.supervisord.yaml_files import compose, validated, without_marks, yaml_mapping


class SupervisorConfiguration(Model):
    """All sections of a supervisord configuration file.

    :param config_path: path of supervisord's configuration file; a relative path is relative to ``working_dir``.
    :param working_dir: absolute path of the directory for supervisord's files.
    :raises InputError: if the values of two sections contradict each other.
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
        """Load the configuration from a YAML file. ``_target_`` and the other special keys of Hydra in the file are
        ignored.

        :raises InputError: if the file cannot be read or is invalid. The error message contains the path of the file
            and the name of the invalid field.
        """
        return validated(cls, without_marks(str(path), yaml_mapping(path)), str(path))

    @classmethod
    def load(
        cls,
        config_dir: str = "config",
        config_name: str = "",
        overrides: Sequence[str] | None = None,
        *,
        basepath: str | Path = "",
    ) -> Self:
        """Compose the configuration from YAML files with Hydra. Needs the package ``hydra-core``.

        :param config_dir: the name of the folder with the YAML files. The folder is in the directory of the calling
            file, or in one of that directory's parents.
        :param config_name: name of the YAML file with which Hydra begins, without ``.yaml``. Without a name, only
            `overrides` choose files.
        :param overrides: Hydra overrides, for example ``["+program=[sleep,echo]", "+working_dir=/data"]``.
        :param basepath: the search for `config_dir` begins at this file or folder; by default at the calling file.
        :raises ConfigurationError: if Hydra is not installed.
        :raises InputError: if the folder is not found, or if the files do not give a valid configuration.
        """
        found = compose(config_dir, config_name, overrides or (), basepath or _calling_file())
        if isinstance(found, cls):
            return found
        if isinstance(found, SupervisorConfiguration):
            found = {name: getattr(found, name) for name in found.model_fields_set}
        return validated(cls, found, f"{config_dir}/{config_name}".rstrip("/"))

    def to_cfg(self) -> str:
        """Return the text of supervisord's configuration file.

        The text contains passwords in plain text, so write it only to a file with mode 0600. If
        :meth:`environment_files` returns files, write these files to the same directory.

        :raises InputError: if a value contains characters that supervisord's configuration file cannot contain.
        """
        text = "\n".join(section.to_cfg(key) for key, section in self._sections())
        if self.include is not None and contains_here(text):
            raise InputError(
                "a value contains %%(here)s as plain text, but in a file with [include] supervisord expands this text; "
                "remove the text or the include section"
            )
        return text

    def environment_files(self) -> dict[str, str]:
        """Return shell scripts that export the environment variables whose values contain line breaks or quotes. Each
        key is a file name, and each value is the text of the file. The files must be in the directory of supervisord's
        configuration file.

        The texts contain secrets in plain text, so write them only to files with mode 0600.
        """
        programs = {**self.programs, **self.eventlistener}
        scripts = {
            environment_file(key): program.environment_script(key) for key, program in programs.items()
        }
        return {name: script for name, script in scripts.items() if script}

    def with_secrets(self) -> dict[str, Any]:
        """Return the configuration as a JSON object. An equal configuration can be loaded from this object.

        The JSON object contains passwords in plain text.
        """
        return self.model_dump(mode="json", context={REVEAL: True})

    @property
    def has_secrets(self) -> bool:
        """Whether supervisord's configuration file contains a password."""
        servers = (self.unix_http_server, self.inet_http_server, self.supervisorctl)
        return any(server is not None and server.password is not None for server in servers)

    @property
    def programs(self) -> dict[str, ProgramConfiguration]:
        """All programs by name, including FastCGI programs."""
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
    def _check_groups(self) -> Self:
        owner: dict[str, str] = {}
        for name, group in self.group.items():
            for program in group.programs:
                if program not in self.program and program not in self.fcgiprogram:
                    raise InputError(
                        f"group[{name!r}] contains {program!r}, which is not the name of a program in the fields "
                        "program and fcgiprogram; check the name"
                    )
                if owner.setdefault(program, name) != name:
                    raise InputError(
                        f"group[{name!r}] and group[{owner[program]!r}] both contain {program!r}; keep this "
                        "program in only one of the two groups"
                    )
        return self

    @model_validator(mode="after")
    def _check_start_order(self) -> Self:
        start_order(self.programs)
        return self

    @model_validator(mode="after")
    def _check_unique_names(self) -> Self:
        grouped = {program for group in self.group.values() for program in group.programs}
        ungrouped = [name for name in (*self.program, *self.fcgiprogram) if name not in grouped]
        names = [*self.group, *ungrouped, *self.eventlistener]
        duplicates = sorted(
            {name for name in names if names.count(name) > 1} | (set(self.program) & set(self.fcgiprogram))
        )
        if duplicates:
            raise InputError(
                f"{duplicates[0]!r} is the name of two process groups; rename one of them, because each ungrouped "
                "program, group and event listener needs a unique name"
            )
        return self


def _calling_file() -> str:
    """Return the file of the code that called :meth:`SupervisorConfiguration.load`."""
    frame = inspect.currentframe()
    for _ in range(2):
        frame = None if frame is None else frame.f_back
    return "" if frame is None else frame.f_code.co_filename


load_config = SupervisorConfiguration.load
