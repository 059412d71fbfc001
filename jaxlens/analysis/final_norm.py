"""Norms taken apart: at the scale that a norm had in a run it is linear, so every term of its input counts by itself.

Axes: d d_model, v vocabulary, k norm of a chain; "..." is batch and position, whichever there are.

    x = Σ terms ─ centre (LN only) ─ ÷ scale ─ × w ─┬─ + b ─ W_U ─ + b_U ─ logits (before a soft cap)
                └────────── linear: term by term ───┘ └── the same for every x: a constant ──┘
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens.nn.norm import NoNorm, Norm, OutputScale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FixedNorm:
    """A norm whose scale is known; one without fields is the identity.

    Example:
        >>> norm = FixedNorm(scale=jnp.array([2.0]), w=jnp.array([1.0, 3.0]), centres=True)
        >>> norm.of(jnp.array([5.0, 1.0])).tolist(), norm.before(jnp.array([1.0, 1.0])).tolist()
        ([1.0, -3.0], [-1.0, 1.0])
    """

    scale: Float[Array, "... 1"] | None = None
    w: Float[Array, "*l d"] | None = None
    b: Float[Array, "*l d"] | None = None
    centres: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def at(cls, norm: Norm | NoNorm | None, scale: Float[Array, "... 1"] | None = None) -> "FixedNorm":
        """A norm of the model at a scale; where the model has none, the identity."""
        if norm is None or isinstance(norm, NoNorm):
            return cls()
        if isinstance(norm, OutputScale):
            return cls(w=jnp.full(1, norm.cfg.residual_scale, norm.cfg.dtype))
        w = norm.w
        if w is not None and norm.cfg.rmsnorm_uses_offset:
            w = 1 + w.astype(jnp.promote_types(w.dtype, jnp.float32))
        return cls(scale, w, norm.b, norm.kind.startswith("LN"))

    def of(self, x: Float[Array, "*terms d"]) -> Float[Array, "*terms d"]:
        """What the norm makes of terms of its input, its bias apart."""
        x = self.divide(_centred(x) if self.centres else x)
        return x if self.w is None else x * self.w

    def before(self, direction: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """A direction behind the norm, from in front of it: `of(x) @ direction == x @ before(direction) / scale`."""
        direction = direction if self.w is None else direction * self.w
        return _centred(direction) if self.centres else direction

    def divide(self, x: Float[Array, "*terms d"]) -> Float[Array, "*terms d"]:
        """x divided by the scale alone."""
        return x if self.scale is None else x / self.scale


IDENTITY = FixedNorm()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chain:
    """Norms one after another, without the first `skipped`: what terms go through where every sum is normalised.

    It is used as a FixedNorm is. Only scales differ from position to position, so a direction goes through the norms
    without them. The mean of each scale stands with its norm's weight: a product of what is left remains near one.
    """

    w: Float[Array, "*l k d"]
    scale: Float[Array, "... 1"]
    skipped: Int[Array, "*l"]
    centres: bool = dataclasses.field(metadata={"static": True})

    @classmethod
    def of_norms(cls, norms: Sequence[FixedNorm], skipped: Sequence[int]) -> "Chain":
        """A chain for each number in `skipped`, on a leading axis."""
        scales = jnp.stack([norm.scale for norm in norms])  # in float32 at least, as norms compute them
        typical = jnp.mean(scales.reshape(len(norms), -1), axis=1)
        w = jnp.stack([norm.w for norm in norms]) / typical[:, None]
        left = scales / typical.reshape(-1, *(1,) * (scales.ndim - 1))
        onward = jnp.concatenate((jnp.cumprod(left[::-1], axis=0)[::-1], jnp.ones_like(left[:1])))
        rows = np.asarray(skipped, np.int32)
        return cls(jnp.broadcast_to(w, (len(rows), *w.shape)), onward[rows], jnp.asarray(rows), norms[0].centres)

    def of(self, x: Float[Array, "*terms d"]) -> Float[Array, "*terms d"]:
        """What the norms make of terms of the first one's input, their biases apart."""

        def one(x, norm):
            w, number = norm
            return jnp.where(number < self.skipped, x, (_centred(x) if self.centres else x) * w), None

        return self.divide(jax.lax.scan(one, x.astype(jnp.promote_types(x.dtype, self.w.dtype)), self._numbered())[0])

    def before(self, direction: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """A direction behind the norms, from in front of them, apart from their scales."""

        def one(direction, norm):
            w, number = norm
            moved = direction * w
            return jnp.where(number < self.skipped, direction, _centred(moved) if self.centres else moved), None

        wide = direction.astype(jnp.promote_types(direction.dtype, self.w.dtype))
        return jax.lax.scan(one, wide, self._numbered(), reverse=True)[0]

    def divide(self, x: Float[Array, "*terms d"]) -> Float[Array, "*terms d"]:
        """x divided by the scales alone, as far as they differ from their means."""
        return x / self.scale

    def _numbered(self) -> tuple[Array, Array]:
        return self.w, jnp.arange(len(self.w))


def _centred(x):
    return x - jnp.mean(x, axis=-1, keepdims=True)


def before_final_norm(model: Any, direction: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """A direction behind the final norm, seen from in front of it, apart from the scale of the norm.

    With s the cached `ln_final.hook_scale`, `x @ before_final_norm(model, model.W_U[:, token]) / s` is what a term x of
    the last residual stream adds to the logit of a token, whether the norm's weight is folded into W_U or not.
    """
    return _before(FixedNorm.at(model.parts.ln_final), direction)


_before = jax.jit(FixedNorm.before)


def as_tokens(model: Any, tokens: Any) -> jax.Array:
    """Tokens as an array of numbers, from a string or a number, a list of them, or an array.

    Raises:
        ValueError, TypeError: they are not of the vocabulary.
    """
    if isinstance(tokens, list | tuple):
        tokens = [model.to_single_token(token) if isinstance(token, str) else token for token in tokens]
    numbers = jnp.asarray(model.to_single_token(tokens) if isinstance(tokens, str) else tokens)
    model._check_vocabulary(numbers, model.cfg.d_vocab_out)
    return numbers


def logit_direction(
    model: Any, tokens: Any, incorrect_tokens: Any, rows: tuple[int, ...], has_batch_dim: bool
) -> Float[Array, "... d"]:
    """What is dotted with the unembedding's input to give the logits of tokens, or how far they are above others'.

    Apart from `logit_constant`. It broadcasts against `rows`, the shape of batch and position; tokens [batch] are one
    for each prompt, at all of its positions.

    Raises:
        ValueError: the tokens do not fit the rows, or are not of the same shape as the incorrect ones.
    """
    right, wrong = _right_and_wrong(model, tokens, incorrect_tokens, rows, has_batch_dim)
    direction = model.tokens_to_residual_directions(right)
    return direction if wrong is None else direction - model.tokens_to_residual_directions(wrong)


def logit_constant(
    model: Any, tokens: Any, incorrect_tokens: Any, rows: tuple[int, ...], has_batch_dim: bool
) -> Float[Array, "..."]:
    """The part of the same logits that no input changes: the final norm's bias along their direction, and b_U."""
    right, wrong = _right_and_wrong(model, tokens, incorrect_tokens, rows, has_batch_dim)
    direction, b = logit_direction(model, right, wrong, rows, has_batch_dim), FixedNorm.at(model.parts.ln_final).b
    constant = model.b_U[right] if wrong is None else model.b_U[right] - model.b_U[wrong]
    return constant if b is None else constant + jnp.matmul(direction, b, precision="highest")


def _right_and_wrong(model: Any, tokens: Any, incorrect_tokens: Any, rows: tuple[int, ...], has_batch_dim: bool):
    """Tokens as arrays that broadcast against the rows."""
    right, wrong = as_tokens(model, tokens), None if incorrect_tokens is None else as_tokens(model, incorrect_tokens)
    if wrong is not None and right.shape != wrong.shape:
        raise ValueError(f"tokens and incorrect_tokens must have the same shape; got {right.shape} and {wrong.shape}")
    shape = () if right.size == 1 else right.shape
    if has_batch_dim and len(rows) > 1 and shape == rows[-2:-1]:
        shape = (*shape, 1)
    if len(shape) > len(rows) or any(n not in (1, m) for n, m in zip(shape[::-1], rows[::-1], strict=False)):
        raise ValueError(f"tokens of shape {shape} do not fit batch and position, {rows}; give one, or one for each")
    return right.reshape(shape), None if wrong is None else wrong.reshape(shape)
