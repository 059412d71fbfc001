"""Which positions, batch items or heads to keep: one small object for every way of saying it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.hook_table import POSITION_AXES

SliceInput = Any
"""What a Slice is made of: a number, a slice, a tuple (start, stop[, step]), a list or array of numbers, or None."""


@dataclasses.dataclass(frozen=True, init=False)
class Slice:
    """An index along one axis: a number (the axis goes away), a slice, a tuple (start, stop[, step]), a list or array.

    None keeps everything. It is hashable, so that it can be part of a compiled program's key.

    Example:
        >>> Slice((1, 3)).apply(jnp.arange(5)), Slice(-1).apply(jnp.arange(5)), Slice([0, 2]).apply(jnp.arange(5))
        (Array([1, 2], dtype=int32), Array(4, dtype=int32), Array([0, 2], dtype=int32))

    Raises:
        TypeError: anything else.
        IndexError: when it is applied to an axis that is too short. (JAX itself would take the last entry.)
    """

    mode: str
    index: Any

    def __init__(self, input_slice: SliceInput = None):
        mode, index = _parse(input_slice)
        object.__setattr__(self, "mode", mode)
        object.__setattr__(self, "index", index)

    @classmethod
    def unwrap(cls, slice_input: "Slice | SliceInput") -> "Slice":
        """A Slice as it is, and anything else as a Slice that keeps the axis: a number becomes a list of one."""
        return cls([slice_input] if isinstance(slice_input, int | np.integer) else slice_input)

    @property
    def slice(self) -> int | slice | np.ndarray:
        """The index as numpy takes it."""
        match self.mode:
            case "int":
                return self.index
            case "array":
                return np.array(self.index)
        return slice(None) if self.mode == "identity" else slice(*self.index)

    def apply(self, value: jax.Array, dim: int = 0) -> jax.Array:
        """`value` with this index taken along axis `dim`."""
        if self.mode == "identity":
            return value
        length = value.shape[dim]
        for one in np.atleast_1d(self.index) if self.mode != "slice" else ():
            if not isinstance(one, np.bool_) and not -length <= one < length:
                raise IndexError(f"index {one} is out of range for an axis of length {length}")
        return value[(slice(None),) * (dim % value.ndim) + (self.slice,)]

    def cut(self, site: str, value: jax.Array) -> jax.Array:
        """The chosen positions of the activation at `site`, a value with its batch axis."""
        return self.apply(value, POSITION_AXES[site])

    def indices(self, max_ctx: int | None = None) -> np.ndarray:
        """The positions it picks out of `max_ctx`."""
        if self.mode == "int":
            return np.array([self.index])
        if max_ctx is None:
            raise ValueError(f"max_ctx must be given to list the indices of {self}")
        return np.asarray(self.apply(jnp.arange(max_ctx)))


def _parse(index: Any) -> tuple[str, Any]:
    match index:
        case Slice():
            return index.mode, index.index
        case None:
            return "identity", None
        case slice():
            return "slice", (index.start, index.stop, index.step)
        case bool():
            raise TypeError("a slice is a number, slice, tuple, list or array; got bool")
        case int() | np.integer():
            return "int", int(index)
        case tuple() if 1 <= len(index) <= 3:
            return "slice", (None, index[0], None) if len(index) == 1 else (*index, *(None,) * (3 - len(index)))
        case list() | np.ndarray() | jax.Array():
            values = np.asarray(index)
            if values.ndim > 1 or not values.size or values.dtype.kind not in "iub":
                raise TypeError(f"an index is a list of whole numbers; got {values.dtype} of shape {values.shape}")
            return ("int", int(values)) if values.ndim == 0 else ("array", tuple(values.tolist()))
    raise TypeError(f"a slice is a number, slice, tuple, list or array; got {type(index).__name__}")
