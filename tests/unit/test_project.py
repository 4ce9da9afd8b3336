"""What holds the project together: every feature has its layers, and the README's example is the example."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEMS = ["webhook", "dataflow", "events", "high_availability", "supervisor"]


@pytest.mark.parametrize("stem", STEMS)
def test_feature_has_operator_trigger_page_example_and_tests(stem: str) -> None:
    for path in (
        f"deferrable_ops/operators/{stem}",
        f"deferrable_ops/triggers/{stem}",
        f"docs/{stem}.md",
        f"examples/example_{stem}.py",
    ):
        assert (ROOT / path).exists() or (ROOT / f"{path}.py").is_file(), path
    for suite in ("unit/operators", "unit/triggers", "airflow", "faults"):
        folder = ROOT / "tests" / suite
        assert [*folder.glob(f"test_{stem}*.py"), *folder.glob(f"{stem}/test_*.py")], f"tests/{suite}"
    assert list((ROOT / "tests" / "bench").glob(f"{stem}*")), "tests/bench"


def test_readme_shows_the_example_as_it_is() -> None:
    shown = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    example = (ROOT / "examples" / "example_webhook.py").read_text()
    assert shown is not None
    assert example.endswith(shown.group(1))
    assert len([line for line in shown.group(1).splitlines() if line.strip()]) <= 15


def test_every_page_that_is_linked_exists() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(
            r"(?:\]\(|^\[[^]]+\]: )(?!https?:)([^)#:\s]+)", page.read_text(), re.MULTILINE
        ):
            assert (page.parent / target).exists(), f"{page.name} links {target}"


def test_files_that_the_architecture_page_names_exist() -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "deferrable_ops").rglob("*.py")}
    named = re.findall(r"`([a-z_/]+\.py)`", (ROOT / "docs" / "architecture.md").read_text())
    assert named
    for name in named:
        assert any(file.endswith(f"/{name}") for file in files) or (ROOT / name).is_file(), name


def test_settings_and_their_documentation_name_the_same_options() -> None:
    from deferrable_ops.provider import get_provider_info

    options = get_provider_info()["config"]["deferrable_ops"]["options"]
    page = (ROOT / "docs" / "webhook.md").read_text()
    assert set(re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE)) == set(options)


def test_text_is_plain_english() -> None:
    """These words mark a way of writing that readers found hard. The count is an alarm only."""
    words = re.compile(r"\b(told|tells|says|said|nobody|whoever|whatever|anew|minds)\b", re.IGNORECASE)
    files = [*(ROOT / "deferrable_ops").rglob("*.py"), *(ROOT / "docs").glob("*.md")]
    lines = [line for file in files for line in file.read_text().splitlines()]
    found = [line.strip() for line in lines if words.search(line)]
    assert len(found) <= 2 * len(lines) / 1_000, found


def test_files_and_folders_stay_small() -> None:
    package = ROOT / "deferrable_ops"
    for file in package.rglob("*.py"):
        assert len(file.read_text().splitlines()) <= 500, file
    for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        assert len(list(folder.glob("*.py"))) <= 20, folder


def test_documentation_lines_are_short() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for number, line in enumerate(page.read_text().splitlines(), 1):
            assert len(line) < 120, f"{page.name}:{number}"


def test_no_test_returns_early() -> None:
    """A test that returns passes without having tested anything: parametrize it, or skip it with a reason."""
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        for line in returns_of_tests(file.read_text())
    ]
    assert not found


def test_check_for_returns_ignores_other_functions() -> None:
    source = """
def helper():
    return

async def test_one():
    def inner():
        return
    with one:
        if two:
            return
"""
    assert list(returns_of_tests(source)) == [10]


def returns_of_tests(source: str) -> Iterator[int]:
    """Yield the line of each `return` of a test function, and not of those that it defines."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    module = ast.parse(source).body
    classes = [node for one in module if isinstance(one, ast.ClassDef) for node in one.body]
    for test in module + classes:
        if not isinstance(test, functions[:2]) or not test.name.startswith("test_"):
            continue
        left: list[ast.AST] = [*test.body]
        while left:
            node = left.pop()
            if isinstance(node, ast.Return):
                yield node.lineno
            elif not isinstance(node, functions):
                left.extend(ast.iter_child_nodes(node))
