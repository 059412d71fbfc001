"""The text form of pictures: tables of numbers, shades or words, and bars."""

import dataclasses
import math
import textwrap
from collections.abc import Sequence

import numpy as np

from jaxlens.plot.colours import shade, with_background, with_colour
from jaxlens.plot.labels import display_width, fit, label, max_magnitude

LABEL_WIDTH = 18
STRONGEST_COUNT = 20
WORD_WIDTH = 13


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis of a grid: its name and a label for each index."""

    name: str
    labels: list[str]

    @property
    def display_labels(self) -> list[str]:
        """The labels with visible spaces and control characters."""
        return [label(text) for text in self.labels]

    @property
    def is_numbered(self) -> bool:
        """Whether the labels are just the indices."""
        return self.labels == [str(index) for index in range(len(self.labels))]


def grid(rows: Axis, columns: Axis, values: np.ndarray, limit: float, width: int, ansi: bool) -> list[str]:
    """A table of numbers. If it would be too wide, a table of shades; if this is too wide, the largest cells."""
    label_width, finite = _label_width(rows), values[np.isfinite(values)]
    extremes = (finite.min(), finite.max()) if finite.size else (0.0,)
    with_sign = extremes[0] < 0
    min_width = 2 + max(len(fixed(value, limit, with_sign)) for value in extremes)
    max_width = max(min_width, *(2 + display_width(name) for name in columns.display_labels))
    cell = min((width - label_width) // len(columns.labels), max_width)
    if cell >= min_width:
        return _numbers(rows, columns, values, limit, with_sign, cell, ansi)
    if label_width + 2 * len(columns.labels) < width:
        return _shades(rows, columns, values / limit, with_sign, limit, width, ansi)
    return _strongest(rows, columns, values, width, ansi)


def _label_width(rows: Axis) -> int:
    """The number of terminal columns for the labels of rows."""
    return min(LABEL_WIDTH, max(map(display_width, [rows.name, *rows.display_labels])))


def fixed(value: float, limit: float, with_sign: bool) -> str:
    """A number in a table, with as many decimals as `limit` needs for three significant digits."""
    if not math.isfinite(value):
        return ""
    decimals, sign = 2 - math.floor(math.log10(limit)), "+" if with_sign else ""
    return f"{value:{sign}.2e}" if not -2 <= decimals <= 6 else f"{value:{sign}.{max(decimals, 0)}f}"


def _numbers(rows, columns, values, limit, with_sign, cell, ansi) -> list[str]:
    label_width = _label_width(rows)
    lines = [fit(rows.name, label_width) + "".join("  " + fit(name, cell - 2, True) for name in columns.display_labels)]
    for name, row in zip(rows.display_labels, values, strict=True):
        cells = [fixed(value, limit, with_sign).rjust(cell) for value in row]
        shown = [with_background(*pair) for pair in zip(cells, row / limit, strict=True)] if ansi else cells
        lines.append(fit(name, label_width) + "".join(shown))
    return _with_name(columns.name, label_width, lines)


def _shades(rows, columns, fractions, with_sign, limit, width, ansi) -> list[str]:
    label_width = _label_width(rows)
    indices = "".join(fit(str(index), 10) for index in range(0, len(columns.labels), 5))
    lines = [fit(rows.name, label_width) + " " + indices]
    for name, row in zip(rows.display_labels, fractions, strict=True):
        cells = [with_background("  ", value) if ansi else shade(value, with_sign) for value in row]
        lines.append(fit(name, label_width) + " " + "".join(cells))
    lines = [*_with_name(columns.name, label_width, lines), f"the darkest is {limit:.3g}"]
    if columns.is_numbered:
        return lines
    legend = "  ".join(
        name if name.split()[-1:] == [str(index)] else f"{index} {name}"
        for index, name in enumerate(columns.display_labels)
    )
    return lines + textwrap.wrap(f"{columns.name or 'columns'}: {legend}", width)


def _with_name(name: str, label_width: int, lines: list[str]) -> list[str]:
    """Adds the name of the column axis above a table, unless the name is empty."""
    return [" " * (label_width + 2) + name, *lines] if name else lines


def _strongest(rows, columns, values, width, ansi) -> list[str]:
    size = np.where(np.isfinite(values), np.abs(values), -1.0).ravel()
    cells = [np.unravel_index(index, values.shape) for index in np.argsort(-size, kind="stable")[:STRONGEST_COUNT]]
    names = [f"{rows.name} {rows.labels[row]}, {columns.name} {columns.labels[column]}" for row, column in cells]
    strongest = np.array([values[cell] for cell in cells])
    return [f"the {len(cells)} strongest of {values.size:,}:", *bars(names, strongest, width, ansi)]


def words(rows: Axis, columns: Axis, cells: Sequence[Sequence[str]], fractions, width: int, ansi: bool) -> list[str]:
    """A table of words. If it would be too wide, the first columns are left out."""
    label_width = _label_width(rows)
    count = max(1, min(len(columns.labels), (width - label_width) // (WORD_WIDTH + 1)))
    first = len(columns.labels) - count
    names = "".join(" " + fit(name, WORD_WIDTH) for name in columns.display_labels[first:])
    lines = [fit(rows.name, label_width) + names]
    for name, row, values in zip(rows.display_labels, cells, fractions, strict=True):
        texts = [fit(text, WORD_WIDTH) for text in row[first:]]
        shown = [with_background(*pair) for pair in zip(texts, values[first:], strict=True)] if ansi else texts
        lines.append(fit(name, label_width) + "".join(" " + text for text in shown))
    note = f"the last {count} of {len(columns.labels)}; text(width=...) shows more"
    return [*lines, note] if first else lines


def bars(names: Sequence[str], values: np.ndarray, width: int, ansi: bool) -> list[str]:
    """A line for each value: its name, the number, and a bar on the left or on the right of zero."""
    labels, limit, with_sign = [label(name) for name in names], max_magnitude(values), bool((values < 0).any())
    label_width = min(2 * LABEL_WIDTH, max(map(display_width, labels)))
    half = max(4, min(24, (width - label_width - 14) // (1 + with_sign)))
    lines = []
    for name, value in zip(labels, values, strict=True):
        bar = "█" * (round(half * abs(value) / limit) if math.isfinite(value) else 0)
        track = (bar.rjust(half) + "│" if value < 0 else " " * half + "│" + bar) if with_sign else bar
        track = track.replace(bar, with_colour(bar, value)) if ansi and bar else track
        lines.append(f"{fit(name, label_width)}  {fixed(value, limit, with_sign):>9}  {track}")
    return lines
