"""`Labelled`: the result of an analysis, an array with named axes and labeled entries."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxlens.errors import require


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """An array with a name for every axis and a label for every index along it. numpy functions accept it.

    Half-precision values are converted to float32.

    Example:
        >>> result = Labelled(np.array([[0.5, -1.0]]), ("layer", "head"), {"layer": ["3"], "head": ["0", "1"]})
        >>> result.strongest(1)
        [({'layer': '3', 'head': '1'}, -1.0)]
    """

    values: Float[np.ndarray, "..."]
    axes: tuple[str, ...]
    labels: dict[str, list[str]]

    def __post_init__(self):
        expected = tuple(len(self.labels[axis]) for axis in self.axes)
        if self.values.shape != expected:
            raise ValueError(f"values have shape {self.values.shape}; expected {expected}, one entry per label")
        if jnp.issubdtype(self.values.dtype, jnp.floating) and self.values.itemsize < 4:
            object.__setattr__(self, "values", self.values.astype(np.float32))

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return self.values.shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=True if copy is None else copy)

    def at(self, **labels: Any) -> "Labelled":
        """The entries with these labels, as in `result.at(layer=3)`. The selected axes are removed.

        The label of a position is its token and its number. The number is enough: `result.at(pos=2)`.

        Raises:
            KeyError: There is no such axis, or no such label along it.
        """
        indices = {axis: self._index(axis, label) for axis, label in labels.items()}
        values = self.values[tuple(indices.get(axis, slice(None)) for axis in self.axes)]
        return self._without(values, set(labels))

    def _index(self, axis: str, label: Any) -> int:
        names = self.labels.get(axis, [])
        if str(label) not in names and isinstance(label, int | np.integer):
            names = [name.rpartition(" ")[2] for name in names]
        if str(label) not in names:
            raise KeyError(f"there is no {axis} {label}; the labels are {self.labels.get(axis, self.labels)}")
        return names.index(str(label))

    def sum(self, *axes: str) -> "Labelled":
        """The sum over these axes.

        Raises:
            KeyError: There is no such axis.
        """
        if unknown := [axis for axis in axes if axis not in self.axes]:
            raise KeyError(f"there is no axis {unknown[0]!r}; the axes are {self.axes}")
        return self._without(self.values.sum(tuple(self.axes.index(axis) for axis in axes)), set(axes))

    def _without(self, values: np.ndarray, removed: set[str]) -> "Labelled":
        axes = tuple(axis for axis in self.axes if axis not in removed)
        return Labelled(values, axes, {axis: self.labels[axis] for axis in axes})

    def strongest(self, count: int = 10) -> list[tuple[dict[str, str], float]]:
        """The `count` entries of largest absolute value, each as its labels and its value."""
        order = np.argsort(-np.abs(self.values), axis=None, kind="stable")[:count]
        indices = zip(*np.unravel_index(order, self.values.shape), strict=True)
        return [
            ({axis: self.labels[axis][i] for axis, i in zip(self.axes, index, strict=True)}, float(self.values[index]))
            for index in indices
        ]

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with one row per entry: a column for every axis, and the column "value"."""
        pandas = require("pandas", "a DataFrame")
        index = pandas.MultiIndex.from_product([self.labels[axis] for axis in self.axes], names=self.axes)
        return pandas.Series(self.values.ravel(), index, name="value").reset_index()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{axis} {size}" for axis, size in zip(self.axes, self.shape, strict=True))
        lines = [f"{type(self).__name__}({sizes})"]
        for labels, value in self.strongest(5):
            lines.append(f"  {value:+.4g}  " + " ".join(f"{axis} {label}" for axis, label in labels.items()))
        return "\n".join(lines)
