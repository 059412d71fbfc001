"""Grids of coloured cells: what patching each layer and position does, each layer and head, and so on.

Axes: r row, c column, f facet.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxlens.plot.colours import colormap
from jaxlens.plot.labels import as_labels, as_numbers, check_size, largest, rounded, scale_end
from jaxlens.plot.picture import Drawing
from jaxlens.plot.terminal import Axis, grid


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Heatmap(Drawing):
    """A grid, or several under one colour scale: values [facet row column]."""

    values: Float[np.ndarray, "f r c"]
    rows: Axis
    columns: Axis
    facets: Axis | None
    limit: float
    title: str
    unit: str
    kind = "heatmap"

    @property
    def data(self) -> dict[str, Any]:
        """`values` with as many axes as were given, the names of those in `axes`, and their `labels`."""
        axes = [axis for axis in (self.facets, self.rows, self.columns) if axis]
        values = self.values if self.facets else self.values[0]
        return {"values": values, "axes": [one.name for one in axes], "labels": [one.labels for one in axes]}

    def _names(self) -> list[str]:
        return [""] if self.facets is None else [f"{self.facets.name} {one}".strip() for one in self.facets.shown]

    def _shown(self) -> dict[str, Any]:
        panels = [{"name": name, "values": rounded(of)} for name, of in zip(self._names(), self.values, strict=True)]
        axes = {"rows": as_shown(self.rows), "columns": as_shown(self.columns)}
        return {"panels": panels, **axes, "limit": self.limit, "signed": self._signed(), "unit": self.unit}

    def _signed(self) -> bool:
        return bool((self.values < 0).any())

    def _lines(self, width: int, ansi: bool) -> list[str]:
        lines = []
        for name, values in zip(self._names(), self.values, strict=True):
            lines += ([name] if name else []) + grid(self.rows, self.columns, values, self.limit, width, ansi)
        return lines + ([f"in {self.unit}"] if self.unit else [])

    def _grid(self) -> tuple[int, int]:
        """Rows and columns of panels."""
        across = min(len(self.values), 3)
        return -(-len(self.values) // across), across

    def _inches(self) -> tuple[float, float]:
        down, across = self._grid()
        width = min(max(len(self.columns.labels) * 0.28, 3), 11 / across)
        return across * width + 1.2, down * (min(max(len(self.rows.labels) * 0.2, 1.2), 9) + 0.9) + 0.4

    def _pixels(self) -> int:
        cell = 20 if len(self.rows.labels) <= 45 else 16
        return self._grid()[0] * (cell * len(self.rows.labels) + 130)

    def _draw(self, figure: Any) -> None:
        panels = figure.subplots(*self._grid(), squeeze=False)
        for panel, values, name in zip(panels.flat, self.values, self._names(), strict=False):
            image = draw_cells(panel, values, self.rows, self.columns, self.limit, self._signed())
            panel.set_title(name, loc="left", fontsize=9, parse_math=False)
        for panel in panels.flat[len(self.values) :]:
            panel.set_visible(False)
        draw_scale(image, panels, self.unit, self._inches()[1])


def heatmap(
    values: Any,
    *,
    xlabels: Sequence[Any] | None = None,
    ylabels: Sequence[Any] | None = None,
    xname: str = "",
    yname: str = "",
    facet: str | int | None = None,
    max_value: float | None = None,
    unit: str = "",
    title: str = "",
) -> Heatmap:
    """A heat map with zero in the middle of its colours: blue above, orange below.

    `values` is an array [row column], of one row [column], or [facet row column]; or what a patching sweep returned,
    or anything else with `values`, `axes` (a name for each axis) and `labels` (axis name to labels). Of three axes one
    becomes a facet, a grid for each of its places: the first, unless that counts layers, then the last; or the one that
    `facet` names or numbers. Colours end at `max_value`, by default at the largest magnitude. What is not finite is
    left blank.

    Raises:
        TypeError, ValueError: the values are no numbers, have other axes, or do not fit their labels.

    Example:
        >>> import numpy as np
        >>> from jaxlens import plot
        >>> picture = plot.heatmap(np.eye(2), xlabels=["a", "b"], xname="position", yname="layer")
        >>> picture.data["axes"], picture.data["labels"]
        (['layer', 'position'], [['0', '1'], ['a', 'b']])
    """
    array, axes = _with_axes(values, yname, xname)
    check_size(array, "the heat map")
    facets = None
    if array.ndim == 3:
        which = _facet_axis(facet, [axis.name for axis in axes])
        array, facets = np.moveaxis(array, which, 0), axes.pop(which)
    elif facet is not None:
        raise ValueError(f"facet is {facet!r}, but values of shape {list(array.shape)} make a single grid")
    rows, columns = axes
    columns = columns if xlabels is None else Axis(columns.name, as_labels(xlabels, array.shape[-1], "xlabels"))
    rows = rows if ylabels is None else Axis(rows.name, as_labels(ylabels, array.shape[-2], "ylabels"))
    array = array if facets else array[None]
    limit = scale_end(max_value, largest(array))
    return Heatmap(array, rows, columns, facets, limit, title or "Heat map", unit)


def _with_axes(values: Any, yname: str, xname: str) -> tuple[np.ndarray, list[Axis]]:
    """An array of two or three axes, and what each of them is."""
    values, names, labels = unlabelled(values)
    array = as_numbers(values, "the heat map", "column", "row column", "facet row column")
    names = names or ["", yname, xname][-array.ndim :]
    sizes = zip(names, array.shape, strict=True)
    axes = [Axis(name, as_labels(labels.get(name), count, f"labels of {name or 'an axis'}")) for name, count in sizes]
    return (array, axes) if array.ndim > 1 else (array[None], [Axis(yname, [""]), *axes])


def _facet_axis(facet: str | int | None, names: list[str]) -> int:
    if facet is None:
        return 2 if names[0] == "layer" else 0
    if facet in names or facet in (0, 1, 2, -1, -2, -3):
        return names.index(facet) if isinstance(facet, str) else int(facet) % 3
    raise ValueError(f"facet is {facet!r}; the axes are {names}")


# --- what other pictures share


def unlabelled(values: Any) -> tuple[Any, list[str], dict[str, Sequence[Any]]]:
    """The array, the names of its axes and their labels, of what a sweep returned; of an array only itself."""
    if all(hasattr(values, name) for name in ("values", "axes", "labels")):
        return values.values, [str(name) for name in values.axes], dict(values.labels)
    return values, [], {}


def as_shown(axis: Axis) -> dict[str, Any]:
    """An axis as the page reads it."""
    return {"name": axis.name, "labels": axis.shown}


def draw_cells(
    panel: Any, values: Float[np.ndarray, "r c"], rows: Axis, columns: Axis, limit: float, signed: bool
) -> Any:
    """A grid of coloured cells on an axes of matplotlib, with as many labels as there is room for."""
    ends = {"cmap": colormap(signed), "vmin": -limit if signed else 0, "vmax": limit}
    image = panel.imshow(values, **ends, aspect="auto", interpolation="nearest")
    for axis, ticks in ((columns, panel.set_xticks), (rows, panel.set_yticks)):
        places = range(0, len(axis.labels), -(-len(axis.labels) // 40))
        turned = {"rotation": 90} if ticks == panel.set_xticks and max(map(len, axis.shown)) > 2 else {}
        ticks(places, [axis.shown[place] for place in places], fontsize=7, parse_math=False, **turned)
    panel.set_xlabel(columns.name, fontsize=8, parse_math=False)
    panel.set_ylabel(rows.name, fontsize=8, parse_math=False)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    return image


def draw_scale(image: Any, panels: Any, unit: str, inches: float) -> None:
    """The legend of colours beside panels that are so many inches high."""
    bar = image.figure.colorbar(image, ax=panels, shrink=min(0.8, 3 / inches), aspect=25, pad=0.02)
    bar.set_label(unit, fontsize=8, parse_math=False)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
