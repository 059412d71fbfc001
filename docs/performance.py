"""Writes performance.md from the results of benchmarks: `python docs/performance.py`."""

import ast
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
HEADER = """# Performance

Generated from `benchmarks/results/` by `make pages`; do not edit.

Times are in seconds and sizes in bytes. `ratio` is relative to the first row of a table or to what the text names.
`first` is a first call, which compiles, and `warm` is a later one. A target is what the project aims at; the table also
shows results that miss it. Measurements of the same machine differ by some percent. `make benchmarks` repeats all of
them, and `--quick` runs a benchmark on a small model.
"""


def is_group(value: Any) -> bool:
    """Whether a value contains measurements of several cases. The programs that a call compiled are one measurement."""
    if isinstance(value, list):
        return any(isinstance(entry, dict) for entry in value)
    return isinstance(value, dict) and not isinstance(value.get("programs"), list)


def cell(value: Any) -> str:
    """A measurement as text, with three digits."""
    match value:
        case {"programs": programs, "seconds": seconds}:
            return f"{len(programs)} programs in {seconds:.3g} s" if programs else "no programs"
        case float():
            return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        case list():
            return ", ".join(map(cell, value)) or "none"
    return "" if value is None else str(value)


def rows(title: str, group: dict | list) -> Iterable[tuple[str, dict[str, Any]]]:
    """The rows of a group and of the groups in it. A row is named by the way to it."""
    entries = group if isinstance(group, dict) else {str(number): entry for number, entry in enumerate(group, 1)}
    if row := {name: value for name, value in entries.items() if not is_group(value)}:
        yield title, row
    for name, value in entries.items():
        if is_group(value):
            yield from rows(f"{title}, {name}" if title else name, value)


def table(named_rows: Iterable[tuple[str, dict[str, Any]]]) -> list[str]:
    """A table whose columns are those of all rows."""
    named_rows = list(named_rows)
    names = list(dict.fromkeys(name for _, row in named_rows for name in row))
    lines = [f"| | {' | '.join(name.replace('_', ' ') for name in names)} |", "|---" * (len(names) + 1) + "|"]
    for title, row in named_rows:
        lines.append(f"| {title.replace('**', '')} | {' | '.join(cell(row.get(name)) for name in names)} |")
    return [*lines, ""]


def tables(results: dict[str, Any]) -> list[str]:
    """A line with what holds for all measurements, then a table for each group, or one if every group is a row."""
    facts = [f"{name.replace('_', ' ')} {cell(value)}" for name, value in results.items() if not is_group(value)]
    lines = [f"Of all measurements: {'; '.join(facts)}.", ""] if facts else []
    groups = {name: value for name, value in results.items() if is_group(value)}
    if not any(is_group(entry) for group in groups.values() if isinstance(group, dict) for entry in group.values()):
        return lines + table(rows("", groups))
    for name, group in groups.items():
        lines += [f"**{name.replace('_', ' ')}**", "", *table(rows("", group))]
    return lines


def described(name: str) -> tuple[str, str]:
    """What a benchmark measures: the first line of its docstring, and the paragraphs after its commands."""
    while not (BENCHMARKS / f"{name}.py").exists():
        name = name.rpartition("-")[0]
    first, _, *rest = ast.get_docstring(ast.parse((BENCHMARKS / f"{name}.py").read_text("utf-8"))).split("\n\n")
    return first, "\n\n".join(rest)


def page() -> str:
    """The page as Markdown."""
    lines = [HEADER]
    for path in sorted((BENCHMARKS / "results").glob("*.json")):
        results = json.loads(path.read_text("utf-8"))
        machine = results.pop("environment")
        first, rest = described(path.stem)
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        lines += [f"## {path.stem}", "", first, "", *([rest, ""] if rest else [])]
        lines += [f"{machine['device']}, {machine['cores']} cores, {machine['date'][:10]}, {versions}.", ""]
        lines += tables(results)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), "utf-8")
