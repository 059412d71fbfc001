"""Norms at the scale that they had in a run. They are then linear, and can be applied to each term of a sum.

Axes: l layer, d d_model, k norm of a chain; "..." is batch and position, whichever there are.

    x = Σ terms ─ center (LN only) ─ ÷ scale ─ × w ─┬─ + b ─ W_U ─ + b_U ─ logits (before a soft cap)
                └────────── linear, term by term ───┘ └────── a constant, equal for all x ───┘
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens.model.request import checked_ids
from jaxlens.nn.module import arrays
from jaxlens.nn.norm import Identity, Norm, OutputScale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LinearNorm:
    """A norm at a fixed scale. Without fields it is the identity.

    Example:
        >>> norm = LinearNorm(scale=jnp.array([2.0]), w=jnp.array([1.0, 3.0]), centres=True)
        >>> norm.apply(jnp.array([5.0, 1.0])).tolist(), norm.pull_back(jnp.array([1.0, 1.0])).tolist()
        ([1.0, -3.0], [-1.0, 1.0])
    """

    scale: Float[Array, "... 1"] | None = None
    w: Float[Array, "*l d"] | None = None
    b: Float[Array, "*l d"] | None = None
    centres: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def at(cls, norm: Norm | Identity | OutputScale | None, scale: Float[Array, "... 1"] | None = None) -> "LinearNorm":
        """A norm of the model at a scale; the identity if the model has none."""
        if norm is None or isinstance(norm, Identity):
            return cls()
        if isinstance(norm, OutputScale):
            return cls(w=jnp.full(1, norm.cfg.residual_scale, norm.cfg.dtype))
        return cls(scale, norm.multiplier, norm.b, norm.centres)

    def apply(self, x: Float[Array, "*terms d"]) -> Float[Array, "*terms d"]:
        """Applies the norm to terms of its input, without its bias."""
        x = self.divide(_centred(x) if self.centres else x)
        return x if self.w is None else x * self.w

    def pull_back(self, direction: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Pulls a direction back through the norm: `apply(x) @ direction == divide(x @ pull_back(direction))`."""
        direction = direction if self.w is None else direction * self.w
        return _centred(direction) if self.centres else direction

    def divide(self, x: Float[Array, "*terms d"]) -> Float[Array, "*terms d"]:
        return x if self.scale is None else x / self.scale


IDENTITY = LinearNorm()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class NormChain:
    """A sequence of k norms, with the interface of LinearNorm. Layer l leaves out the first `skipped[l]` norms.

    Each norm's `w` is divided by the mean of its scale. `scale` is the product of scale / mean over the norms that are
    not left out, which neither overflows nor underflows.
    """

    w: Float[Array, "*l k d"]
    scale: Float[Array, "... 1"]
    skipped: Int[Array, "*l"]
    centres: bool = dataclasses.field(metadata={"static": True})

    @classmethod
    def of_norms(cls, norms: Sequence[LinearNorm], skipped: Sequence[int]) -> "NormChain":
        """A chain for each number in `skipped`, on a leading axis."""
        scales = jnp.stack([norm.scale for norm in norms])  # in float32 or wider, as norms compute them
        means = jnp.mean(scales.reshape(len(norms), -1), axis=1)
        w = jnp.stack([norm.w for norm in norms]) / means[:, None]
        relative = scales / means.reshape(-1, *(1,) * (scales.ndim - 1))
        products = jnp.concatenate((jnp.cumprod(relative[::-1], axis=0)[::-1], jnp.ones_like(relative[:1])))
        rows = np.asarray(skipped, np.int32)
        return cls(jnp.broadcast_to(w, (len(rows), *w.shape)), products[rows], jnp.asarray(rows), norms[0].centres)

    def apply(self, x: Float[Array, "*terms d"]) -> Float[Array, "*terms d"]:
        """Applies the norms to terms of the first one's input, without their biases."""

        def step(x, norm):
            w, number = norm
            return jnp.where(number < self.skipped, x, (_centred(x) if self.centres else x) * w), None

        return self.divide(jax.lax.scan(step, x.astype(jnp.promote_types(x.dtype, self.w.dtype)), self._numbered())[0])

    def pull_back(self, direction: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Pulls a direction back through the norms, without `scale`."""

        def step(direction, norm):
            w, number = norm
            pulled = direction * w
            return jnp.where(number < self.skipped, direction, _centred(pulled) if self.centres else pulled), None

        direction = direction.astype(jnp.promote_types(direction.dtype, self.w.dtype))
        return jax.lax.scan(step, direction, self._numbered(), reverse=True)[0]

    def divide(self, x: Float[Array, "*terms d"]) -> Float[Array, "*terms d"]:
        return x / self.scale

    def _numbered(self) -> tuple[Array, Array]:
        return self.w, jnp.arange(len(self.w))


def _centred(x):
    return x - jnp.mean(x, axis=-1, keepdims=True)


def as_tokens(model: Any, tokens: Any) -> jax.Array:
    """Token ids as an array, from a string or an id, a list of them, or an array; checked against the vocabulary."""
    if isinstance(tokens, list | tuple):
        tokens = [model.to_single_token(token) if isinstance(token, str) else token for token in tokens]
    return checked_ids(model.to_single_token(tokens) if isinstance(tokens, str) else tokens, model.cfg.d_vocab_out)


def logit_direction(
    model: Any, tokens: Any, incorrect_tokens: Any, rows: tuple[int, ...], has_batch_dim: bool
) -> Float[Array, "... d"]:
    """Directions whose dot product with the unembedding's input is the logits of tokens, minus `logit_constant`.

    The logits of `incorrect_tokens`, if given, are subtracted. The directions broadcast against `rows`, the shape of
    batch and position. Tokens [batch] are a token per prompt, for all of its positions.
    """
    right, wrong = _right_and_wrong(model, tokens, incorrect_tokens, rows, has_batch_dim)
    direction = model.tokens_to_residual_directions(right)
    return direction if wrong is None else direction - model.tokens_to_residual_directions(wrong)


def logit_constant(
    model: Any, tokens: Any, incorrect_tokens: Any, rows: tuple[int, ...], has_batch_dim: bool
) -> Float[Array, "..."]:
    """The part of these logits that does not depend on the input, from the biases `ln_final.b` and `unembed.b_U`."""
    right, wrong = _right_and_wrong(model, tokens, incorrect_tokens, rows, has_batch_dim)
    direction = logit_direction(model, right, wrong, rows, has_batch_dim)
    b = LinearNorm.at(arrays(model.modules.ln_final)).b
    constant = model.b_U[right] if wrong is None else model.b_U[right] - model.b_U[wrong]
    return constant if b is None else constant + jnp.matmul(direction, b)


def _right_and_wrong(model: Any, tokens: Any, incorrect_tokens: Any, rows: tuple[int, ...], has_batch_dim: bool):
    """Tokens as arrays that broadcast against the rows."""
    right, wrong = as_tokens(model, tokens), None if incorrect_tokens is None else as_tokens(model, incorrect_tokens)
    if wrong is not None and right.shape != wrong.shape:
        raise ValueError(f"tokens and incorrect_tokens must have the same shape; got {right.shape} and {wrong.shape}")
    shape = () if right.size == 1 else right.shape
    if has_batch_dim and len(rows) > 1 and shape == rows[-2:-1]:
        shape = (*shape, 1)
    if len(shape) > len(rows) or any(n not in (1, m) for n, m in zip(shape[::-1], rows[::-1], strict=False)):
        raise ValueError(f"tokens have shape {shape}, which does not fit batch and position {rows}; pass one token")
    return right.reshape(shape), None if wrong is None else wrong.reshape(shape)
