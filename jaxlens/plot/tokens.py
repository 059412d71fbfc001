"""Text with tokens colored by a value, such as an attribution, a loss or the activation of a neuron.

Axes: p position, k row.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxlens.plot.colours import is_dark, rgb, with_background
from jaxlens.plot.labels import (
    as_labels,
    as_numbers,
    as_strings,
    check_size,
    display_width,
    max_magnitude,
    printable,
    rounded,
    scale_limit,
)
from jaxlens.plot.picture import Drawing
from jaxlens.plot.terminal import bars

IMAGE_COLUMNS = 88
"""The number of characters in a line of an image."""

Notes = list[list[tuple[str, float | None]]]
"""The notes of every token: pairs of a text and a number or None."""


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class ColoredTokens(Drawing):
    """A text, repeated in every row, with tokens colored by `values` [row token]."""

    tokens: list[str]
    values: Float[np.ndarray, "k p"]
    names: list[str]
    limit: float
    title: str
    unit: str = ""
    notes: Notes | None = None
    kind = "tokens"

    @property
    def data(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "values": self.values, "names": self.names, "notes": self.notes or []}

    def _page_data(self) -> dict[str, Any]:
        notes = [
            [[printable(text), None if value is None else float(f"{value:.3g}")] for text, value in token_notes]
            for token_notes in self.notes or []
        ]
        signed = bool((self.values < 0).any())
        return {
            "tokens": [printable(token) for token in self.tokens], "names": self.names, "values": rounded(self.values),
            "notes": notes, "limit": self.limit, "signed": signed, "unit": self.unit,
        }  # fmt: skip

    def _text_lines(self, width: int, ansi: bool) -> list[str]:
        lines = []
        for name, values in zip(self.names, self.values, strict=True):
            lines += [name] if len(self.names) > 1 else []
            lines += self._wrapped(values, width) if ansi else bars(self.tokens, values, width, False)
        return lines

    def _wrapped(self, values: Float[np.ndarray, " p"], width: int) -> list[str]:
        """The lines of the text, with every token on a background of its color."""
        positions = self._positions(width)
        lines = [""] * (1 + positions[-1][1])
        for token, value, (_, line) in zip(self.tokens, values, positions, strict=True):
            lines[line] += with_background(printable(token), value / self.limit)
        return lines

    def _image_size(self) -> tuple[float, float]:
        return 8, (0.6 + 0.28 * (1 + self._positions()[-1][1])) * len(self.names)

    def _page_height(self) -> int:
        return (30 * (1 + self._positions()[-1][1]) + 20) * len(self.names) + 30

    def _positions(self, columns: int = IMAGE_COLUMNS) -> list[tuple[int, int]]:
        """The (column, line) of every token, in lines of `columns` characters. A newline ends the line."""
        positions, column, line, ended = [], 0, 0, False
        for token in self.tokens:
            width = display_width(printable(token))
            if column and (ended or column + width > columns):
                column, line = 0, line + 1
            positions.append((column, line))
            column, ended = column + width, token.endswith("\n")
        return positions

    def _draw(self, figure: Any) -> None:
        from matplotlib.patches import Rectangle

        positions = self._positions()
        panels = figure.subplots(len(self.names), 1, squeeze=False)[:, 0]
        for panel, name, values in zip(panels, self.names, self.values, strict=True):
            panel.set(xlim=(0, IMAGE_COLUMNS), ylim=(positions[-1][1] + 1, 0))
            panel.set_axis_off()
            panel.set_title(name, loc="left", fontsize=9, parse_math=False)
            for token, value, (column, line) in zip(self.tokens, values, positions, strict=True):
                text, fraction = printable(token), value / self.limit if np.isfinite(value) else 0.0
                corner, fill = (column, line + 0.06), [channel / 255 for channel in rgb(fraction)]
                panel.add_patch(Rectangle(corner, display_width(text), 0.88, facecolor=fill, linewidth=0))
                colour = "white" if is_dark(fraction) else "black"
                panel.text(column, line + 0.5, text, va="center", family="monospace", color=colour, parse_math=False)


def colored_tokens(
    tokens: Any, values: Float[ArrayLike, " p"] | Float[ArrayLike, "k p"], *, names: Sequence[str] | None = None,
    max_value: float | None = None, unit: str = "", title: str = "",
) -> ColoredTokens:  # fmt: skip
    """Text with tokens colored by a value: blue above zero, orange below.

    `values` is an array [token] or [row token]. Each row repeats the text, and `names` are the titles of the rows. The
    color scale ends at `max_value`, by default the largest magnitude.

    Raises:
        TypeError: The values are not real numbers.
        ValueError: The number of values is not the number of tokens, or the number of names is not the number of rows.

    Example:
        >>> from jaxlens import plot
        >>> plot.colored_tokens(["The", " cat"], [0.5, -1.0]).data["values"].tolist()
        [[0.5, -1.0]]
    """
    array = as_numbers(values, "values", "token", "row token")
    check_size(array, "values")
    array = array[None] if array.ndim == 1 else array
    rows = [""] if names is None and len(array) == 1 else as_labels(names, len(array), "names")
    limit = scale_limit(max_value, max_magnitude(array))
    return ColoredTokens(as_strings(tokens, array.shape[1]), array, rows, limit, title or "Tokens", unit)
