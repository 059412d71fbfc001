"""Heat maps, such as the effect of patching each layer and position.

Axes: r row, c column, f facet.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxlens.plot.colours import colormap
from jaxlens.plot.labels import as_labels, as_numbers, check_size, max_magnitude, rounded, scale_limit
from jaxlens.plot.picture import Drawing
from jaxlens.plot.terminal import Axis, grid


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Heatmap(Drawing):
    """A grid, or several grids with a common color scale: `values` [facet row column]."""

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
        """The values, the names of their axes, and the labels of each axis. The facet axis, if present, is first."""
        axes = [axis for axis in (self.facets, self.rows, self.columns) if axis]
        values = self.values if self.facets else self.values[0]
        return {"values": values, "axes": [axis.name for axis in axes], "labels": [axis.labels for axis in axes]}

    def _titles(self) -> list[str]:
        if self.facets is None:
            return [""]
        return [f"{self.facets.name} {label}".strip() for label in self.facets.display_labels]

    def _page_data(self) -> dict[str, Any]:
        titled = zip(self._titles(), self.values, strict=True)
        panels = [{"name": title, "values": rounded(values)} for title, values in titled]
        axes = {"rows": axis_data(self.rows), "columns": axis_data(self.columns)}
        return {"panels": panels, **axes, "limit": self.limit, "signed": self._signed(), "unit": self.unit}

    def _signed(self) -> bool:
        return bool((self.values < 0).any())

    def _text_lines(self, width: int, ansi: bool) -> list[str]:
        lines = []
        for title, values in zip(self._titles(), self.values, strict=True):
            lines += ([title] if title else []) + grid(self.rows, self.columns, values, self.limit, width, ansi)
        return lines + ([f"in {self.unit}"] if self.unit else [])

    def _panel_grid(self) -> tuple[int, int]:
        """The number of rows and of columns of panels in an image."""
        across = min(len(self.values), 3)
        return -(-len(self.values) // across), across

    def _image_size(self) -> tuple[float, float]:
        down, across = self._panel_grid()
        width = min(max(len(self.columns.labels) * 0.28, 3), 11 / across)
        return across * width + 1.2, down * (min(max(len(self.rows.labels) * 0.2, 1.2), 9) + 0.9) + 0.4

    def _page_height(self) -> int:
        cell = 20 if len(self.rows.labels) <= 45 else 16
        return self._panel_grid()[0] * (cell * len(self.rows.labels) + 130)

    def _draw(self, figure: Any) -> None:
        panels = figure.subplots(*self._panel_grid(), squeeze=False)
        for panel, values, title in zip(panels.flat, self.values, self._titles(), strict=False):
            image = draw_cells(panel, values, self.rows, self.columns, self.limit, self._signed())
            panel.set_title(title, loc="left", fontsize=9, parse_math=False)
        for panel in panels.flat[len(self.values) :]:
            panel.set_visible(False)
        draw_scale(image, panels, self.unit, self._image_size()[1])


def heatmap(
    values: Any, *, xlabels: Sequence[Any] | None = None, ylabels: Sequence[Any] | None = None, xname: str = "",
    yname: str = "", facet: str | int | None = None, max_value: float | None = None, unit: str = "", title: str = "",
) -> Heatmap:  # fmt: skip
    """A heat map whose colors are blue above zero and orange below.

    `values` is an array [column], [row column] or [facet row column], or the result of a patching sweep. A sweep result
    is any object with attributes `values`, `axes` (the names of the axes) and `labels` (axis name to labels).

    If there are three axes, each entry of the facet axis becomes a separate grid. `facet` selects this axis by name or
    index. The default is the first axis, or the last axis if the first is "layer". The color scale ends at `max_value`,
    by default the largest magnitude. Values that are not finite are blank.

    Raises:
        TypeError: The values are not real numbers.
        ValueError: The values have more than three axes, or the labels or `facet` do not match their shape.

    Example:
        >>> import numpy as np
        >>> from jaxlens import plot
        >>> picture = plot.heatmap(np.eye(2), xlabels=["a", "b"], xname="position", yname="layer")
        >>> picture.data["axes"], picture.data["labels"]
        (['layer', 'position'], [['0', '1'], ['a', 'b']])
    """
    array, axes = _array_and_axes(values, yname, xname)
    check_size(array, "values")
    facets = None
    if array.ndim == 3:
        index = _facet_axis(facet, [axis.name for axis in axes])
        array, facets = np.moveaxis(array, index, 0), axes.pop(index)
    elif facet is not None:
        raise ValueError(f"facet is {facet!r}, but values has shape {array.shape}; facet needs values with three axes")
    rows, columns = axes
    columns = columns if xlabels is None else Axis(columns.name, as_labels(xlabels, array.shape[-1], "xlabels"))
    rows = rows if ylabels is None else Axis(rows.name, as_labels(ylabels, array.shape[-2], "ylabels"))
    array = array if facets else array[None]
    limit = scale_limit(max_value, max_magnitude(array))
    return Heatmap(array, rows, columns, facets, limit, title or "Heat map", unit)


def _array_and_axes(values: Any, yname: str, xname: str) -> tuple[np.ndarray, list[Axis]]:
    """The values as an array with two or three axes, and its axes."""
    values, names, labels = unpack_labelled(values)
    array = as_numbers(values, "values", "column", "row column", "facet row column")
    names = names or ["", yname, xname][-array.ndim :]
    sizes = zip(names, array.shape, strict=True)
    axes = [Axis(name, as_labels(labels.get(name), size, f"labels of {name or 'an axis'}")) for name, size in sizes]
    return (array, axes) if array.ndim > 1 else (array[None], [Axis(yname, [""]), *axes])


def _facet_axis(facet: str | int | None, names: list[str]) -> int:
    if facet is None:
        return 2 if names[0] == "layer" else 0
    if facet in names or facet in (0, 1, 2, -1, -2, -3):
        return names.index(facet) if isinstance(facet, str) else int(facet) % 3
    raise ValueError(f"facet is {facet!r}; expected the name or the index of an axis of {names}")


# --- helpers for other pictures


def unpack_labelled(values: Any) -> tuple[Any, list[str], dict[str, Sequence[Any]]]:
    """The array, axis names and labels of a sweep result. For a plain array, names and labels are empty."""
    if all(hasattr(values, name) for name in ("values", "axes", "labels")):
        return values.values, [str(name) for name in values.axes], dict(values.labels)
    return values, [], {}


def axis_data(axis: Axis) -> dict[str, Any]:
    """An axis as JSON for the scripts of the page."""
    return {"name": axis.name, "labels": axis.display_labels}


def draw_cells(
    panel: Any, values: Float[np.ndarray, "r c"], rows: Axis, columns: Axis, limit: float, signed: bool
) -> Any:
    """Draws a grid of colored cells on a matplotlib axes, with at most 40 labels per side. Returns the image."""
    ends = {"cmap": colormap(signed), "vmin": -limit if signed else 0, "vmax": limit}
    image = panel.imshow(values, **ends, aspect="auto", interpolation="nearest")
    for axis, set_ticks in ((columns, panel.set_xticks), (rows, panel.set_yticks)):
        labels = axis.display_labels
        indices = range(0, len(labels), -(-len(labels) // 40))
        rotated = {"rotation": 90} if set_ticks == panel.set_xticks and max(map(len, labels)) > 2 else {}
        set_ticks(indices, [labels[index] for index in indices], fontsize=7, parse_math=False, **rotated)
    panel.set_xlabel(columns.name, fontsize=8, parse_math=False)
    panel.set_ylabel(rows.name, fontsize=8, parse_math=False)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    return image


def draw_scale(image: Any, panels: Any, unit: str, inches: float) -> None:
    """Draws the color bar next to panels that are `inches` high."""
    bar = image.figure.colorbar(image, ax=panels, shrink=min(0.8, 3 / inches), aspect=25, pad=0.02)
    bar.set_label(unit, fontsize=8, parse_math=False)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
