"""LayerNorm and RMSNorm, and their "Pre" forms, whose weights have been folded into the maps that follow.

Axes: b batch, p position, d d_model (or the axes of a head, for the norms of queries and keys).

    x ─ center (LN only) ─ ÷ (hook_scale) ─(hook_normalized)─ × w + b ─(hook_out)
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlens._jax import inlined, wide, wide_dtype
from jaxlens.config import Config
from jaxlens.nn.module import Module


@functools.partial(inlined, static_argnames=("center", "eps", "n_axes"))
def center_and_scale(x, center: bool, eps: float, n_axes: int):
    """x in float32 or wider, without its mean if `center`, and its root mean square over the last `n_axes` axes."""
    axes = tuple(range(-n_axes, 0))
    x = wide(x)
    if center:
        x = x - jnp.mean(x, axis=axes, keepdims=True)
    return x, jnp.sqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=True) + eps)


@functools.partial(inlined, static_argnames=("dtype",))
def divide(x, scale, dtype):
    return (x / scale).astype(dtype)


@functools.partial(inlined, static_argnames=("offset",))
def apply_weight(normalized, w, b, offset: bool):
    if w is None:
        return normalized
    if not offset and b is None:
        return normalized * w
    dtype = wide_dtype(normalized.dtype)  # rounded once at the end, as in the training of such checkpoints
    weighted = normalized.astype(dtype) * (w.astype(dtype) + offset)
    return (weighted if b is None else weighted + b.astype(dtype)).astype(normalized.dtype)


class Norm(Module):
    """A norm over the last axis of its input, or the last `n_axes`. Its weights have the axes `letters`."""

    w: Float[Array, "*d"] | None = nnx.data()
    b: Float[Array, "*d"] | None = nnx.data()

    def __init__(self, cfg: Config, weights, kind: str | None = None, n_axes: int = 1, eps: float | None = None):
        super().__init__(cfg, weights)
        self.kind, self.n_axes, self.eps = kind or cfg.normalization_type, n_axes, eps or cfg.eps

    @classmethod
    def axes(cls, cfg: Config, letters: str = "d", kind: str | None = None, bias: str = "norm") -> dict[str, str]:
        """The axes of each parameter. A LayerNorm has a bias if `cfg.biases` contains `bias`."""
        kind = kind or cfg.normalization_type
        if kind in ("LNPre", "RMSPre"):
            return {}
        return {"w": letters} | ({"b": letters} if kind == "LN" and bias in cfg.biases else {})

    @property
    def centres(self) -> bool:
        """Whether the norm subtracts the mean."""
        return self.kind.startswith("LN")

    @property
    def multiplier(self) -> Float[Array, "*d"] | None:
        """The factor on the normalized input: w, or 1 + w in float32 or wider. None without weights."""
        return 1 + wide(self.w) if self.w is not None and self.cfg.rmsnorm_uses_offset else self.w

    def __call__(self, x: Float[Array, "b p *d"], tap) -> Float[Array, "b p *d"]:
        centered, scale = center_and_scale(x, self.centres, self.eps, self.n_axes)
        scale = tap("hook_scale", scale)
        normalized = tap("hook_normalized", divide(centered, scale, x.dtype))
        w, offset = self.w, self.cfg.rmsnorm_uses_offset
        if offset and self.kind == "LN":
            # 1 + w is rounded before use, as in the training of such checkpoints. XLA may drop an implicit rounding.
            bits = jnp.finfo(w.dtype)
            w, offset = jax.lax.reduce_precision(w + 1, bits.nexp, bits.nmant), False
        return tap("hook_out", apply_weight(normalized, w, self.b, offset))


class HeadNorm(Norm):
    """The norm of queries or of keys, whose head axis is `heads` ("n" or "k"). It depends on `cfg.qk_norm`.

    "head": it normalizes each head, with weights shared by all heads. "heads": it normalizes each head, with weights
    per head. "full": it normalizes all heads together.
    """

    def __init__(self, cfg: Config, weights, heads: str):
        super().__init__(cfg, weights, cfg.qk_norm_type, n_axes=2 if cfg.qk_norm == "full" else 1)

    @classmethod
    def axes(cls, cfg: Config, heads: str) -> dict[str, str]:
        return super().axes(cfg, "h" if cfg.qk_norm == "head" else f"{heads} h", cfg.qk_norm_type, "qk_norm")


class OutputNorm(Norm):
    """A norm whose output goes to the residual stream. No linear map follows, so its weights are never folded."""

    def __init__(self, cfg: Config, weights):
        super().__init__(cfg, weights, kind=cfg.normalization_type.removesuffix("Pre"))

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        return super().axes(cfg, kind=cfg.normalization_type.removesuffix("Pre"))


class Identity(Module):
    """Replaces a norm that the config leaves out."""

    def __call__(self, x, tap):
        return x


@functools.partial(inlined, static_argnames=("factor",))
def scaled(x, factor: float):
    return x * jnp.asarray(factor, x.dtype)


class OutputScale(Module):
    """Replaces an OutputNorm in models that multiply outputs by `cfg.residual_scale`."""

    def __call__(self, x, tap):
        return scaled(x, self.cfg.residual_scale)
