"""Rotary positions (Su et al. 2021, arXiv 2104.09864) and the ways of stretching them over longer contexts.

Axes: b batch, p position, n head, h d_head, r half of the rotated dimensions, l layer.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens.config import Config, Dynamic, Linear, Llama3, LongRope, Rotary, Yarn


def rotary_tables(cfg: Config, length: Int[Array, ""]) -> tuple[Float[Array, "l r"], Float[Array, "l"]]:
    """Every layer's frequencies (radians per position) and the factor on its rotated queries and keys.

    `length` is the longest sequence in the batch: two of the scalings look at it. A layer without positions has
    frequencies of zero, which turn nothing.
    """
    dim = cfg.rotary_dim
    kinds = list(dict.fromkeys(cfg.rotary))
    which = np.array([kinds.index(rotary) for rotary in cfg.rotary])
    table = jnp.stack([frequencies(kind, dim, length) if kind else jnp.zeros(dim // 2) for kind in kinds])
    return table[which], jnp.stack([attention_factor(kind, length) for kind in kinds])[which]


def attention_factor(rotary: Rotary | None, length: Int[Array, ""]) -> Float[Array, ""]:
    """What rotated queries and keys are multiplied by."""
    match rotary and rotary.scaling:
        case LongRope(original_n_ctx=original, attention_factor=long, short_attention_factor=float(short)):
            return jnp.where(length > original, jnp.float32(long), jnp.float32(short))
        case Yarn() | LongRope() as scaling:
            return jnp.float32(scaling.attention_factor)
        case _:
            return jnp.float32(1)


def frequencies(rotary: Rotary, dim: int, length: Int[Array, ""]) -> Float[Array, "r"]:
    """Radians per position of each rotated pair, scaled as `rotary.scaling` says.

    Example:
        >>> frequencies(Rotary(base=100.0), 4, jnp.array(1))
        Array([1. , 0.1], dtype=float32)
    """
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    # a power rounded once, then a float32 reciprocal: the frequencies that checkpoints were trained with, to the bit
    plain = jnp.asarray(1 / (np.float64(rotary.base) ** exponents).astype(np.float32))
    match rotary.scaling:
        case None:
            return plain
        case Linear(factor):
            return plain / factor
        case Dynamic(factor, original):
            stretch = factor * jnp.maximum(length, original) / original - (factor - 1)
            return 1 / (rotary.base * stretch ** (dim / (dim - 2))) ** exponents
        case Llama3():
            return _by_parts(plain, rotary.scaling)
        case Yarn():
            return _yarn(plain, rotary.scaling, rotary.base, dim)
        case LongRope(short_factor=short, long_factor=long, original_n_ctx=original):
            return plain / jnp.where(length > original, jnp.array(long), jnp.array(short))


def _by_parts(plain: Float[Array, "r"], scaling: Llama3) -> Float[Array, "r"]:
    """Waves longer than the original context are divided, short ones kept, those between are blended."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    waves_per_context = scaling.original_n_ctx * plain / (2 * math.pi)
    kept = jnp.clip((waves_per_context - low) / (high - low), 0, 1)
    return (1 - kept) * plain / scaling.factor + kept * plain


def _yarn(plain: Float[Array, "r"], scaling: Yarn, base: float, dim: int) -> Float[Array, "r"]:
    """A linear ramp over dimensions, from kept (many turns in the original context) to divided (few)."""

    def dimension_with(turns: float) -> float:
        return dim * math.log(scaling.original_n_ctx / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = dimension_with(scaling.beta_fast), dimension_with(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    ramp = (np.arange(dim // 2, dtype=np.float32) - first) / ((last - first) or 0.001)
    divided = jnp.asarray(np.clip(ramp, 0, 1))
    return plain / scaling.factor * divided + plain * (1 - divided)


@functools.partial(jax.jit, static_argnames=("adjacent_pairs",), inline=True)
def rotate(
    x: Float[Array, "b p n h"], cos: Float[Array, "b p r"], sin: Float[Array, "b p r"], adjacent_pairs: bool
) -> Float[Array, "b p n h"]:
    """Turns the first 2r dimensions of every head by the angles whose cosines and sines are given."""
    turning, still = jnp.split(x, [2 * cos.shape[-1]], axis=-1)
    cos, sin = (angle[:, :, None].astype(x.dtype) for angle in (cos, sin))
    if adjacent_pairs:
        first, second = turning[..., 0::2], turning[..., 1::2]
    else:
        first, second = jnp.split(turning, 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    joined = jnp.stack(turned, axis=-1).reshape(turning.shape) if adjacent_pairs else jnp.concatenate(turned, axis=-1)
    return jnp.concatenate((joined, still), axis=-1)
