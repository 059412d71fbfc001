"""Samples the next token from logits: greedily, or at random from all tokens or the likeliest ones.

Axes: b batch, p position, v vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxlens._jax import is_traced, wide


def sample_logits(
    final_logits: Float[Array, "b v"], top_k: int | None = None, top_p: float | None = None, temperature: float = 1.0,
    freq_penalty: float = 0.0, repetition_penalty: float = 1.0, tokens: Int[Array, "b p"] | None = None, *,
    min_p: float | None = None, key: jax.Array | int | None = None,
) -> Int[Array, " b"]:  # fmt: skip
    """Samples one token for every row of logits.

    `temperature` divides the logits; with 0 the likeliest token is chosen. `top_k` limits the choice to the k likeliest
    tokens, `top_p` to the smallest set of likeliest tokens whose probabilities sum to `top_p` (nucleus sampling,
    Holtzman et al. 2019, arXiv 1904.09751), and `min_p` to tokens with at least `min_p` times the probability of the
    likeliest one (Nguyen et al. 2024, arXiv 2407.01082).

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
        TypeError: `key` is neither an integer nor a key.
        ValueError: An argument is out of range, `top_k` and `top_p` are combined, a penalty lacks `tokens`, or `key` is
            missing in a compiled function.
    """
    sampler = Sampler.of(temperature, top_k, top_p, min_p, freq_penalty, repetition_penalty)
    if sampler.has_penalty and np.ndim(tokens) != 2:
        got = "None" if tokens is None else f"shape {np.shape(tokens)}"
        raise ValueError(f"a penalty needs the previous tokens; expected tokens of shape [batch, pos], got {got}")
    return sampler(None if sampler.is_greedy else random_key(key, final_logits), final_logits, tokens)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampler:
    """How tokens are chosen; see `sample_logits`. The numbers are data, except `top_k`. None switches a rule off.

    Without a temperature, the likeliest token is chosen.
    """

    temperature: ArrayLike | None
    top_k: int | None = dataclasses.field(metadata={"static": True})
    top_p: ArrayLike | None
    min_p: ArrayLike | None
    freq_penalty: ArrayLike | None
    repetition_penalty: ArrayLike | None

    @classmethod
    def of(
        cls, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None,
        freq_penalty: float = 0.0, repetition_penalty: float = 1.0,
    ) -> "Sampler":  # fmt: skip
        """The sampler of these arguments of `sample_logits`.

        Raises:
            ValueError: An argument is out of range, or `top_k` and `top_p` are combined.
        """
        if top_k is not None and top_p is not None:
            raise ValueError(f"top_k={top_k} and top_p={top_p} cannot be combined; give one of them")
        if top_k is not None and not (isinstance(top_k, int | np.integer) and top_k >= 1):
            raise ValueError(f"top_k is {top_k!r}; expected an integer, 1 or more")
        probability = "a probability above 0 and at most 1"
        share = "a share of the highest probability above 0 and at most 1"
        top_p = None if top_p is None else _number("top_p", top_p, lambda p: 0 < p <= 1, probability)
        min_p = None if min_p is None else _number("min_p", min_p, lambda p: 0 < p <= 1, share)
        temperature = _number("temperature", temperature, lambda t: t >= 0, "a number, 0 or more")
        frequency = _number("freq_penalty", freq_penalty, np.isfinite, "a finite number")
        repetition = _number("repetition_penalty", repetition_penalty, lambda r: r > 0, "a number above 0")
        repetition = None if repetition == 1 else repetition
        if temperature == 0:
            return cls(None, None, None, None, None, repetition)
        return cls(temperature, top_k, top_p, min_p, frequency or None, repetition)

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is random."""
        return self.temperature is None

    @property
    def has_penalty(self) -> bool:
        """Whether it needs the previous tokens."""
        return self.freq_penalty is not None or self.repetition_penalty is not None

    @jax.jit
    def __call__(
        self, key: jax.Array | None, logits: Float[Array, "b v"], tokens: Int[Array, "b p"] | None,
        mask: Bool[Array, "b p"] | None = None,
    ) -> Int[Array, " b"]:  # fmt: skip
        """A token for every row. `mask` is False where `tokens`, the previous ones, are padding."""
        logits = wide(logits)
        counts = _counts(tokens, mask, logits) if self.has_penalty else None
        if self.repetition_penalty is not None:
            by = self.repetition_penalty
            penalized = jnp.where(logits > 0, logits / by, logits * by)
            logits = jnp.where(counts > 0, penalized, logits)
        if self.temperature is None:
            return _likeliest(logits)
        logits = logits / self.temperature
        if self.freq_penalty is not None:
            logits = logits - self.freq_penalty * counts
        if self.top_k is not None:
            smallest = jax.lax.top_k(logits, min(self.top_k, logits.shape[-1]))[0][..., -1:]
            logits = jnp.where(logits < smallest, -jnp.inf, logits)
        if self.top_p is not None:
            logits = _nucleus(logits, self.top_p)
        if self.min_p is not None:
            floor = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(self.min_p)
            logits = jnp.where(logits < floor, -jnp.inf, logits)
        return jax.random.categorical(key, logits).astype(jnp.int32)


def _likeliest(logits: Float[Array, "b v"]) -> Int[Array, " b"]:
    """The first of the highest logits, or the first that is NaN, as `argmax` has it.

    XLA's argmax on CPUs reads one value at a time, which takes longer than two vectorized reductions.
    """
    chosen = (logits == jnp.max(logits, axis=-1, keepdims=True)) | jnp.isnan(logits)
    indices = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return jnp.min(jnp.where(chosen, indices, logits.shape[-1] - 1), axis=-1)


def _number(name: str, value: Any, is_valid: Callable[[float], bool], expected: str) -> np.float32:
    """An argument as float32, so that numbers of all types share compiled programs.

    Raises:
        ValueError: It is no number, or not valid.
    """
    array = np.asarray(value)
    is_number = array.ndim == 0 and jnp.isdtype(array.dtype, ("integral", "real floating"))
    if not (is_number and is_valid(float(array))):
        raise ValueError(f"{name} is {value!r}; expected {expected}")
    return np.float32(array)


def random_key(key: jax.Array | int | None, logits: Any = None) -> jax.Array:
    """The JAX key of a key or a seed. By default it is drawn by numpy; not if `logits` are traced."""
    if isinstance(key, int | np.integer):
        return jax.random.key(key)
    if not (key is None or isinstance(key, jax.Array)):
        raise TypeError(f"the seed or key is a {type(key).__name__}; expected an integer or a JAX random key")
    if key is None and is_traced(logits):
        raise ValueError("inside jit, sample_logits needs key=; without it every call would draw the same numbers")
    return jax.random.key(np.random.randint(2**31)) if key is None else key


def _counts(
    tokens: Int[Array, "b p"], mask: Bool[Array, "b p"] | None, logits: Float[Array, "b v"]
) -> Float[Array, "b v"]:
    """The number of occurrences of each token of the vocabulary, without padding."""
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros_like(logits).at[rows, tokens].add(1 if mask is None else mask.astype(logits.dtype))


def _nucleus(logits: Float[Array, "b v"], top_p: float) -> Float[Array, "b v"]:
    """Sets logits to -inf outside the smallest set of likeliest tokens whose probability reaches `top_p`."""
    order = jnp.argsort(-logits, axis=-1, stable=True)
    cumulative = jnp.cumsum(jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1), axis=-1)
    excluded = jnp.pad(cumulative[..., :-1] > top_p, ((0, 0), (1, 0)))
    return jnp.where(jnp.take_along_axis(excluded, jnp.argsort(order, axis=-1), axis=-1), -jnp.inf, logits)
