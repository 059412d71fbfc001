"""Samples the next token from logits: greedily, or at random from all tokens or the likeliest ones.

Axes: b batch, p position, v vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens._jax import is_traced, wide


def sample_logits(
    final_logits: Float[Array, "b v"], top_k: int | None = None, top_p: float | None = None, temperature: float = 1.0,
    freq_penalty: float = 0.0, repetition_penalty: float = 1.0, tokens: Int[Array, "b p"] | None = None, *,
    key: jax.Array | int | None = None,
) -> Int[Array, " b"]:  # fmt: skip
    """Samples one token for every row of logits.

    `temperature` divides the logits; with 0 the likeliest token is chosen. `top_k` limits the choice to the k likeliest
    tokens, `top_p` to the smallest set of likeliest tokens whose probabilities sum to `top_p` (nucleus sampling,
    Holtzman et al. 2019, arXiv 1904.09751).

    The penalties apply to the previous `tokens`. `repetition_penalty` divides positive logits and multiplies negative
    ones, before the temperature (Keskar et al. 2019, arXiv 1909.05858). `freq_penalty` times the number of occurrences
    is subtracted from the logits, after the temperature; it has no effect on a greedy choice.

    `key` is a JAX random key or an integer seed. By default the key is drawn from numpy's global generator, so
    `numpy.random.seed` makes a notebook reproducible. Inside a compiled function, `key` is required.

    Example:
        >>> logits = jnp.array([[1.0, 3.0, 2.0]])
        >>> sample_logits(logits, temperature=0.0)
        Array([1], dtype=int32)
        >>> sample_logits(jnp.tile(logits, (1000, 1)), top_k=2, key=0).min()
        Array(1, dtype=int32)

    Raises:
        ValueError: An argument is out of range, `top_k` and `top_p` are combined, a penalty lacks `tokens`, or `key` is
            missing in a compiled function.
    """
    _check(top_k, top_p, temperature, repetition_penalty)
    penalties = {
        "freq_penalty": freq_penalty or None,
        "repetition_penalty": None if repetition_penalty == 1 else repetition_penalty,
    }
    if any(penalty is not None for penalty in penalties.values()) and np.ndim(tokens) != 2:
        got = "None" if tokens is None else f"shape {np.shape(tokens)}"
        raise ValueError(f"a penalty needs the previous tokens; expected tokens of shape [batch, pos], got {got}")
    if temperature == 0:
        return _sample(None, final_logits, tokens, temperature=None, top_p=None, top_k=None, **penalties)
    key = _key(key, final_logits)
    return _sample(key, final_logits, tokens, temperature=temperature, top_p=top_p, top_k=top_k, **penalties)


def _check(top_k, top_p, temperature, repetition_penalty) -> None:
    if top_k is not None and top_p is not None:
        raise ValueError(f"top_k={top_k} and top_p={top_p} cannot be combined; give one of them")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; expected 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; expected a probability above 0 and at most 1")
    if temperature < 0 or repetition_penalty <= 0:
        given = f"temperature is {temperature} and repetition_penalty is {repetition_penalty}"
        raise ValueError(f"{given}; expected a temperature of 0 or more and a penalty above 0")


def _key(key: jax.Array | int | None, logits: jax.Array) -> jax.Array:
    if isinstance(key, int | np.integer):
        return jax.random.key(key)
    if key is None and is_traced(logits):
        raise ValueError("inside jit, sample_logits needs key=; without it every call would draw the same numbers")
    return jax.random.key(np.random.randint(2**31)) if key is None else key


@functools.partial(jax.jit, static_argnames=("top_k",))
def _sample(key, logits, tokens, *, temperature, top_p, top_k, freq_penalty, repetition_penalty):
    """Samples with the options that are not None. Without a temperature, the likeliest token is chosen."""
    logits = wide(logits)
    if repetition_penalty is not None:
        penalized = jnp.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
        logits = jnp.where(_counts(tokens, logits) > 0, penalized, logits)
    if temperature is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / temperature
    if freq_penalty is not None:
        logits = logits - freq_penalty * _counts(tokens, logits)
    if top_k is not None:
        smallest = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    if top_p is not None:
        logits = _nucleus(logits, top_p)
    return jax.random.categorical(key, logits).astype(jnp.int32)


def _counts(tokens: Int[Array, "b p"], logits: Float[Array, "b v"]) -> Float[Array, "b v"]:
    """The number of occurrences of each token of the vocabulary."""
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros_like(logits).at[rows, tokens].add(1)


def _nucleus(logits: Float[Array, "b v"], top_p: float) -> Float[Array, "b v"]:
    """Sets logits to -inf outside the smallest set of likeliest tokens whose probability reaches `top_p`."""
    order = jnp.argsort(-logits, axis=-1, stable=True)
    cumulative = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1), axis=-1)
    excluded = jnp.pad(cumulative[..., :-1] > top_p, ((0, 0), (1, 0)))
    return jnp.where(jnp.take_along_axis(excluded, jnp.argsort(order, axis=-1), axis=-1), -jnp.inf, logits)
