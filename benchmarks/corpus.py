"""Texts that are on every machine: the docstrings of Python's standard library."""

import ast
import itertools
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def docstrings() -> Iterator[str]:
    """Docstrings of modules, classes and functions, file by file. Their lengths vary from words to pages."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield text


def texts(n: int, seed: int = 0) -> list[str]:
    """`n` different texts in random order."""
    found = list(dict.fromkeys(docstrings()))
    random.Random(seed).shuffle(found)
    if len(found) < n:
        raise ValueError(f"the standard library has {len(found)} different docstrings; {n} were requested")
    return found[:n]


def endless(seed: int = 0) -> Iterator[str]:
    """The docstrings again and again, each with its number."""
    found = texts(500, seed)
    return (f"{number}: {text}" for number, text in enumerate(itertools.cycle(found)))
