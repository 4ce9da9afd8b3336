"""The pauses between retries."""

from __future__ import annotations

import ast
from pathlib import Path

import deferrable_ops
from deferrable_ops.backoff import Backoff


def test_backoff_grows_to_the_longest_pause_with_jitter_and_resets() -> None:
    for backoff, first, most in [
        (Backoff(), 0.2, 5.0),
        (Backoff(first_pause=1.0, longest_pause=30.0), 1.0, 30.0),
    ]:
        pauses = [backoff.failed() for _ in range(20)]
        for number, pause in enumerate(pauses):
            longest = min(first * 2**number, most)
            assert longest / 2 <= pause <= longest
        assert len(set(pauses)) == 20
        backoff.succeeded()

        assert backoff.failed() <= first


def test_no_other_module_computes_pauses_between_retries() -> None:
    """A pause that is doubled by hand has no jitter, so processes that fail together also retry together."""
    source = Path(deferrable_ops.__file__).parent
    by_hand = []
    for file in source.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            target = ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else ""
            if target in {"pause", "delay", "backoff", "wait"} and "min(2 *" in ast.unparse(node):
                by_hand.append(f"{file.relative_to(source)}:{node.lineno}")
    assert by_hand == []
