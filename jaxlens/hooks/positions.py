"""Positions of activations as data: those that are captured, and those that are not padding.

Other positions of the same number compile nothing. Axes: b batch, p position, i selected position.
"""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxlens._jax import is_traced
from jaxlens.hooks.slice import Slice
from jaxlens.hooks.table import POSITION_AXES


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Positions:
    """The positions of captured values: the same for all rows [i], or chosen for each row [b i].

    A single position removes the position axis unless `keeps_axis`.
    """

    indices: Int[Array, "i"] | Int[Array, "b i"]
    keeps_axis: bool = dataclasses.field(default=True, metadata={"static": True})

    @classmethod
    def of(cls, which: Slice | None, length: int, mask: Bool[Array, "b p"] | None = None) -> "Positions | None":
        """The positions that `which` selects of a run of this length, or None for all.

        With a `mask` of padding, a negative integer counts the tokens of each row from its last token.

        Raises:
            IndexError: A position is outside the sequence, or a row has fewer tokens than a negative integer counts.
        """
        if which is None or which.mode == "identity":
            return None
        chosen = np.atleast_1d(which.apply(np.arange(length))).astype(np.int32)
        if which.mode == "slice" and mask is not None:
            _warn_of_padding(which, mask)
        numbers = np.atleast_1d(which.index) if which.mode != "slice" else chosen
        if mask is not None and numbers.dtype != bool and (numbers < 0).any():
            chosen = jnp.where(numbers < 0, _from_the_end(mask, numbers), chosen)
        return cls(chosen, keeps_axis=which.mode != "int")

    @functools.partial(jax.jit, static_argnames=("site", "n_leading"))
    def cut(self, site: str, value: Array, n_leading: int = 0) -> Array:
        """The value of a site at these positions. `n_leading` axes come before those of the site."""
        if n_leading:
            return jax.vmap(lambda row: self.cut(site, row, n_leading - 1))(value)
        axis = POSITION_AXES[site]
        if self.indices.ndim == 1:
            taken = jnp.take(value, self.indices, axis)
        else:
            taken = jax.vmap(lambda row, indices: jnp.take(row, indices, axis - 1))(value, self.indices)
        return taken if self.keeps_axis else jnp.squeeze(taken, axis)


def _from_the_end(mask: Bool[Array, "b p"], numbers: np.ndarray) -> Int[Array, "b i"]:
    """The position of each row's token -1, -2, … (Traced masks are not checked.)"""
    mask = mask if is_traced(mask) else np.asarray(mask)
    count = mask.cumsum(-1)
    wanted = count[:, -1:] + 1 + np.minimum(numbers, -1)
    if not is_traced(mask) and (short := np.flatnonzero((wanted < 1).any(-1))).size:
        row = int(short[0])
        raise IndexError(f"position {numbers.min()} is out of range: row {row} has {count[row, -1]} tokens")
    return (count[:, None, :] == wanted[..., None]).argmax(-1)


def _warn_of_padding(which: Slice, mask: Bool[Array, "b p"]) -> None:
    """Warns if a slice that counts from the end selects padding."""
    if is_traced(mask) or not any(bound is not None and bound < 0 for bound in which.index[:2]):
        return
    if (rows := np.flatnonzero(~np.asarray(mask)[:, -1])).size:
        warnings.warn(
            f"the slice counts positions from the end, but rows {rows.tolist()} end with padding, so it selects "
            "padding there; pass a list of negative positions, which count the tokens of each row",
            stacklevel=5,
        )


@functools.partial(jax.jit, static_argnames=("axes", "length"))
def shortened(value: Array, axes: tuple[int, ...], length: int) -> Array:
    """The first `length` positions along these axes."""
    for axis in axes:
        value = jax.lax.slice_in_dim(value, 0, length, axis=axis)
    return value


@jax.jit
def overwritten(value: Array, beginning: Array) -> Array:
    """The value with another beginning, along every axis in which `beginning` is shorter."""
    return jax.lax.dynamic_update_slice(value, beginning, (0,) * value.ndim)
