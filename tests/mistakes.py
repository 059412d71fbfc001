"""Mistakes and what they are answered with: cases for the tests, and the search for errors without one."""

import ast
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import jaxlens

PACKAGE = Path(jaxlens.__file__).parent


class Case(NamedTuple):
    """A mistake, and what it is answered with: the type of the error and the part of its text that tells."""

    mistake: Callable
    error: type[Exception]
    text: str

    def check(self) -> None:
        """It is answered so."""
        error = answer(self)
        assert error is not None, "nothing was raised"
        assert type(error) is self.error, repr(error)
        assert self.text in str(error)


@functools.cache
def answer(case: Case) -> Exception | None:
    """The error that a case is answered with."""
    try:
        case.mistake()
    except Exception as error:
        return error
    return None


def lines_of(error: BaseException | None) -> set[tuple[str, int]]:
    """Every line of source that an error and those before it went through."""
    found: set[tuple[str, int]] = set()
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            found.add((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    return found


def without_answer(files: Iterable[Path | ModuleType], errors: Iterable[BaseException | None]) -> list[str]:
    """The statements `raise X(...)` of some files that none of these errors came from, as `file:line: statement`."""
    passed = set().union(*map(lines_of, errors))
    found = []
    for path in (Path(file.__file__) if isinstance(file, ModuleType) else file for file in files):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            lines = range(node.lineno, node.end_lineno + 1) if isinstance(node, ast.Raise) else ()
            if isinstance(getattr(node, "exc", None), ast.Call) and not any((str(path), at) in passed for at in lines):
                where = path.relative_to(PACKAGE)
                found.append(f"{where}:{node.lineno}: {text.splitlines()[node.lineno - 1].strip()}")
    return found


def unreached(files: Iterable[Path | ModuleType], cases: Iterable[Case]) -> list[str]:
    """The statements `raise X(...)` of some files that no case reaches."""
    return without_answer(files, map(answer, cases))
