"""The two contractions of attention, with fewer key/value heads than query heads: the heads of a group share theirs.

Axes: b batch, p query position, s source position, n query head, k key/value head, g query heads per key/value head,
h d_head, t d_v_head.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

piece = functools.partial(jax.jit, inline=True)


@functools.partial(piece, static_argnames=("cap", "slopes", "in_bfloat16"))
def raw_scores(
    q: Float[Array, "b p n h"], k: Float[Array, "b s k h"], scale: Float[Array, ""], cap: float | None,
    slopes: tuple[float, ...] = (), asked_at: Int[Array, "b p"] | None = None,
    found_at: Int[Array, "b s"] | None = None, in_bfloat16: bool = False,
) -> Float[Array, "b k g p s"]:  # fmt: skip
    """How well every query matches every source, scaled and soft-capped, not yet masked.

    With `slopes`, one per query head, scores fall with the distance between the places of query and source (ALiBi).
    `in_bfloat16` is `cfg.alibi_in_bfloat16`.
    """
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
    scores = (jnp.einsum("bpkgh,bskh->bkgps", grouped, k) / scale).astype(q.dtype)
    scores = scores if cap is None else cap * jnp.tanh(scores / cap)
    if not slopes:
        return scores
    wide = jnp.promote_types(scores.dtype, jnp.float32)
    slope = jnp.array(slopes, wide).reshape(k.shape[2], -1, 1, 1)
    found, asked = found_at[:, None, None, None].astype(wide), asked_at[:, None, None, :, None].astype(wide)
    if in_bfloat16:
        fall = (_rounded_product(slope, found) - _rounded_product(slope, asked)) / scale
    else:
        fall = slope * (found - asked)
    return (scores + fall).astype(scores.dtype)


def _rounded_product(slope, place):
    """Both and their product rounded to what bfloat16 can hold, in their own dtype: XLA may drop casts to and fro."""
    to_bfloat16 = functools.partial(jax.lax.reduce_precision, exponent_bits=8, mantissa_bits=7)
    return to_bfloat16(to_bfloat16(slope) * to_bfloat16(place))


@piece
def weigh_values(pattern: Float[Array, "b k g p s"], v: Float[Array, "b s k t"]) -> Float[Array, "b p n t"]:
    """The values of the sources, weighed by the pattern."""
    z = jnp.einsum("bkgps,bskt->bpkgt", pattern, v)
    return z.reshape(*z.shape[:2], -1, z.shape[-1])


@piece
def by_head(grouped: Float[Array, "b k g p s"]) -> Float[Array, "b n p s"]:
    """Scores or a pattern as hooks see them."""
    return grouped.reshape(grouped.shape[0], -1, *grouped.shape[3:])


@functools.partial(piece, static_argnames=("n_groups",))
def by_group(heads: Float[Array, "b n p s"], n_groups: int) -> Float[Array, "b k g p s"]:
    """The reverse of `by_head`."""
    return heads.reshape(heads.shape[0], n_groups, -1, *heads.shape[2:])
