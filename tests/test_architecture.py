"""The shape of the tree: layers (import-linter), heavy imports, sizes of files and functions."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "herl").rglob("*.py"))


def test_imports_point_down_the_list_only():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_the_cli_knows_hydra_main():
    users = [path.name for path in FILES if "hydra.main" in path.read_text()]
    assert users == ["main.py"]


def test_vllm_is_imported_in_one_file_inside_a_function():
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "vllm" for name in names), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short_and_have_a_header(path):
    source = path.read_text()
    tree = ast.parse(source)
    assert ast.get_docstring(tree), "a module's header says what it is for"
    assert len(source.splitlines()) <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.end_lineno - node.body[0].lineno + 1
            doc = ast.get_docstring(node, clean=False)
            body -= len(doc.splitlines()) if doc else 0
            assert body <= 60, f"{node.name}: {body} lines"


def test_nothing_else_stands_at_the_top_level():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    top = {line.split("/")[0] for line in listed.splitlines() if not line.startswith(".")}
    if top:  # a git checkout
        expected = {
            "pyproject.toml",
            "README.md",
            "LICENSE",
            "CHANGELOG.md",
            "conf",
            "herl",
            "tests",
            "tools",
        }
        assert top == expected


def test_no_drawer_for_things_without_a_name():
    names = {path.stem for path in FILES} | {path.parent.name for path in FILES}
    assert not names & {"utils", "util", "helpers", "common", "misc", "manager"}
