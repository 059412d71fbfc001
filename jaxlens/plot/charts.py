"""Bar charts of the contributions of components, and line charts of values per layer.

Axes: c component, x entry on the horizontal axis, k series.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxlens.plot.colours import NEGATIVE, POSITIVE, SERIES
from jaxlens.plot.heatmaps import axis_data, unpack_labelled
from jaxlens.plot.labels import as_labels, as_numbers, check_size, label, max_magnitude, rounded
from jaxlens.plot.picture import Drawing
from jaxlens.plot.terminal import Axis, grid
from jaxlens.plot.terminal import bars as text_bars


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Bars(Drawing):
    """Components in order of magnitude. The first `count` have a bar, and a note states the sum of the others."""

    values: Float[np.ndarray, " c"]
    labels: list[str]
    count: int
    title: str
    unit: str
    kind = "bars"

    @property
    def data(self) -> dict[str, Any]:
        """All components, in descending order of magnitude."""
        return {"values": self.values, "labels": self.labels}

    def _largest(self) -> tuple[list[str], Float[np.ndarray, " c"]]:
        """The labels and values of the components that have a bar."""
        return self.labels[: self.count], self.values[: self.count]

    def _notes(self) -> list[str]:
        """The notes below the bars: the sum of the components without a bar, and the unit."""
        rest = self.values[self.count :]
        notes = [f"the other {len(rest)} sum to {rest.sum():+.3g}"] if len(rest) else []
        return notes + ([f"in {self.unit}"] if self.unit else [])

    def _page_data(self) -> dict[str, Any]:
        names, values = self._largest()
        return {"labels": [label(name) for name in names], "values": rounded(values), "notes": self._notes()}

    def _text_lines(self, width: int, ansi: bool) -> list[str]:
        return [*text_bars(*self._largest(), width, ansi), *self._notes()]

    def _image_size(self) -> tuple[float, float]:
        return 7, 0.9 + 0.22 * len(self._largest()[0])

    def _page_height(self) -> int:
        return 19 * len(self._largest()[0]) + 50

    def _draw(self, figure: Any) -> None:
        names, values = self._largest()
        panel, heights = figure.subplots(), np.arange(len(names))
        drawn = panel.barh(heights, values, 0.72, color=[(NEGATIVE if value < 0 else POSITIVE)[3] for value in values])
        panel.bar_label(drawn, [f"{value:+.3g}" for value in values], padding=3, fontsize=7)
        panel.set_yticks(heights, [label(name) for name in names], fontsize=8, parse_math=False)
        panel.set_ylim(len(names) - 0.4, -0.6)
        panel.margins(x=0.15)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_xlabel("; ".join(self._notes()), fontsize=8, parse_math=False)
        panel.spines[["top", "right", "left"]].set_visible(False)


def bars(values: Any, labels: Sequence[Any] | None = None, *, count: int = 25, unit: str = "", title: str = "") -> Bars:
    """A bar chart of contributions, in descending order of magnitude and colored by sign.

    `values` is an array [component] or [layer head], or the result of a patching sweep, as in `heatmap`. The default
    labels of two axes are joined, as in "3.7" for layer 3 and head 7. The `count` largest contributions have a bar. A
    note states the sum of the others.

    Raises:
        TypeError: The values are not real numbers.
        ValueError: The values have more than two axes, or the number of labels is wrong.

    Example:
        >>> from jaxlens import plot
        >>> plot.bars([[0.0, 2.0], [-3.0, 1.0]], count=2).data["labels"]
        ['1.0', '0.1', '1.1', '0.0']
    """
    values, axes, axis_labels = unpack_labelled(values)
    array = as_numbers(values, "values", "component", "layer component")
    if labels is None:
        sizes = zip(axes or [""] * array.ndim, array.shape, strict=True)
        axes = [as_labels(axis_labels.get(name), size, "labels") for name, size in sizes]
        labels = [".".join(axis[i] for axis, i in zip(axes, index, strict=True)) for index in np.ndindex(array.shape)]
    check_size(array, "values")
    names, flat = as_labels(labels, array.size, "labels"), array.ravel()
    order = np.argsort(-np.where(np.isfinite(flat), np.abs(flat), -1.0), kind="stable")
    return Bars(flat[order], [names[index] for index in order], count, title or "Contributions", unit)


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Lines(Drawing):
    """A line for each series of `values` [series x]. With many series, the lines are thin and their mean is thick."""

    values: Float[np.ndarray, "k x"]
    xaxis: Axis
    names: list[str]
    title: str
    unit: str
    kind = "lines"

    @property
    def data(self) -> dict[str, Any]:
        return {"values": self.values, "names": self.names, "xlabels": self.xaxis.labels}

    def _is_summarized(self) -> bool:
        return len(self.names) > len(SERIES)

    def _page_data(self) -> dict[str, Any]:
        axis, names = axis_data(self.xaxis), [label(name) for name in self.names]
        rows = {name: rounded(row) for name, row in summary(self.values).items()} if self._is_summarized() else None
        finite = np.where(np.isfinite(self.values), self.values, 0)
        ends = {"low": min(0.0, finite.min()), "high": max(0.0, finite.max())}
        values = {"values": rounded(self.values), "summary": rows}
        return {"x": axis, "names": names, **values, **ends, "unit": self.unit}

    def _text_lines(self, width: int, ansi: bool) -> list[str]:
        columns, values = Axis("", self.names), self.values
        if self._is_summarized():
            rows = summary(values)
            columns, values = Axis("", list(rows)), np.stack(list(rows.values()))
        lines = grid(self.xaxis, columns, values.T, max_magnitude(values), width, ansi)
        return [*lines, *([f"in {self.unit}"] if self.unit else [])]

    def _image_size(self) -> tuple[float, float]:
        return 8, 4

    def _page_height(self) -> int:
        return 350

    def _draw(self, figure: Any) -> None:
        panel, x = figure.subplots(), np.arange(self.values.shape[1])
        panel.axhline(0, color="black", linewidth=0.8)
        if self._is_summarized():
            panel.plot(x, self.values.T, color="#999999", linewidth=0.8, alpha=0.6)
            panel.plot(x, summary(self.values)["mean"], color=SERIES[0], linewidth=2.5, label="mean")
        else:
            for values, name, colour in zip(self.values, self.names, SERIES, strict=False):
                panel.plot(x, values, color=colour, linewidth=2, marker="o", markersize=3, label=label(name))
        step = -(-len(x) // 24)
        labels = self.xaxis.display_labels[::step]
        rotation = 90 if max(map(len, labels)) > 4 else 0
        panel.set_xticks(x[::step], labels, fontsize=7, rotation=rotation, parse_math=False)
        panel.set_xlabel(self.xaxis.name, fontsize=8, parse_math=False)
        panel.set_ylabel(self.unit, fontsize=8, parse_math=False)
        panel.spines[["top", "right"]].set_visible(False)
        if len(self.names) > 1:
            for text in panel.legend(frameon=False, fontsize=8).get_texts():
                text.set_parse_math(False)


def summary(values: Float[np.ndarray, "k x"]) -> dict[str, Float[np.ndarray, " x"]]:
    """The mean, minimum and maximum of the finite values over all series, or NaN if no series has a finite value."""
    finite = np.isfinite(values)
    count = np.where(finite.any(0), finite.sum(0), np.nan)
    low, high = np.where(finite, values, np.inf).min(0), np.where(finite, values, -np.inf).max(0)
    rows = {"mean": np.where(finite, values, 0).sum(0) / count, "lowest": low, "highest": high}
    return {name: np.where(np.isnan(count), np.nan, row) for name, row in rows.items()}


def lines(
    values: Float[ArrayLike, " x"] | Float[ArrayLike, "k x"], xlabels: Sequence[Any] | None = None, *,
    names: Sequence[Any] | None = None, xname: str = "", unit: str = "", title: str = "",
) -> Lines:  # fmt: skip
    """A line chart, such as the logit difference after each layer. `values` has the axes [x] or [series x].

    Up to seven series have different colors. With more series, all lines are thin and gray, and their mean is thick.

    Raises:
        TypeError: The values are not real numbers.
        ValueError: The values have more than two axes, or the number of labels or names is wrong.

    Example:
        >>> from jaxlens import plot
        >>> print(plot.lines([0.0, 0.5, 2.0], xname="layer").text(60, ansi=False))
        Lines
        layer     0
        0      0.00
        1      0.50
        2      2.00
    """
    array = as_numbers(values, "values", "x", "series x")
    check_size(array, "values")
    array = array[None] if array.ndim == 1 else array
    names, labels = as_labels(names, len(array), "names"), as_labels(xlabels, array.shape[1], "xlabels")
    return Lines(array, Axis(xname, labels), names, title or "Lines", unit)
