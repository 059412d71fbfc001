"""Results of analyses: arrays whose axes and places have names."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxlens.optional import needed


@dataclasses.dataclass(frozen=True)
class Labelled:
    """An array with a name for every axis and a label for every place on it; it stands wherever an array may.

    Half precision becomes float32.

    Example:
        >>> result = Labelled(np.array([[0.5, -1.0]]), ("layer", "head"), {"layer": ["3"], "head": ["0", "1"]})
        >>> result.strongest(1)
        [({'layer': '3', 'head': '1'}, -1.0)]
    """

    values: Float[np.ndarray, "..."]
    axes: tuple[str, ...]
    labels: dict[str, list[str]]

    def __post_init__(self):
        wanted = tuple(len(self.labels[axis]) for axis in self.axes)
        if self.values.shape != wanted:
            raise ValueError(f"the values have shape {self.values.shape}; the labels of {self.axes} make it {wanted}")
        if jnp.issubdtype(self.values.dtype, jnp.floating) and self.values.itemsize < 4:  # numpy would sum it as it is
            object.__setattr__(self, "values", self.values.astype(np.float32))

    @property
    def shape(self) -> tuple[int, ...]:
        """How long each axis is."""
        return self.values.shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=True if copy is None else copy)

    def at(self, **places: Any) -> "Labelled":
        """The places of these labels, as in `result.at(layer=3)`; their axes go away.

        Raises:
            KeyError: there is no such axis, or no such place on it.
        """
        for axis, label in places.items():
            if str(label) not in self.labels.get(axis, ()):
                raise KeyError(f"there is no {axis} {label}; the places are {self.labels.get(axis, self.labels)}")
        chosen = {axis: self.labels[axis].index(str(label)) for axis, label in places.items()}
        values = self.values[tuple(chosen.get(axis, slice(None)) for axis in self.axes)]
        return self._without(values, set(places))

    def sum(self, *axes: str) -> "Labelled":
        """The sum over these axes.

        Raises:
            KeyError: there is no such axis.
        """
        if odd := [axis for axis in axes if axis not in self.axes]:
            raise KeyError(f"there is no axis {odd[0]!r}; the axes are {self.axes}")
        return self._without(self.values.sum(tuple(self.axes.index(axis) for axis in axes)), set(axes))

    def _without(self, values: np.ndarray, gone: set[str]) -> "Labelled":
        axes = tuple(axis for axis in self.axes if axis not in gone)
        return Labelled(values, axes, {axis: self.labels[axis] for axis in axes})

    def strongest(self, count: int = 10) -> list[tuple[dict[str, str], float]]:
        """The places of the largest values, of either sign, and those values."""
        order = np.argsort(-np.abs(self.values), axis=None, kind="stable")[:count]
        places = zip(*np.unravel_index(order, self.values.shape), strict=True)
        return [
            ({axis: self.labels[axis][i] for axis, i in zip(self.axes, place, strict=True)}, float(self.values[place]))
            for place in places
        ]

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with a column for every axis and one called "value"."""
        pandas = needed("pandas", "a DataFrame")

        index = pandas.MultiIndex.from_product([self.labels[axis] for axis in self.axes], names=self.axes)
        return pandas.Series(self.values.ravel(), index, name="value").reset_index()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{axis} {size}" for axis, size in zip(self.axes, self.shape, strict=True))
        lines = [f"{type(self).__name__}({sizes})"]
        for place, value in self.strongest(5):
            lines.append(f"  {value:+.4g}  " + " ".join(f"{axis} {label}" for axis, label in place.items()))
        return "\n".join(lines)
