"""Text whose tokens are coloured by a value: attributions, losses, activations of a neuron.

Axes: p position, k row.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxlens.plot.colours import is_dark, on_colour, rgb
from jaxlens.plot.labels import (
    as_labels,
    as_numbers,
    breadth,
    check_size,
    largest,
    printable,
    read_tokens,
    rounded,
    scale_end,
)
from jaxlens.plot.picture import Drawing
from jaxlens.plot.terminal import bars

ACROSS = 88
"""Characters in a line of an image."""

Notes = list[list[tuple[str, float | None]]]
"""For every token what else there is to say of it: texts, each with a number or None."""


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class ColoredTokens(Drawing):
    """A text, or the same text in several rows, coloured by values [row token]."""

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

    def _signed(self) -> bool:
        return bool((self.values < 0).any())

    def _shown(self) -> dict[str, Any]:
        notes = [
            [[printable(text), None if value is None else float(f"{value:.3g}")] for text, value in of]
            for of in self.notes or []
        ]
        return {
            "tokens": [printable(one) for one in self.tokens], "names": self.names, "values": rounded(self.values),
            "notes": notes, "limit": self.limit, "signed": self._signed(), "unit": self.unit,
        }  # fmt: skip

    def _lines(self, width: int, ansi: bool) -> list[str]:
        lines = []
        for name, values in zip(self.names, self.values, strict=True):
            lines += [name] if len(self.names) > 1 else []
            lines += self._wrapped(values, width) if ansi else bars(self.tokens, values, width, False)
        return lines

    def _wrapped(self, values: Float[np.ndarray, " p"], width: int) -> list[str]:
        """The running text, each token on its colour."""
        places = self._places(width)
        lines = [""] * (1 + places[-1][1])
        for token, value, (_, line) in zip(self.tokens, values, places, strict=True):
            lines[line] += on_colour(printable(token), value / self.limit)
        return lines

    def _inches(self) -> tuple[float, float]:
        return 8, (0.6 + 0.28 * (1 + self._places()[-1][1])) * len(self.names)

    def _pixels(self) -> int:
        return (30 * (1 + self._places()[-1][1]) + 20) * len(self.names) + 30

    def _places(self, across: int = ACROSS) -> list[tuple[int, int]]:
        """Where every token stands, as (column, line), in lines of `across` characters; a newline ends its line."""
        places, column, line, ended = [], 0, 0, False
        for token in self.tokens:
            width = breadth(printable(token))
            if column and (ended or column + width > across):
                column, line = 0, line + 1
            places.append((column, line))
            column, ended = column + width, token.endswith("\n")
        return places

    def _draw(self, figure: Any) -> None:
        places = self._places()
        panels = figure.subplots(len(self.names), 1, squeeze=False)[:, 0]
        for panel, name, values in zip(panels, self.names, self.values, strict=True):
            panel.set(xlim=(0, ACROSS), ylim=(places[-1][1] + 1, 0))
            panel.set_axis_off()
            panel.set_title(name, loc="left", fontsize=9, parse_math=False)
            for token, value, (column, line) in zip(self.tokens, values, places, strict=True):
                text, fraction = printable(token), value / self.limit if np.isfinite(value) else 0.0
                panel.add_patch(_box(column, line, breadth(text), rgb(fraction)))
                colour = "white" if is_dark(fraction) else "black"
                panel.text(column, line + 0.5, text, va="center", family="monospace", color=colour, parse_math=False)


def _box(column: int, line: int, width: int, colour: tuple[int, int, int]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column, line + 0.06), width, 0.88, facecolor=[part / 255 for part in colour], linewidth=0)


def colored_tokens(
    tokens: Any,
    values: Float[ArrayLike, " p"] | Float[ArrayLike, "k p"],
    *,
    names: Sequence[str] | None = None,
    max_value: float | None = None,
    unit: str = "",
    title: str = "",
) -> ColoredTokens:
    """Text with every token on a colour: blue above zero, orange below, full at `max_value` or the largest magnitude.

    `values` is an array [token], or [row token] for the same text several times, each row with its name.

    Raises:
        TypeError, ValueError: the values are no numbers, or not as many as there are tokens.

    Example:
        >>> from jaxlens import plot
        >>> plot.colored_tokens(["The", " cat"], [0.5, -1.0]).data["values"].tolist()
        [[0.5, -1.0]]
    """
    array = as_numbers(values, "values", "token", "row token")
    check_size(array, "values")
    array = array[None] if array.ndim == 1 else array
    rows = [""] if names is None and len(array) == 1 else as_labels(names, len(array), "names")
    limit = scale_end(max_value, largest(array))
    return ColoredTokens(read_tokens(tokens, array.shape[1]), array, rows, limit, title or "Tokens", unit)
