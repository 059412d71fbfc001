"""LayerNorm and RMSNorm, and their "Pre" forms whose weights have been folded into what follows.

Axes: b batch, p position, d d_model (or the axes of a head, for the norms of queries and keys).

    x ─ centre (LN only) ─ ÷ (hook_scale) ─(hook_normalized)─ × w + b
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlens.config import Config
from jaxlens.nn.part import Part


@functools.partial(jax.jit, static_argnames=("centre", "eps", "n_axes"), inline=True)
def spread(x, centre: bool, eps: float, n_axes: int):
    """x (centred, if asked) and its root mean square over the last axes, in float32 at least."""
    over = tuple(range(-n_axes, 0))
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if centre:
        x = x - jnp.mean(x, axis=over, keepdims=True)
    return x, jnp.sqrt(jnp.mean(jnp.square(x), axis=over, keepdims=True) + eps)


@functools.partial(jax.jit, static_argnames=("dtype",), inline=True)
def divide(x, scale, dtype):
    return (x / scale).astype(dtype)


@functools.partial(jax.jit, static_argnames=("offset",), inline=True)
def weigh(normalized, w, b, offset: bool):
    if w is None:
        return normalized
    if not offset and b is None:
        return normalized * w
    wide = jnp.promote_types(normalized.dtype, jnp.float32)  # and rounded once, as such checkpoints were trained
    weighed = normalized.astype(wide) * (w.astype(wide) + offset)
    return (weighed if b is None else weighed + b.astype(wide)).astype(normalized.dtype)


class Norm(Part):
    """A norm over the last axis of what it is given, or the last `n_axes`; its weights have the axes `letters`."""

    w: Float[Array, "*d"] | None = nnx.data()
    b: Float[Array, "*d"] | None = nnx.data()

    def __init__(self, cfg: Config, weights, kind: str | None = None, n_axes: int = 1, eps: float | None = None):
        super().__init__(cfg, weights)
        self.kind, self.n_axes, self.eps = kind or cfg.normalization_type, n_axes, eps or cfg.eps

    @classmethod
    def axes(cls, cfg: Config, letters: str = "d", kind: str | None = None, bias: str = "norm") -> dict[str, str]:
        """`bias` says by which of `cfg.biases` a LayerNorm has one."""
        kind = kind or cfg.normalization_type
        if kind in ("LNPre", "RMSPre"):
            return {}
        return {"w": letters} | ({"b": letters} if kind == "LN" and bias in cfg.biases else {})

    def __call__(self, x: Float[Array, "b p *d"], tap) -> Float[Array, "b p *d"]:
        centred, scale = spread(x, self.kind.startswith("LN"), self.eps, self.n_axes)
        scale = tap("hook_scale", scale)
        normalized = tap("hook_normalized", divide(centred, scale, x.dtype))
        w, offset = self.w, self.cfg.rmsnorm_uses_offset
        if offset and self.kind == "LN":  # 1 + w is rounded before it is used, as the checkpoints were trained
            bits = jnp.finfo(w.dtype)  # said so, or XLA leaves the rounding out
            w, offset = jax.lax.reduce_precision(w + 1, bits.nexp, bits.nmant), False
        return weigh(normalized, w, self.b, offset)


class HeadNorm(Norm):
    """The norm of queries, or of keys, under `heads` ("n" or "k"): over each head, with one weight for all of them
    ("head") or one for each ("heads"), or over all heads at once ("full")."""

    def __init__(self, cfg: Config, weights, heads: str):
        super().__init__(cfg, weights, cfg.qk_norm_type, n_axes=2 if cfg.qk_norm == "full" else 1)

    @classmethod
    def axes(cls, cfg: Config, heads: str) -> dict[str, str]:
        return super().axes(cfg, "h" if cfg.qk_norm == "head" else f"{heads} h", cfg.qk_norm_type, "qk_norm")


class OutputNorm(Norm):
    """A norm of what is written to the residual stream. No linear map follows it, so nothing can take up its weight and
    bias: it keeps them where those of the other norms have been folded."""

    def __init__(self, cfg: Config, weights):
        super().__init__(cfg, weights, kind=self.whole_kind(cfg))

    @staticmethod
    def whole_kind(cfg: Config) -> str:
        return cfg.normalization_type.removesuffix("Pre")

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        return super().axes(cfg, kind=cls.whole_kind(cfg))


class NoNorm(Part):
    """What stands where a block has no norm."""

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        return {}

    def __call__(self, x, tap):
        return x


@functools.partial(jax.jit, static_argnames=("factor",), inline=True)
def scaled(x, factor: float):
    return x * jnp.asarray(factor, x.dtype)


class OutputScale(Part):
    """What stands in the place of an OutputNorm where outputs are multiplied by `cfg.residual_scale`."""

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        return {}

    def __call__(self, x, tap):
        return scaled(x, self.cfg.residual_scale)
