"""The frequencies of rotary positions (Su et al. 2021, arXiv 2104.09864) and their scalings for longer contexts.

The rotation is in nn/attention.py. Axes: r half of the rotated dimensions, l layer, z kind of rotary positions.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens._jax import wide_dtype
from jaxlens.config import Config, Dynamic, Linear, Llama3, LongRope, Rotary, Yarn


def rotary_kinds(cfg: Config) -> tuple[list[Rotary | None], Int[np.ndarray, "l"]]:
    """The different rotary positions of a model's layers, of which most models have one, and which a layer has."""
    kinds = list(dict.fromkeys(cfg.rotary))
    return kinds, np.array([kinds.index(rotary) for rotary in cfg.rotary], np.int32)


def rotary_tables(cfg: Config, lengths: Int[Array, "b"]) -> tuple[Float[Array, "z #b 1 r"], Float[Array, "z #b 1 1"]]:
    """Frequencies of every kind, in radians per position, and factors on rotated queries and keys.

    `lengths` are those of the rows of the batch, without padding; two of the scalings depend on them. For the others
    the axis of rows has length 1. A layer without position information has frequencies of zero. The tables are float64
    for float64 models, else float32.
    """
    dim, lengths, dtype = cfg.rotary_dim, lengths[:, None], wide_dtype(cfg.dtype)
    kinds, _ = rotary_kinds(cfg)

    def table(values: list[Array]) -> Float[Array, "z #b 1 #r"]:
        return jnp.stack(jnp.broadcast_arrays(*map(jnp.atleast_2d, values)))[:, :, None].astype(dtype)

    return (
        table([frequencies(kind, dim, lengths, dtype) if kind else jnp.zeros(dim // 2) for kind in kinds]),
        table([attention_factor(kind, lengths, dtype) for kind in kinds]),
    )


def rotations(
    cfg: Config, positions: Int[Array, "b p"], lengths: Int[Array, "b"]
) -> tuple[Float[Array, "z b p r"], Float[Array, "z b p r"]]:
    """Cosines and sines of the rotation at these positions, for every kind, with the factors on queries and keys."""
    frequencies, factors = rotary_tables(cfg, lengths)
    angles = positions[..., None].astype(frequencies.dtype) * frequencies
    return jnp.cos(angles) * factors, jnp.sin(angles) * factors


def attention_factor(
    rotary: Rotary | None, length: Int[Array, "*b"], dtype: Any
) -> Float[Array, ""] | Float[Array, "*b"]:  # fmt: skip
    """The factor that multiplies rotated queries and keys."""
    match rotary and rotary.scaling:
        case LongRope(original_n_ctx=original, attention_factor=long, short_attention_factor=float(short)):
            return jnp.where(length > original, jnp.array(long, dtype), jnp.array(short, dtype))
        case Yarn() | LongRope() as scaling:
            return jnp.array(scaling.attention_factor, dtype)
        case _:
            return jnp.array(1, dtype)


def frequencies(
    rotary: Rotary, dim: int, length: Int[Array, ""] | Int[Array, "b 1"], dtype: Any = "float32"
) -> Float[Array, "r"] | Float[Array, "b r"]:
    """Radians per position of each rotated pair, with `rotary.scaling` applied.

    Example:
        >>> frequencies(Rotary(base=100.0), 4, jnp.array(1))
        Array([1. , 0.1], dtype=float32)
    """
    exponents = np.arange(0, dim, 2, dtype=dtype) / np.array(dim, dtype)
    # In float32 a power that is rounded once, then a reciprocal: bit for bit the frequencies of torch.
    plain = jnp.asarray(1 / (np.float64(rotary.base) ** exponents).astype(dtype))
    match rotary.scaling:
        case None:
            return plain
        case Linear(factor):
            return plain / factor
        case Dynamic(factor, original):
            growth = factor * jnp.maximum(length, original) / original - (factor - 1)
            return 1 / (rotary.base * growth ** (dim / (dim - 2))) ** exponents
        case Llama3():
            return _llama3(plain, rotary.scaling)
        case Yarn():
            return _yarn(plain, rotary.scaling, rotary.base, dim)
        case LongRope(short_factor=short, long_factor=long, original_n_ctx=original):
            return plain / jnp.where(length > original, jnp.array(long, dtype), jnp.array(short, dtype))


def _llama3(plain: Float[Array, "r"], scaling: Llama3) -> Float[Array, "r"]:
    """Divides low frequencies by the factor, keeps high ones, and interpolates between them.

    As in transformers, a frequency below `low` is divided also if `low` is above `high`.
    """
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    waves_per_context = scaling.original_n_ctx * plain / (2 * math.pi)
    ramp = (waves_per_context - low) / (high - low)
    kept = jnp.where(waves_per_context < low, 0, jnp.where(waves_per_context > high, 1, ramp))
    return (1 - kept) * plain / scaling.factor + kept * plain


def _yarn(plain: Float[Array, "r"], scaling: Yarn, base: float, dim: int) -> Float[Array, "r"]:
    """Keeps high frequencies, divides low ones by the factor, with a linear ramp over the dimensions between them."""

    def dimension_with(rotations: float) -> float:
        return dim * math.log(scaling.original_n_ctx / (rotations * 2 * math.pi)) / (2 * math.log(base))

    first, last = dimension_with(scaling.beta_fast), dimension_with(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    ramp = (np.arange(dim // 2, dtype=plain.dtype) - first) / ((last - first) or 0.001)
    divided = jnp.asarray(np.clip(ramp, 0, 1))
    return plain / scaling.factor * divided + plain * (1 - divided)
