"""Who sees whom. The mask is never an array: it is a comparison of two bounds per query with an iota over keys.

Axes: b batch, n head, p query position, s source position.

Written naively, `q - k < window` inside a loop over layers is hoisted out of the loop by XLA and kept as a T×T array,
and a gradient saves its own copy per layer. Two things prevent it, and `tests/test_masks.py` reads the compiled HLO to
see that they still do: the bounds of `band` depend on the layer, so nothing T×T is the same in every iteration; and
`masked_softmax` has a derivative of its own, which needs only its result.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def band(slots: Int[Array, "p"], window: Int[Array, ""], layer: Int[Array, ""]) -> tuple[Array, Array]:
    """The bounds of what each query sees: source s is visible to the query in slot p where `low < s <= high`.

    `window` counts the visible slots, the query's own included. `layer` changes no value (it is never negative): it
    makes both bounds differ from layer to layer in XLA's eyes.
    """
    high = slots + jnp.minimum(layer, 0)
    return high - window, high


def visible(
    low: Int[Array, "p"], high: Int[Array, "p"], real: Bool[Array, "b s"], n_axes: int
) -> Bool[Array, "b *one p s"]:
    """The mask itself, with `n_axes` axes in all; for use inside a fusion only. `real` is False on padding."""
    source = jax.lax.broadcasted_iota(jnp.int32, (1, real.shape[-1]), 1)
    inside = (source > low[:, None]) & (source <= high[:, None])
    return jnp.expand_dims(inside & real[:, None, :], tuple(range(1, n_axes - 2)))


@jax.custom_jvp
def masked_softmax(
    scores: Float[Array, "b *n p s"], low: Int[Array, "p"], high: Int[Array, "p"], real: Bool[Array, "b s"],
    sink: Float[Array, "*n 1 1"] | None = None,
) -> Float[Array, "b *n p s"]:  # fmt: skip
    """Softmax over the visible sources, in float32 at least; a query that sees nothing gets a row of zeros."""
    seen = visible(low, high, real, scores.ndim)
    # What stands for a masked score depends on the row: XLA hoists a constant one out of the loop as an array [p, s].
    floor = jnp.minimum(jnp.minimum(low, 0).astype(scores.dtype), jnp.finfo(scores.dtype).min)[:, None]
    return softmax(jnp.where(seen, scores, floor), sink) * seen.astype(scores.dtype)


@masked_softmax.defjvp
def _masked_softmax_jvp(primals, tangents):
    pattern, change = masked_softmax(*primals), tangents[0]
    wide = jnp.promote_types(pattern.dtype, jnp.float32)
    # Not jnp.sum(pattern * change): jaxlib 0.10.2 fuses that with what follows, and fails where changes are mapped.
    mean = jnp.einsum("...s,...s->...", pattern, change, preferred_element_type=wide)[..., None]
    if primals[4] is not None:  # the sink has the rest of the probability
        mean = mean + (1 - jnp.sum(pattern, axis=-1, keepdims=True, dtype=wide)) * tangents[4]
    return pattern, pattern * (change - mean.astype(pattern.dtype))


def softmax(scores: Float[Array, "*b s"], sink: Float[Array, "*n 1 1"] | None = None) -> Float[Array, "*b s"]:
    """Softmax in float32 at least, back in the dtype of `scores`; a row of -inf alone becomes zeros, not NaN.

    A `sink` is one more score in every row, whose probability is left out: what is attended to nothing (Xiao et al.
    2023, arXiv 2309.17453).
    """
    wide = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    highest = jnp.max(wide, axis=-1, keepdims=True)
    highest = highest if sink is None else jnp.maximum(highest, sink.astype(wide.dtype))
    highest = jnp.maximum(jax.lax.stop_gradient(highest), jnp.finfo(wide.dtype).min)
    exponentials = jnp.exp(wide - highest)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    total = total if sink is None else total + jnp.exp(sink.astype(wide.dtype) - highest)
    return (exponentials / jnp.maximum(total, jnp.finfo(wide.dtype).tiny)).astype(scores.dtype)
