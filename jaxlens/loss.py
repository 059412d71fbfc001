"""The language-model loss and accuracy.

Axes: b batch, p position, v vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


class Output(NamedTuple):
    """What `return_type="both"` gives."""

    logits: Float[Array, "b p v"]
    loss: Float[Array, ""] | Float[Array, "b p-1"]


@functools.partial(jax.jit, static_argnames=("per_token",))
def lm_cross_entropy_loss(
    logits: Float[Array, "b p v"],
    tokens: Int[Array, "b p"],
    attention_mask: Bool[Array, "b p"] | Int[Array, "b p"] | None = None,
    per_token: bool = False,
) -> Float[Array, ""] | Float[Array, "b p-1"]:
    """How surprised the model is by each next token: -log p, in nats, accumulated in float32 at least.

    The mean over all predictions; with `per_token` each of them, [b p-1]. A prediction from or of a token that
    `attention_mask` marks as padding counts nothing: it is 0 per token and left out of the mean.

    Example:
        >>> lm_cross_entropy_loss(jnp.zeros((1, 3, 4)), jnp.array([[0, 1, 2]]))  # log 4
        Array(1.3862944, dtype=float32)
    """
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    losses = optax.softmax_cross_entropy_with_integer_labels(wide[:, :-1], tokens[:, 1:])
    if attention_mask is None:
        return losses if per_token else jnp.mean(losses)
    counted = (attention_mask[:, :-1] & attention_mask[:, 1:]).astype(losses.dtype)
    return losses * counted if per_token else jnp.sum(losses * counted) / jnp.sum(counted)


@functools.partial(jax.jit, static_argnames=("per_token",))
def lm_accuracy(
    logits: Float[Array, "b p v"], tokens: Int[Array, "b p"], per_token: bool = False
) -> Float[Array, ""] | Bool[Array, "b p-1"]:
    """How often the likeliest token is the next one: the fraction, or with `per_token` whether it is, for each.

    Example:
        >>> lm_accuracy(jax.nn.one_hot(jnp.array([[1, 2, 0]]), 3), jnp.array([[0, 1, 0]]))
        Array(0.5, dtype=float32)
    """
    correct = jnp.argmax(logits[:, :-1], axis=-1) == tokens[:, 1:]
    return correct if per_token else jnp.mean(correct)
