"""The text forms of pictures: tables of numbers, of shades where numbers do not fit, of words, and bars."""

import dataclasses
import math
import textwrap
from collections.abc import Sequence

import numpy as np

from jaxlens.plot.colours import in_colour, on_colour, shade
from jaxlens.plot.labels import breadth, fitted, label, largest

LABEL_WIDTH = 18
STRONGEST = 20
WORD_WIDTH = 13


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis of a grid: what it counts, and a label for each place on it."""

    name: str
    labels: list[str]

    @property
    def shown(self) -> list[str]:
        """The labels as one can see them."""
        return [label(one) for one in self.labels]

    @property
    def is_counted(self) -> bool:
        """Whether the labels say no more than where they stand."""
        return self.labels == [str(place) for place in range(len(self.labels))]


def grid(rows: Axis, columns: Axis, values: np.ndarray, limit: float, width: int, ansi: bool) -> list[str]:
    """A table of numbers; shades if those are too wide; the strongest cells if shades are too."""
    head, finite = _head_width(rows), values[np.isfinite(values)]
    extremes = (finite.min(), finite.max()) if finite.size else (0.0,)
    with_sign = extremes[0] < 0
    least = 2 + max(len(fixed(value, limit, with_sign)) for value in extremes)
    cell = min((width - head) // len(columns.labels), max(least, *(2 + breadth(one) for one in columns.shown)))
    if cell >= least:
        return _numbers(rows, columns, values, limit, with_sign, cell, ansi)
    if head + 2 * len(columns.labels) < width:
        return _shades(rows, columns, values / limit, with_sign, limit, width, ansi)
    return _strongest(rows, columns, values, width, ansi)


def _head_width(rows: Axis) -> int:
    """How wide the labels of rows are."""
    return min(LABEL_WIDTH, max(map(breadth, [rows.name, *rows.shown])))


def fixed(value: float, limit: float, with_sign: bool) -> str:
    """A number of a table, with as many decimals as the largest of them needs for three digits."""
    if not math.isfinite(value):
        return ""
    decimals, sign = 2 - math.floor(math.log10(limit)), "+" if with_sign else ""
    return f"{value:{sign}.2e}" if not -2 <= decimals <= 6 else f"{value:{sign}.{max(decimals, 0)}f}"


def _numbers(rows, columns, values, limit, with_sign, cell, ansi) -> list[str]:
    head = _head_width(rows)
    lines = [fitted(rows.name, head) + "".join("  " + fitted(one, cell - 2, right=True) for one in columns.shown)]
    for name, row in zip(rows.shown, values, strict=True):
        cells = [fixed(value, limit, with_sign).rjust(cell) for value in row]
        shown = [on_colour(*pair) for pair in zip(cells, row / limit, strict=True)] if ansi else cells
        lines.append(fitted(name, head) + "".join(shown))
    return _with_name(columns.name, head, lines)


def _shades(rows, columns, fractions, with_sign, limit, width, ansi) -> list[str]:
    head = _head_width(rows)
    numbers = "".join(fitted(str(place), 10) for place in range(0, len(columns.labels), 5))
    lines = [fitted(rows.name, head) + " " + numbers]
    for name, row in zip(rows.shown, fractions, strict=True):
        cells = [on_colour("  ", one) if ansi else shade(one, with_sign) for one in row]
        lines.append(fitted(name, head) + " " + "".join(cells))
    lines = [*_with_name(columns.name, head, lines), f"the darkest is {limit:.3g}"]
    if columns.is_counted:
        return lines
    named = "  ".join(f"{place} {one}" for place, one in enumerate(columns.shown))
    return lines + textwrap.wrap(f"{columns.name or 'columns'}: {named}", width)


def _with_name(name: str, head: int, lines: list[str]) -> list[str]:
    """A table below the name of its columns, if they have one."""
    return [" " * (head + 2) + name, *lines] if name else lines


def _strongest(rows, columns, values, width, ansi) -> list[str]:
    size = np.where(np.isfinite(values), np.abs(values), -1.0).ravel()
    places = [np.unravel_index(place, values.shape) for place in np.argsort(-size, kind="stable")[:STRONGEST]]
    names = [f"{rows.name} {rows.labels[row]}, {columns.name} {columns.labels[column]}" for row, column in places]
    found = np.array([values[place] for place in places])
    return [f"the {len(places)} strongest of {values.size:,}:", *bars(names, found, width, ansi)]


def words(rows: Axis, columns: Axis, cells: Sequence[Sequence[str]], fractions, width: int, ansi: bool) -> list[str]:
    """A table of words; if not all columns fit, the last ones that do."""
    head = _head_width(rows)
    count = max(1, min(len(columns.labels), (width - head) // (WORD_WIDTH + 1)))
    first = len(columns.labels) - count
    names = columns.shown[first:]
    lines = [fitted(rows.name, head) + "".join(" " + fitted(one, WORD_WIDTH) for one in names)]
    for name, row, values in zip(rows.shown, cells, fractions, strict=True):
        texts = [fitted(one, WORD_WIDTH) for one in row[first:]]
        shown = [on_colour(*pair) for pair in zip(texts, values[first:], strict=True)] if ansi else texts
        lines.append(fitted(name, head) + "".join(" " + one for one in shown))
    kept = f"the last {count} of {len(columns.labels)}; text(width=...) shows more"
    return [*lines, kept] if first else lines


def bars(names: Sequence[str], values: np.ndarray, width: int, ansi: bool) -> list[str]:
    """A line for each value: its name, itself, and a bar to the left or to the right of zero."""
    shown, limit, with_sign = [label(name) for name in names], largest(values), bool((values < 0).any())
    head = min(2 * LABEL_WIDTH, max(map(breadth, shown)))
    half = max(4, min(24, (width - head - 14) // (1 + with_sign)))
    lines = []
    for name, value in zip(shown, values, strict=True):
        bar = "█" * (round(half * abs(value) / limit) if math.isfinite(value) else 0)
        side = (bar.rjust(half) + "│" if value < 0 else " " * half + "│" + bar) if with_sign else bar
        side = side.replace(bar, in_colour(bar, value)) if ansi and bar else side
        lines.append(f"{fitted(name, head)}  {fixed(value, limit, with_sign):>9}  {side}")
    return lines
