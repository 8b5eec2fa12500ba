"""The tail is budgeted: what ruff does not count."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = [p for folder in ("opensora_launch", "scripts", "tests") for p in (ROOT / folder).rglob("*.py")]
COMMANDS = [p for p in (ROOT / "scripts").iterdir() if p.is_file() and "python" in p.read_text().split("\n")[0]]
FILES = sorted({*MODULES, *COMMANDS})
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 60


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    long = {
        f"{node.name} (line {node.lineno})": lines
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert long == {}
    assert len(text.splitlines()) <= MAX_FILE_LINES
