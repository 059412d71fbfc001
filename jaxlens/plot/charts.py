"""Bars of what each component contributes, and lines of how something grows from layer to layer.

Axes: c component, x place on the horizontal axis, k series.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from jaxlens.plot.colours import NEGATIVE, POSITIVE, SERIES
from jaxlens.plot.heatmaps import unlabelled
from jaxlens.plot.labels import as_labels, as_numbers, check_size, label, largest, rounded
from jaxlens.plot.picture import Drawing
from jaxlens.plot.terminal import Axis, grid
from jaxlens.plot.terminal import bars as text_bars


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Bars(Drawing):
    """Components by the magnitude of their values; of those beyond `count` the sum is told."""

    values: Float[np.ndarray, " c"]
    labels: list[str]
    count: int
    title: str
    unit: str
    kind = "bars"

    @property
    def data(self) -> dict[str, Any]:
        """All components, the largest magnitude first."""
        return {"values": self.values, "labels": self.labels}

    def _kept(self) -> tuple[list[str], Float[np.ndarray, " c"]]:
        """The names and values of the bars."""
        return self.labels[: self.count], self.values[: self.count]

    def _notes(self) -> list[str]:
        """What stands below the bars: the sum of what has none, and the unit."""
        rest = self.values[self.count :]
        notes = [f"the other {len(rest)} sum to {rest.sum():+.3g}"] if len(rest) else []
        return notes + ([f"in {self.unit}"] if self.unit else [])

    def _shown(self) -> dict[str, Any]:
        names, values = self._kept()
        return {"labels": [label(one) for one in names], "values": rounded(values), "notes": self._notes()}

    def _lines(self, width: int, ansi: bool) -> list[str]:
        return [*text_bars(*self._kept(), width, ansi), *self._notes()]

    def _inches(self) -> tuple[float, float]:
        return 7, 0.9 + 0.22 * len(self._kept()[0])

    def _pixels(self) -> int:
        return 19 * len(self._kept()[0]) + 50

    def _draw(self, figure: Any) -> None:
        names, values = self._kept()
        panel, places = figure.subplots(), np.arange(len(names))
        drawn = panel.barh(places, values, 0.72, color=[(NEGATIVE if value < 0 else POSITIVE)[3] for value in values])
        panel.bar_label(drawn, [f"{value:+.3g}" for value in values], padding=3, fontsize=7)
        panel.set_yticks(places, [label(one) for one in names], fontsize=8, parse_math=False)
        panel.set_ylim(len(names) - 0.4, -0.6)
        panel.margins(x=0.15)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_xlabel("; ".join(self._notes()), fontsize=8, parse_math=False)
        panel.spines[["top", "right", "left"]].set_visible(False)


def bars(
    values: Any, labels: Sequence[Any] | None = None, *, count: int = 25, unit: str = "", title: str = ""
) -> Bars:
    """What each component contributes, the largest magnitude first, in colours of its sign.

    `values` is an array [component], or of two axes such as [layer head], whose components are called "layer.head"; or
    anything with `values`, `axes` and `labels`, as patching sweeps return. The largest `count` have a bar; of all
    others the sum is told, so that nothing is left out.

    Raises:
        TypeError, ValueError: the values are no numbers, or do not fit their labels.

    Example:
        >>> from jaxlens import plot
        >>> plot.bars([[0.0, 2.0], [-3.0, 1.0]], count=2).data["labels"]
        ['1.0', '0.1', '1.1', '0.0']
    """
    values, axes, known = unlabelled(values)
    array = as_numbers(values, "the components", "component", "layer component")
    if labels is None:
        sizes = zip(axes or [""] * array.ndim, array.shape, strict=True)
        axes = [as_labels(known.get(name), size, "labels") for name, size in sizes]
        labels = [".".join(axis[at] for axis, at in zip(axes, place, strict=True)) for place in np.ndindex(array.shape)]
    check_size(array, "the components")
    names, flat = as_labels(labels, array.size, "labels"), array.ravel()
    order = np.argsort(-np.where(np.isfinite(flat), np.abs(flat), -1.0), kind="stable")
    return Bars(flat[order], [names[place] for place in order], count, title or "Contributions", unit)


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Lines(Drawing):
    """One line for each series; of many, thin lines and their mean: values [series x]."""

    values: Float[np.ndarray, "k x"]
    xaxis: Axis
    names: list[str]
    title: str
    unit: str
    kind = "lines"

    @property
    def data(self) -> dict[str, Any]:
        return {"values": self.values, "names": self.names, "xlabels": self.xaxis.labels}

    def _many(self) -> bool:
        return len(self.names) > len(SERIES)

    def _shown(self) -> dict[str, Any]:
        axis = {"name": self.xaxis.name, "labels": self.xaxis.shown}
        names = [label(one) for one in self.names]
        many = zip(("mean", "lowest", "highest"), rounded(summary(self.values)), strict=True) if self._many() else ()
        finite = np.where(np.isfinite(self.values), self.values, 0)
        ends = {"low": min(0.0, finite.min()), "high": max(0.0, finite.max())}
        values = {"values": rounded(self.values), "summary": dict(many) or None}
        return {"x": axis, "names": names, **values, **ends, "unit": self.unit}

    def _lines(self, width: int, ansi: bool) -> list[str]:
        columns, values = Axis("", self.names), self.values
        if self._many():
            columns, values = Axis("", ["mean", "lowest", "highest"]), summary(values)
        lines = grid(self.xaxis, columns, values.T, largest(values), width, ansi)
        return [*lines, *([f"in {self.unit}"] if self.unit else [])]

    def _inches(self) -> tuple[float, float]:
        return 8, 4

    def _pixels(self) -> int:
        return 350

    def _draw(self, figure: Any) -> None:
        panel, places = figure.subplots(), np.arange(self.values.shape[1])
        panel.axhline(0, color="black", linewidth=0.8)
        if self._many():
            panel.plot(places, self.values.T, color="#999999", linewidth=0.8, alpha=0.6)
            panel.plot(places, summary(self.values)[0], color=SERIES[0], linewidth=2.5, label="mean")
        else:
            for values, name, colour in zip(self.values, self.names, SERIES, strict=False):
                panel.plot(places, values, color=colour, linewidth=2, marker="o", markersize=3, label=label(name))
        step = -(-len(places) // 24)
        shown = [self.xaxis.shown[place] for place in places[::step]]
        turned = 90 if max(map(len, shown)) > 4 else 0
        panel.set_xticks(places[::step], shown, fontsize=7, rotation=turned, parse_math=False)
        panel.set_xlabel(self.xaxis.name, fontsize=8, parse_math=False)
        panel.set_ylabel(self.unit, fontsize=8, parse_math=False)
        panel.spines[["top", "right"]].set_visible(False)
        if len(self.names) > 1:
            for text in panel.legend(frameon=False, fontsize=8).get_texts():
                text.set_parse_math(False)


def summary(values: Float[np.ndarray, "k x"]) -> Float[np.ndarray, "3 x"]:
    """The mean, the lowest and the highest of all series, where any has a finite value."""
    finite = np.isfinite(values)
    count = np.where(finite.any(0), finite.sum(0), np.nan)
    mean = np.where(finite, values, 0).sum(0) / count
    ends = [np.where(finite, values, np.inf).min(0), np.where(finite, values, -np.inf).max(0)]
    return np.stack([mean, *(np.where(np.isnan(count), np.nan, end) for end in ends)])


def lines(
    values: Float[ArrayLike, " x"] | Float[ArrayLike, "k x"],
    xlabels: Sequence[Any] | None = None,
    *,
    names: Sequence[Any] | None = None,
    xname: str = "",
    unit: str = "",
    title: str = "",
) -> Lines:
    """Lines, such as the logit difference accumulated up to each layer: values [x] or [series x].

    Up to seven series have a colour each; of more, every one is a thin grey line and their mean a thick one.

    Raises:
        TypeError, ValueError: the values are no numbers, or do not fit their labels.

    Example:
        >>> from jaxlens import plot
        >>> print(plot.lines([0.0, 0.5, 2.0], xname="layer").text(60, ansi=False))
        Lines
        layer     0
        0      0.00
        1      0.50
        2      2.00
    """
    array = as_numbers(values, "the lines", "x", "series x")
    check_size(array, "the lines")
    array = array[None] if array.ndim == 1 else array
    names, labels = as_labels(names, len(array), "names"), as_labels(xlabels, array.shape[1], "xlabels")
    return Lines(array, Axis(xname, labels), names, title or "Lines", unit)
