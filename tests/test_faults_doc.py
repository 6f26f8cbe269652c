"""Tests named elsewhere are there: in docs/faults.md, and in the list of slow ones."""

import ast
import functools
import re
from pathlib import Path

from conftest import SLOW

PROJECT = Path(__file__).parents[1]
NAMED = re.compile(r"`((?:[\w/]+/)?test_\w+\.py)::(test_\w+)`")


def test_every_fault_names_a_test_that_exists() -> None:
    lines = (PROJECT / "docs/faults.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and line != "| fault | what happens | test |"]
    assert len(rows) > 30
    for row in rows:
        assert row.count("|") == 4, f"not fault, what happens, test: {row}"
        named = NAMED.findall(row)
        assert named, f"names no test: {row}"
        for file, name in named:
            assert name in functions(file), f"tests/{file} has no {name}"


@functools.cache
def functions(file: str) -> set[str]:
    path = PROJECT / "tests" / file
    nodes = ast.walk(ast.parse(path.read_text())) if path.is_file() else ()
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def test_every_slow_test_exists() -> None:
    for file, _, name in (entry.partition("::") for entry in SLOW):
        assert functions(file), f"tests/{file} is not there"
        assert not name or name in functions(file), f"tests/{file} has no {name}"
