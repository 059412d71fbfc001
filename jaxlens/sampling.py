"""The next token from logits: greedily, or at random from all or only the likeliest tokens.

Axes: b batch, p position, v vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens.tracing import is_traced


def sample_logits(
    final_logits: Float[Array, "b v"],
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float = 1.0,
    freq_penalty: float = 0.0,
    repetition_penalty: float = 1.0,
    tokens: Int[Array, "b p"] | None = None,
    *,
    key: jax.Array | int | None = None,
) -> Int[Array, " b"]:
    """One token for every row of logits.

    `temperature` divides the logits; 0 takes the likeliest token. `top_k` draws from that many of the likeliest tokens,
    `top_p` from the fewest that have this probability together (nucleus sampling, Holtzman et al. 2019, arXiv
    1904.09751). Of the `tokens` so far, `repetition_penalty` divides logits above zero and multiplies those below
    (Keskar et al. 2019, arXiv 1909.05858), before the temperature; `freq_penalty` is subtracted from the others' logits
    once for each time a token has occurred, after it, and not from those of a greedy choice.

    `key` is a JAX random key or a whole number to make one of. None draws one from numpy's global generator, so that
    `numpy.random.seed` makes a notebook repeatable; a compiled function must be given one.

    Example:
        >>> logits = jnp.array([[1.0, 3.0, 2.0]])
        >>> sample_logits(logits, temperature=0.0)
        Array([1], dtype=int32)
        >>> sample_logits(jnp.tile(logits, (1000, 1)), top_k=2, key=0).min()
        Array(1, dtype=int32)

    Raises:
        ValueError: an argument is out of its range, `top_k` and `top_p` are both given, a penalty has no tokens to look
            at, or `key` is missing in a compiled function.
    """
    _check(top_k, top_p, temperature, repetition_penalty)
    penalties = {"freq_penalty": freq_penalty or None, "repetition_penalty": _unless(1, repetition_penalty)}
    if any(penalty is not None for penalty in penalties.values()) and np.ndim(tokens) != 2:
        got = "None" if tokens is None else f"shape {np.shape(tokens)}"
        raise ValueError(f"a penalty needs the tokens so far, [batch, pos]; got {got}")
    if temperature == 0:
        return _choose(None, final_logits, tokens, temperature=None, top_p=None, top_k=None, **penalties)
    key = _key(key, final_logits)
    return _choose(key, final_logits, tokens, temperature=temperature, top_p=top_p, top_k=top_k, **penalties)


def _check(top_k, top_p, temperature, repetition_penalty) -> None:
    if top_k is not None and top_p is not None:
        raise ValueError(f"top_k ({top_k}) and top_p ({top_p}) exclude each other; give one")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; wanted 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; wanted a probability above 0, at most 1")
    if temperature < 0 or repetition_penalty <= 0:
        raise ValueError(
            f"temperature is {temperature} and repetition_penalty {repetition_penalty}; wanted 0 or more, and above 0"
        )


def _unless(nothing: float, value: float) -> float | None:
    return None if value == nothing else value


def _key(key: jax.Array | int | None, logits: jax.Array) -> jax.Array:
    if isinstance(key, int | np.integer):
        return jax.random.key(key)
    if key is None and is_traced(logits):
        raise ValueError("a compiled function would draw the same numbers for ever; give sample_logits a key=")
    return jax.random.key(np.random.randint(2**31)) if key is None else key


@functools.partial(jax.jit, static_argnames=("top_k",))
def _choose(key, logits, tokens, *, temperature, top_p, top_k, freq_penalty, repetition_penalty):
    """What is None has no part in it."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if repetition_penalty is not None:
        penalised = jnp.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
        logits = jnp.where(_counts(tokens, logits) > 0, penalised, logits)
    if temperature is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / temperature
    if freq_penalty is not None:
        logits = logits - freq_penalty * _counts(tokens, logits)
    if top_k is not None:
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        logits = _nucleus(logits, top_p)
    return jax.random.categorical(key, logits).astype(jnp.int32)


def _counts(tokens: Int[Array, "b p"], logits: Float[Array, "b v"]) -> Float[Array, "b v"]:
    """How often each token of the vocabulary has occurred."""
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros_like(logits).at[rows, tokens].add(1)


def _nucleus(logits: Float[Array, "b v"], top_p: float) -> Float[Array, "b v"]:
    """The likeliest tokens that have probability `top_p` together, the one that reaches it included; others -inf."""
    order = jnp.argsort(-logits, axis=-1, stable=True)
    reached = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1), axis=-1)
    too_many = jnp.pad(reached[..., :-1] > top_p, ((0, 0), (1, 0)))
    return jnp.where(jnp.take_along_axis(too_many, jnp.argsort(order, axis=-1), axis=-1), -jnp.inf, logits)
