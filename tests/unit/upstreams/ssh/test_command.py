"""Commands for a remote shell: any bytes arrive unchanged, and none is on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from shutil import which

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deferrable_ops.exceptions import InputError
from deferrable_ops.upstreams.ssh.command import script_line, shell_command

SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('A'), sys.stdin.buffer.read().hex()]))"
SHELLS = [path for path in map(which, ("sh", "bash", "zsh", "csh", "fish", "ksh", "busybox")) if path]

words = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)))


def run(line: bytes, shell: str = "sh", prefix: str = "", stdin: bytes = b"") -> bytes:
    command = [shell, *(["sh"] if "busybox" in shell else []), "-c", shell_command(prefix)]
    return subprocess.run(command, input=line + stdin, capture_output=True, check=True, timeout=20).stdout


@settings(max_examples=20, deadline=None)
@given(st.lists(words, max_size=4), words, st.binary())
def test_arguments_environment_and_input_arrive_unchanged(
    arguments: list[str], value: str, stdin: bytes
) -> None:
    line = script_line([sys.executable, "-S", "-c", SHOW, *arguments], [("A", value), ("PYTHONUTF8", "1")])
    assert line.count(b"\n") == 1
    assert line.isascii()
    shown = run(line, stdin=stdin)
    assert json.loads(shown) == [arguments, value, stdin.hex()]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_login_shell_executes_the_line(shell: str) -> None:
    line = script_line(["echo", "it's", "$HOME \\ \n!"], [("A", "b")], mark="from-here")
    pid, _, said = run(line, shell, prefix="echo Welcome").partition(b"\n")[2].partition(b"\n")
    assert pid.split()[0] == b"from-here"
    assert pid.split()[1].isdigit()
    assert said == b"it's $HOME \\ \n!\n"


def test_shell_command_does_not_depend_on_the_program() -> None:
    assert shell_command("") == shell_command("  ")
    assert shell_command("source x").splitlines() == ["source x", shell_command("")]


def test_zero_character_is_refused() -> None:
    with pytest.raises(InputError, match="null character"):
        script_line(["a\0"], [])
