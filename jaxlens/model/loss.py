"""The language-model loss and accuracy.

Axes: b batch, p position, v vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxlens._jax import is_at_hand, is_traced, on_host, wide
from jaxlens._jax.explicit_axes import Layout, explicit_mesh


class Output(NamedTuple):
    """The result of a run with `return_type="both"`."""

    logits: Float[Array, "b p v"]
    loss: Float[Array, ""] | Float[Array, "b p-1"]


def lm_cross_entropy_loss(
    logits: Float[Array, "b p v"],
    tokens: Int[ArrayLike, "..."],
    attention_mask: Bool[ArrayLike, "..."] | Int[ArrayLike, "..."] | None = None,
    per_token: bool = False,
) -> Float[Array, ""] | Float[Array, "b p-1"]:
    """The cross-entropy of next-token predictions: -log p in nats, accumulated in float32 or wider.

    `tokens` and `attention_mask` are [b p].

    It is the mean over all predictions, or with `per_token` the loss of each, [b p-1]. A prediction from or of a token
    that `attention_mask` marks as padding has a loss of 0, and is not counted in the mean. Without any prediction to
    count, the mean is NaN if the mask is traced, as under jit.

    The loss of a token that has no logit is NaN if tokens are traced or still computed.

    Raises:
        ValueError: The shapes do not fit, a token has no logit, or there is no prediction to count and the mask is not
            traced.

    Example:
        >>> lm_cross_entropy_loss(jnp.zeros((1, 3, 4)), jnp.array([[0, 1, 2]]))  # log 4
        Array(1.3862944, dtype=float32)
    """
    check_shapes(logits, tokens, attention_mask)
    if not per_token:
        check_predictions(tokens, attention_mask)
    check_labels(tokens, attention_mask, logits.shape[-1])
    mesh = explicit_mesh(logits, tokens, attention_mask)
    if mesh is None:
        return _cross_entropy(logits, tokens, attention_mask, per_token)
    layout = Layout.of(mesh, [("b p v", logits), ("b p", tokens)])
    with layout.automatic():
        losses = _cross_entropy(*layout.to_automatic((logits, tokens, attention_mask)), per_token)
    return layout.to_explicit(losses, "b p" if per_token else "")


@functools.partial(jax.jit, static_argnames=("per_token",))
def _cross_entropy(logits, tokens, attention_mask, per_token: bool):
    import optax  # slow to import

    labels = jnp.where(tokens < 0, logits.shape[-1], tokens)[:, 1:]  # optax has NaN for a label outside, not for -1
    logits = wide(logits)[:, :-1]
    if attention_mask is None:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses if per_token else jnp.mean(losses)
    is_token = attention_mask.astype(bool)
    counted = is_token[:, :-1] & is_token[:, 1:]
    # Not a product: logits of padding may be infinite. Those are replaced too, or their gradients would be NaN.
    losses = optax.softmax_cross_entropy_with_integer_labels(jnp.where(counted[..., None], logits, 0), labels)
    losses = jnp.where(counted, losses, 0)
    return losses if per_token else jnp.sum(losses) / jnp.sum(counted)


def check_shapes(logits: Array, tokens: ArrayLike, attention_mask: ArrayLike | None = None) -> None:
    """Raises ValueError unless there are logits of each token, and the mask has an entry for each."""
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
        shapes = f"logits have shape {logits.shape} and tokens {tokens.shape}"
        raise ValueError(f"{shapes}; expected [batch, pos, vocabulary] and [batch, pos]")
    if attention_mask is not None and attention_mask.shape != tokens.shape:
        raise ValueError(f"attention_mask has shape {attention_mask.shape}; expected that of tokens, {tokens.shape}")


def check_labels(tokens: Int[ArrayLike, "b p"], attention_mask: ArrayLike | None, n_logits: int) -> None:
    """Raises ValueError if a token to predict has no logit. Tokens are not checked if traced or still computed."""
    if not (is_at_hand(tokens) and (attention_mask is None or is_at_hand(attention_mask))):
        return
    labels = on_host(tokens)[:, 1:]
    if attention_mask is not None:
        mask = on_host(attention_mask).astype(bool)
        labels = labels[mask[:, :-1] & mask[:, 1:]]
    if (outside := labels[(labels < 0) | (labels >= n_logits)]).size:
        problem = f"token {outside[0]} has no logit to compute a loss from; logits are of tokens 0 to {n_logits - 1}"
        raise ValueError(f"{problem}; compute the loss of the other tokens from the logits")


def check_predictions(tokens: Int[ArrayLike, "b p"], attention_mask: ArrayLike | None = None) -> None:
    """Raises ValueError if no token has a next token, so that a mean over predictions is 0 / 0."""
    if tokens.shape[1] < 2:
        raise ValueError("each token is compared with the next one; pass at least two tokens")
    if attention_mask is None or is_traced(attention_mask):
        return
    mask = on_host(attention_mask).astype(bool)
    if not (mask[:, :-1] & mask[:, 1:]).any():
        problem = "each token is compared with the next one, but attention_mask has no two tokens in a row"
        raise ValueError(f"{problem}; pass a mask with two ones in a row, or ask for the loss per token")


@functools.partial(jax.jit, static_argnames=("per_token",))
def lm_accuracy(
    logits: Float[Array, "b p v"], tokens: Int[ArrayLike, "b p"], per_token: bool = False
) -> Float[Array, ""] | Bool[Array, "b p-1"]:
    """The fraction of next tokens that the model ranks first; with `per_token`, whether it does for each.

    Raises:
        ValueError: The shapes do not fit, or there is no next token.

    Example:
        >>> lm_accuracy(jax.nn.one_hot(jnp.array([[1, 2, 0]]), 3), jnp.array([[0, 1, 0]]))
        Array(0.5, dtype=float32)
    """
    check_shapes(logits, tokens)
    if not per_token:
        check_predictions(tokens)
    correct = jnp.argmax(logits[:, :-1], axis=-1) == tokens[:, 1:]
    return correct if per_token else jnp.mean(correct)
