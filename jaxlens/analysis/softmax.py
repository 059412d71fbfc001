"""What another query or key would do to a pattern, computed and not linearised: the correction of AtP*.

A softmax is flat where it is saturated, so there the derivative by a query or a key says nothing of what a large move
does. The pattern with the other query or key is cheap to compute, and only the way on from there is then linear (Kramár
et al. 2024, arXiv 2403.00745, section 3.1).

Axes: b batch, p query position, s source position, n query head, k key/value head, g query heads per key/value head,
h d_head.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens.hooks import Tap
from jaxlens.nn.attention import Attention
from jaxlens.nn.context import LayerContext
from jaxlens.nn.grouped import by_group
from jaxlens.nn.masks import masked_softmax, visible

PATTERN = "attn.hook_pattern"
Values = Mapping[str, Array]
"""The values of a layer at ATTENTION_READS."""


ATTENTION_READS = ("attn.hook_q", "attn.hook_k")


def queries_and_keys(
    attn: Attention, values: Values, at: LayerContext
) -> tuple[Float[Array, "b p n h"], Float[Array, "b s k h"]]:
    """Queries and keys as they meet."""
    q, k = (attn.meeting(values[site], site[-1], at, Tap(())) for site in ATTENTION_READS)
    return q, k


def effect_of_queries(
    gradient: Float[Array, "b n p s"], there: Values, here: Values, attn: Attention, at: LayerContext
) -> Float[Array, "b p n"]:
    """(pattern with each query from there - pattern here) · gradient by the pattern."""
    (other_q, _), (q, k) = queries_and_keys(attn, there, at), queries_and_keys(attn, here, at)
    before, after = (
        masked_softmax(attn.scores(queries, k, at), at.low, at.high, at.real, attn.sink) for queries in (q, other_q)
    )
    effect = jnp.einsum("bkgps,bkgps->bpkg", after - before, by_group(gradient, k.shape[2]))
    return effect.reshape(*effect.shape[:2], -1)


def effect_of_keys(
    gradient: Float[Array, "b n p s"], there: Values, here: Values, attn: Attention, at: LayerContext
) -> Float[Array, "b s k"]:
    """(pattern with each key from there - pattern here) · gradient by the pattern, summed over all who read the key.

    A key moves one score in every row, and the row's other entries keep their proportions. With L the log of the sum of
    their exponentials, G their mean gradient and σ the logistic function, that is exactly

        (σ(new score - L) - σ(score - L)) · (gradient - G)
    """
    (_, other_k), (q, k) = queries_and_keys(attn, there, at), queries_and_keys(attn, here, at)
    scores, new = (attn.scores(q, keys, at) for keys in (k, other_k))
    seen = visible(at.low, at.high, at.real, scores.ndim)
    gradient = by_group(gradient, k.shape[2])
    log_total, mean = others(jnp.where(seen, scores, -jnp.inf), gradient)
    if attn.sink is not None:  # one more entry of every row, with no gradient
        log_total, mean = beside(log_total, mean, attn.sink)
    gain = jax.nn.sigmoid(new - log_total) - jax.nn.sigmoid(scores - log_total)
    return jnp.einsum("bkgps->bsk", jnp.where(seen, gain * (gradient - mean), 0))


def beside(log_total: Float[Array, "*b s"], mean: Float[Array, "*b s"], sink: Float[Array, "*n 1 1"]):
    """The log of a sum of exponentials and the mean weighed by them, with a sink whose own value is 0."""
    together = jnp.logaddexp(log_total, sink)
    return together, mean * jnp.exp(log_total - together)


def others(scores: Float[Array, "*b s"], values: Float[Array, "*b s"]) -> tuple[Array, Array]:
    """For every entry, of all others in its row: the log of the sum of exponentials, and the mean weighed by these.

    Those before it and those after it are summed up apart, so that nothing is taken off again and nothing cancels.
    """

    def together(one, other):
        (log_total, mean), (log_other, other_mean) = one, other
        share = jnp.where(log_other > -jnp.inf, jax.nn.sigmoid(log_other - log_total), 0)
        return jnp.logaddexp(log_total, log_other), mean + (other_mean - mean) * share

    def before(scores, values):
        first = [(0, 0)] * (scores.ndim - 1) + [(1, 0)]
        pair = jnp.pad(scores[..., :-1], first, constant_values=-jnp.inf), jnp.pad(values[..., :-1], first)
        return jax.lax.associative_scan(together, pair, axis=-1)

    after = before(jnp.flip(scores, -1), jnp.flip(values, -1))
    return together(before(scores, values), tuple(jnp.flip(part, -1) for part in after))
