"""No function of the package is longer than a screen."""

import ast
from pathlib import Path

import bertmon

MAX_LINES = 45


def test_no_function_is_longer_than_a_screen():
    lengths = {
        f"{path.name}:{node.name}": node.end_lineno - node.lineno + 1
        for path in Path(bertmon.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(lengths) > 400
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}
