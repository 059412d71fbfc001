"""`Slice`: an index along one axis, for selecting positions, batch entries or heads."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SliceInput = Any
"""An integer, a slice, a tuple (start, stop[, step]), a list or array of integers, or None."""


@dataclasses.dataclass(frozen=True, init=False)
class Slice:
    """An index along one axis: an integer, a slice, a tuple (start, stop[, step]), a list, an array, or None.

    An integer removes the axis. None selects everything. A Slice is hashable, so it can be a static argument of a
    jitted function.

    Example:
        >>> Slice((1, 3)).apply(jnp.arange(5)), Slice(-1).apply(jnp.arange(5)), Slice([0, 2]).apply(jnp.arange(5))
        (Array([1, 2], dtype=int32), Array(4, dtype=int32), Array([0, 2], dtype=int32))

    Raises:
        TypeError: The index has another type.
        IndexError: `apply` is called with an axis that is too short for the index. (JAX would clamp the index.)
    """

    mode: str
    index: Any

    def __init__(self, input_slice: SliceInput = None):
        mode, index = _parse(input_slice)
        object.__setattr__(self, "mode", mode)
        object.__setattr__(self, "index", index)

    @classmethod
    def unwrap(cls, slice_input: "Slice | SliceInput") -> "Slice":
        """The Slice of `slice_input`. An integer becomes a list, which keeps the axis. A Slice stays unchanged."""
        return cls([slice_input] if isinstance(slice_input, int | np.integer) else slice_input)

    @property
    def slice(self) -> int | slice | np.ndarray:
        """The index in the form that numpy accepts."""
        match self.mode:
            case "int":
                return self.index
            case "array":
                return np.array(self.index)
        return slice(None) if self.mode == "identity" else slice(*self.index)

    @property
    def numbers(self) -> tuple[Any, ...]:
        """The integers (or the mask) that make up the index. None is an open bound of a slice."""
        return self.index if isinstance(self.index, tuple) else (self.index,)

    def apply(self, value: jax.Array, dim: int = 0) -> jax.Array:
        """Indexes `value` along axis `dim`."""
        if self.mode == "identity":
            return value
        length = value.shape[dim]
        for entry in np.atleast_1d(self.index) if self.mode != "slice" else ():
            if not isinstance(entry, np.bool_) and not -length <= entry < length:
                raise IndexError(f"index {entry} is out of range for an axis of length {length}")
        return value[(slice(None),) * (dim % value.ndim) + (self.slice,)]

    def indices(self, max_ctx: int | None = None) -> np.ndarray:
        """The selected indices of an axis of length `max_ctx`. The Slice of an integer needs no length."""
        if self.mode == "int":
            return np.array([self.index])
        if max_ctx is None:
            raise ValueError(f"{self} has no indices without a length; pass max_ctx=")
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
            raise TypeError("a slice is an integer, slice, tuple, list or array; got bool")
        case int() | np.integer():
            return "int", int(index)
        case tuple() if 1 <= len(index) <= 3:
            return "slice", (None, index[0], None) if len(index) == 1 else (*index, *(None,) * (3 - len(index)))
        case list() | np.ndarray() | jax.Array():
            values = np.asarray(index)
            if values.ndim > 1 or not values.size or values.dtype.kind not in "iub":
                given = f"{values.dtype} of shape {values.shape}"
                raise TypeError(f"a slice given as a list must hold integers; got {given}")
            return ("int", int(values)) if values.ndim == 0 else ("array", tuple(values.tolist()))
    raise TypeError(f"a slice is an integer, slice, tuple, list or array; got {type(index).__name__}")
