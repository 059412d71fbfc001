"""The two contractions of attention, with fewer key/value heads than query heads: the heads of a group share theirs.

Axes: b batch, p query position, s source position, n query head, k key/value head, g query heads per key/value head,
h d_head.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

piece = functools.partial(jax.jit, inline=True)


@functools.partial(piece, static_argnames=("cap",))
def raw_scores(
    q: Float[Array, "b p n h"], k: Float[Array, "b s k h"], scale: Float[Array, ""], cap: float | None
) -> Float[Array, "b k g p s"]:
    """How well every query matches every source, scaled and soft-capped, not yet masked."""
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
    scores = (jnp.einsum("bpkgh,bskh->bkgps", grouped, k) / scale).astype(q.dtype)
    return scores if cap is None else cap * jnp.tanh(scores / cap)


@piece
def weigh_values(pattern: Float[Array, "b k g p s"], v: Float[Array, "b s k h"]) -> Float[Array, "b p n h"]:
    """The values of the sources, weighed by the pattern."""
    z = jnp.einsum("bkgps,bskh->bpkgh", pattern, v)
    return z.reshape(*z.shape[:2], -1, z.shape[-1])


@piece
def by_head(grouped: Float[Array, "b k g p s"]) -> Float[Array, "b n p s"]:
    """Scores or a pattern as hooks see them."""
    return grouped.reshape(grouped.shape[0], -1, *grouped.shape[3:])


@functools.partial(piece, static_argnames=("n_groups",))
def by_group(heads: Float[Array, "b n p s"], n_groups: int) -> Float[Array, "b k g p s"]:
    """The reverse of `by_head`."""
    return heads.reshape(heads.shape[0], n_groups, -1, *heads.shape[2:])
