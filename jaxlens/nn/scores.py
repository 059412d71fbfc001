"""Attention scores, the mask, and the pattern of one layer.

Queries are multiplied grouped by the key/value head that they read, [b k g p s]. Hook points have one axis of heads.
Heads come before positions: XLA then multiplies matrices without copies of them.

Axes: b batch, p query position, s source position, n query head, k key/value head, g query heads per key/value head,
h d_head, t d_v_head.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlens._jax import inlined, wide, wide_dtype
from jaxlens.nn.sequence import LayerInfo


@inlined
def heads_first(x: Float[Array, "b s k h"]) -> Float[Array, "b k s h"]:
    """Keys or values with heads before positions."""
    return jnp.moveaxis(x, 1, 2)


@inlined
def both_heads_first(k, v):
    return heads_first(k), heads_first(v)


@functools.partial(inlined, static_argnames=("n_groups",))
def by_group_first(q: Float[Array, "b p n h"], n_groups: int) -> Float[Array, "b k g p h"]:
    """Queries by the key/value head that they read, before positions."""
    return jnp.moveaxis(q.reshape(*q.shape[:2], n_groups, -1, q.shape[-1]), 1, 3)


@functools.partial(inlined, static_argnames=("cap",))
def raw_scores(
    q: Float[Array, "b k g p h"], k: Float[Array, "b k s h"], scale, cap: float | None, bias, indices
) -> Float[Array, "b k g p s"]:
    """Scores of queries and keys: scaled, soft-capped and with the position bias; not masked.

    `indices` are the token indices of the queries [b p] and of the keys [b s], which the bias depends on.
    """
    scores = (dot_products(q, k) / scale).astype(q.dtype)
    scores = scores if cap is None else cap * jnp.tanh(scores / cap)
    return scores if bias is None else (scores + bias(*indices, k.shape[1], scale)).astype(scores.dtype)


@functools.partial(inlined, static_argnames=("cap",))
def grouped_scores(q: Float[Array, "b p n h"], k: Float[Array, "b k s h"], scale, cap: float | None, bias, indices):
    """`raw_scores` of queries with positions before heads."""
    return raw_scores(by_group_first(q, k.shape[1]), k, scale, cap, bias, indices)


def dot_products(q: Float[Array, "b k g p h"], k: Float[Array, "b k s h"]) -> Float[Array, "b k g p s"]:
    """Every query times every key. For a single token, einsum would put queries first, and XLA would transpose k."""
    if q.shape[0] * q.shape[3] > 1:
        return jnp.einsum("bkgph,bksh->bkgps", q, k)
    return jnp.moveaxis(k @ jnp.moveaxis(q[..., 0, :], -1, -2), -1, -2)[..., None, :]


def visible(
    low: Int[Array, "*i b p"], high: Int[Array, "*i b p"], sources: Int[Array, "b s"], n_axes: int
) -> Bool[Array, "b *one p s"]:
    """The attention mask: a source is visible where `low < sources <= high`, for any of i pairs of bounds.

    The result has `n_axes` axes.

    For use inside a fusion only, where it never becomes an array (tests/test_masks.py checks the compiled code). XLA
    would hoist a plain `q - k < window` out of the loop over layers and keep it as a T×T array, and a gradient would
    save one such array per layer. The bounds depend on the layer (`sequence.band`), so nothing T×T is loop-invariant.
    The derivative of `masked_softmax` needs only its result, not the mask.
    """
    sources = sources[:, None, :]
    pairs = ((low, high),) if low.ndim == 2 else zip(low, high, strict=True)
    inside = ((sources > low[..., None]) & (sources <= high[..., None]) for low, high in pairs)
    return jnp.expand_dims(functools.reduce(jnp.logical_or, inside), tuple(range(1, n_axes - 2)))


@functools.partial(inlined, static_argnames=("cap",))
def masked_scores(
    q: Float[Array, "b p n h"], k: Float[Array, "b k s h"], info: LayerInfo, cap: float | None, bias
) -> Float[Array, "b n p s"]:
    """Scores per head, as at their hook point: -inf where a source is not visible."""
    scores = grouped_scores(q, k, info.scale, cap, bias, info.indices)
    return by_head(jnp.where(visible(info.low, info.high, info.sources, scores.ndim), scores, -jnp.inf))


@inlined
def masked_pattern(scores: Float[Array, "b k g p s"], info: LayerInfo, sink) -> Float[Array, "b n p s"]:
    """The pattern per head, from scores before the mask."""
    return by_head(masked_softmax(scores, info.low, info.high, info.sources, sink))


@jax.custom_jvp
def masked_softmax(
    scores: Float[Array, "b *n p s"], low: Int[Array, "*i b p"], high: Int[Array, "*i b p"], sources: Int[Array, "b s"],
    sink: Float[Array, "*n 1 1"] | None = None,
) -> Float[Array, "b *n p s"]:  # fmt: skip
    """Softmax over the visible sources, in float32 or wider. A query without visible sources gets a row of zeros."""
    is_visible = visible(low, high, sources, scores.ndim)
    # The fill value depends on the row: XLA would hoist a constant out of the layer loop as an array [p s].
    floor = low if low.ndim == 2 else low[0]
    floor = jnp.minimum(jnp.minimum(floor, 0).astype(scores.dtype), jnp.finfo(scores.dtype).min)[..., None]
    floor = jnp.expand_dims(floor, tuple(range(1, scores.ndim - 2)))
    return softmax(jnp.where(is_visible, scores, floor), sink) * is_visible.astype(scores.dtype)


@masked_softmax.defjvp
def _masked_softmax_jvp(primals, tangents):
    pattern, change = masked_softmax(*primals), tangents[0]
    dtype = wide_dtype(pattern.dtype)
    # Not jnp.sum(pattern * change): jaxlib 0.10.2 fuses the sum with later operations, and is then wrong under vmap.
    mean = jnp.einsum("...s,...s->...", pattern, change, preferred_element_type=dtype)[..., None]
    if primals[4] is not None:  # the sink gets the rest of the probability
        mean = mean + (1 - jnp.sum(pattern, axis=-1, keepdims=True, dtype=dtype)) * tangents[4]
    return pattern, pattern * (change - mean.astype(pattern.dtype))


def softmax(scores: Float[Array, "*b s"], sink: Float[Array, "*n 1 1"] | None = None) -> Float[Array, "*b s"]:
    """Softmax in float32 or wider, rounded to the dtype of `scores`. A row of -inf becomes zeros, not NaN.

    A sink logit is an extra score in every row, whose probability is not returned (Xiao et al. 2023, arXiv 2309.17453).
    """
    scores, dtype = wide(scores), scores.dtype
    highest = jnp.max(scores, axis=-1, keepdims=True)
    highest = highest if sink is None else jnp.maximum(highest, sink.astype(scores.dtype))
    highest = jnp.maximum(jax.lax.stop_gradient(highest), jnp.finfo(scores.dtype).min)
    exponentials = jnp.exp(scores - highest)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    total = total if sink is None else total + jnp.exp(sink.astype(scores.dtype) - highest)
    return (exponentials / jnp.where(total > 0, total, 1)).astype(dtype)


@inlined
def plain_softmax(scores: Float[Array, "b n p s"], sink: Float[Array, "k g 1 1"] | None) -> Float[Array, "b n p s"]:
    """The pattern per head, from masked scores."""
    return softmax(scores, None if sink is None else sink.reshape(-1, 1, 1))


def by_head(grouped: Float[Array, "b k g p s"]) -> Float[Array, "b n p s"]:
    """Scores or a pattern with one axis of heads, as at their hook points."""
    return grouped.reshape(grouped.shape[0], -1, *grouped.shape[3:])


def by_group(heads: Float[Array, "b n p s"], n_groups: int) -> Float[Array, "b k g p s"]:
    """The reverse of `by_head`."""
    return heads.reshape(heads.shape[0], n_groups, -1, *heads.shape[2:])


@inlined
def weight_values(pattern: Float[Array, "b n p s"], v: Float[Array, "b k s t"]) -> Float[Array, "b p n t"]:
    """The sum of the sources' values, weighted by the pattern."""
    return by_position(jnp.einsum("bkgps,bkst->bkgpt", by_group(pattern, v.shape[1]), v))


def by_position(z: Float[Array, "b k g p t"]) -> Float[Array, "b p n t"]:
    """The reverse of `by_group_first`."""
    z = jnp.moveaxis(z, 3, 1)
    return z.reshape(*z.shape[:2], -1, z.shape[-1])
