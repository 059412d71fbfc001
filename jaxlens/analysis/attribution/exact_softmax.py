"""The correction of AtP*: the attention pattern with another query or key, computed exactly instead of linearized.

A saturated softmax is flat, so its derivative does not predict the effect of a large change of a query or a key. The
pattern with the other query or key is cheap to compute exactly. From the pattern on, the effect is linear again (Kramár
et al. 2024, arXiv 2403.00745, section 3.1).

Axes: b batch, p query position, s source position, n query head, k key/value head, g query heads per key/value head,
h d_head.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens.hooks.tap import Tap
from jaxlens.nn.attention import Attention
from jaxlens.nn.scores import by_group, heads_first, masked_softmax, visible
from jaxlens.nn.sequence import LayerInfo

PATTERN = "attn.hook_pattern"
Values = Mapping[str, Array]
"""The values of a layer at ATTENTION_INPUTS."""

ATTENTION_INPUTS = ("attn.hook_q", "attn.hook_k")


def queries_and_keys(attn: Attention, values: Values, info: LayerInfo) -> list[Float[Array, "b p n h"]]:
    """Queries [b p n h] and keys [b s k h] as they enter the dot product."""
    return [attn.prepared(values[site], site[-1], info, Tap()) for site in ATTENTION_INPUTS]


def effect_of_queries(
    gradient: Float[Array, "b n p s"], clean: Values, corrupted: Values, attn: Attention, info: LayerInfo
) -> Float[Array, "b p n"]:
    """(pattern with the clean query - corrupted pattern) · gradient with respect to the pattern."""
    (clean_q, _), (q, k) = queries_and_keys(attn, clean, info), queries_and_keys(attn, corrupted, info)
    scores, clean_scores = (attn.scores(queries, heads_first(k), info) for queries in (q, clean_q))
    before, after = (masked_softmax(x, info.low, info.high, info.sources, attn.sink) for x in (scores, clean_scores))
    effect = jnp.einsum("bkgps,bkgps->bpkg", after - before, by_group(gradient, k.shape[2]))
    return effect.reshape(*effect.shape[:2], -1)


def effect_of_keys(
    gradient: Float[Array, "b n p s"], clean: Values, corrupted: Values, attn: Attention, info: LayerInfo
) -> Float[Array, "b s k"]:
    """(pattern with the clean key - corrupted pattern) · gradient with respect to the pattern, summed over queries.

    A key changes one score in each row of the pattern. The other entries of the row keep their proportions. With L the
    log of the sum of their exponentials, G their mean gradient and σ the logistic function, the effect is exactly

        (σ(clean score - L) - σ(corrupted score - L)) · (gradient - G)
    """
    (_, clean_k), (q, k) = queries_and_keys(attn, clean, info), queries_and_keys(attn, corrupted, info)
    scores, clean_scores = (attn.scores(q, heads_first(keys), info) for keys in (k, clean_k))
    allowed = visible(info.low, info.high, info.sources, scores.ndim)
    gradient = by_group(gradient, k.shape[2])
    log_total, mean = over_other_entries(jnp.where(allowed, scores, -jnp.inf), gradient)
    if attn.sink is not None:  # an additional entry in every row, without a gradient
        log_total, mean = with_sink(log_total, mean, attn.sink)
    gain = jax.nn.sigmoid(clean_scores - log_total) - jax.nn.sigmoid(scores - log_total)
    return jnp.einsum("bkgps->bsk", jnp.where(allowed, gain * (gradient - mean), 0))


def with_sink(log_total: Float[Array, "*b s"], mean: Float[Array, "*b s"], sink: Float[Array, "*n 1 1"]):
    """The log of the sum of exponentials and the weighted mean, after a sink logit of value 0 is included."""
    new_total = jnp.logaddexp(log_total, sink)
    return new_total, mean * jnp.exp(log_total - new_total)


def over_other_entries(scores: Float[Array, "*b s"], values: Float[Array, "*b s"]) -> tuple[Array, Array]:
    """For every entry, over the other entries of its row: log(sum(exp(scores))), and the mean weighted by exp(scores).

    Entries before and after it are summed separately. Nothing is subtracted, so no precision is lost.
    """

    def combined(left, right):
        (log_total, mean), (right_total, right_mean) = left, right
        share = jnp.where(right_total > -jnp.inf, jax.nn.sigmoid(right_total - log_total), 0)
        return jnp.logaddexp(log_total, right_total), mean + (right_mean - mean) * share

    def before(scores, values):
        first = [(0, 0)] * (scores.ndim - 1) + [(1, 0)]
        pair = jnp.pad(scores[..., :-1], first, constant_values=-jnp.inf), jnp.pad(values[..., :-1], first)
        return jax.lax.associative_scan(combined, pair, axis=-1)

    after = before(jnp.flip(scores, -1), jnp.flip(values, -1))
    return combined(before(scores, values), tuple(jnp.flip(array, -1) for array in after))
