"""The arrays of a cache. Those of a run that was padded to the length of its program are cut when first read."""

from collections.abc import Iterator, MutableMapping

import jax
import numpy as np

from jaxlens._jax import is_traced
from jaxlens.hooks.positions import Positions, shortened
from jaxlens.hooks.table import LENGTH_AXES, POSITION_AXES


def row_of(stack: jax.Array, row: int) -> jax.Array:
    """A row of a stack. In the memory of the host it is not copied: both share that memory, which JAX never changes."""
    is_array = isinstance(stack, jax.Array) and not is_traced(stack)
    if not is_array or jax.default_backend() != "cpu" or stack.devices() != {jax.local_devices()[0]}:
        return stack[row]
    return jax.device_put(np.asarray(stack)[row], may_alias=True)


class StoredArrays(MutableMapping):
    """Arrays by key."""

    def __init__(self):
        self._arrays: dict[str, jax.Array] = {}
        self._to_cut: dict[str, tuple[tuple[int, ...], int]] = {}  # the axes of positions and their length

    def store_padded(
        self, key: str, array: jax.Array, site: str, n_leading: int, length: int, positions: Positions | None
    ) -> None:
        """Stores an activation of `site`, whose axes come after `n_leading` others, to be cut to `length` positions.

        With `positions`, those of the queries are selected already.
        """
        axes = LENGTH_AXES[site]
        if positions is not None:
            removed = 0 if positions.keeps_axis else 1
            axes = tuple(axis - removed for axis in axes if axis > POSITION_AXES[site])
        self._arrays[key] = array
        if axes:
            self._to_cut[key] = tuple(axis + n_leading for axis in axes), length

    def __getitem__(self, key: str) -> jax.Array:
        if key in self._to_cut:
            self._arrays[key] = shortened(self._arrays[key], *self._to_cut.pop(key))
        return self._arrays[key]

    def __setitem__(self, key: str, array: jax.Array) -> None:
        self._to_cut.pop(key, None)
        self._arrays[key] = array

    def __delitem__(self, key: str) -> None:
        self._to_cut.pop(key, None)
        del self._arrays[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)
