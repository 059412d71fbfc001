"""The token embedding, the position embedding, and the unembedding.

Axes: b batch, p position, d d_model, v vocabulary, o output vocabulary, w d_embed, c n_ctx, u pos_offset.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxlens._jax import inlined
from jaxlens.config import Config
from jaxlens.nn.module import Module, prefixed, within
from jaxlens.nn.norm import Identity, OutputNorm, scaled


@functools.partial(inlined, static_argnames=("scale",))
def look_up(W_E, tokens, scale: float):
    """The embeddings of tokens. Those of a token outside the vocabulary are NaN, because jit cannot raise an error."""
    x = W_E.at[tokens].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    return x * jnp.asarray(scale, x.dtype) if scale != 1 else x


@inlined
def project(x, W):
    return jnp.einsum("bpw,wd->bpd", x, W)


@inlined
def look_up_positions(W_pos, positions, mask):
    return jnp.where(mask[..., None], W_pos[positions], 0)


@functools.partial(inlined, static_argnames=("d_model", "offset", "dtype"))
def sinusoids(positions, mask, d_model: int, offset: int, dtype: str):
    """Sines of d_model / 2 frequencies, followed by their cosines."""
    powers = np.arange(d_model // 2, dtype=np.float32) * np.float32(-math.log(1e4) / max(d_model // 2 - 1, 1))
    frequencies = np.exp(powers.astype(np.float64)).astype(np.float32)  # bit for bit those of torch
    angles = (positions + offset).astype(jnp.float32)[..., None] * frequencies
    waves = jnp.concatenate((jnp.sin(angles), jnp.cos(angles), jnp.zeros((*angles.shape[:-1], d_model % 2))), axis=-1)
    return jnp.where(mask[..., None], waves, 0).astype(dtype)


@functools.partial(inlined, static_argnames=("letters",))
def unembed(x, W, b, letters: str):
    if letters == "od" and x.shape[:2] == (1, 1):  # XLA reads W once for a vector, and three times as slowly otherwise
        logits = (W @ x[0, 0])[None, None]
    else:
        logits = jnp.einsum(f"bpd,{letters}->bpo", x, W)
    return logits if b is None else logits + b


def check_has_head(cfg: Config) -> None:
    """Raises ValueError if the model has no unembedding."""
    if cfg.output_head is None:
        instead = "pass return_type=None (activations are in run_with_cache), or stop_at_layer= for the residual stream"
        raise ValueError(f"this model has no unembedding, so it computes no logits and no loss; {instead}")


@functools.partial(inlined, static_argnames=("cap",))
def soft_cap(logits, cap: float):
    return cap * jnp.tanh(logits / cap)


class Embed(Module):
    """The token embedding. The factor `cfg.embed_scale` is rounded to the model's dtype, as in transformers.

    tokens ─ W_E ─ × cfg.embed_scale ─ W_proj (from d_embed to d_model; few models) ─ ln (few models)
    """

    W_E: Float[Array, "v w"] = nnx.data()
    W_proj: Float[Array, "w d"] | None = nnx.data()
    ln: OutputNorm | Identity = nnx.data()

    def __init__(self, cfg: Config, weights):
        super().__init__(cfg, weights)
        self.ln = OutputNorm(cfg, within("ln", weights)) if cfg.post_embedding_ln else Identity(cfg, {})

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        axes = {"W_E": "v w", "W_proj": "w d"} if cfg.d_embed else {"W_E": "v d"}
        return axes | (prefixed("ln", OutputNorm.axes(cfg)) if cfg.post_embedding_ln else {})

    def __call__(self, tokens: Int[ArrayLike, "b p"], tap) -> Float[Array, "b p d"]:
        x = look_up(self.W_E, tokens, self.cfg.embed_scale)
        x = x if self.W_proj is None else project(x, self.W_proj)
        return self.ln(x, tap.at("ln"))


class PosEmbed(Module):
    """The position embedding, zero on padding: learned, or sines and cosines (Vaswani et al. 2017, arXiv 1706.03762).

    `W_before` holds the rows of a learned table that precede the row of the first position. They are not used.
    """

    W_pos: Float[Array, "c d"] | None = nnx.data()
    W_before: Float[Array, "u d"] | None = nnx.data()

    @staticmethod
    def exists(cfg: Config) -> bool:
        return cfg.positional_embedding_type in ("standard", "shortformer", "sinusoidal")

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        if cfg.positional_embedding_type not in ("standard", "shortformer"):
            return {}
        return {"W_pos": "c d"} | ({"W_before": "u d"} if cfg.pos_offset else {})

    def __call__(self, positions: Int[Array, "b p"], mask: Bool[ArrayLike, "b p"]) -> Float[Array, "b p d"]:
        if self.W_pos is None:
            return sinusoids(positions, mask, self.cfg.d_model, self.cfg.pos_offset, self.cfg.dtype)
        return look_up_positions(self.W_pos, positions, mask)


class Unembed(Module):
    """The map to logits. In a model with tied embeddings, W_U is None and the argument W_E is used.

    With `cfg.output_head=None` there are no logits: `Modules.logits` ends at hook_in.

    (hook_in)─ W_proj (from d_model to d_embed) ─ × cfg.output_logits_scale ─ W_U + b_U ─ soft cap ─(hook_out)
    """

    W_U: Float[Array, "w o"] | None = nnx.data()
    W_proj: Float[Array, "d w"] | None = nnx.data()
    b_U: Float[Array, "o"] | None = nnx.data()

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        axes = {"W_proj": "d w"} if cfg.d_embed else {}
        if cfg.output_head is None:
            return axes
        axes |= {} if cfg.tie_word_embeddings else {"W_U": "w o" if cfg.d_embed else "d o"}
        return axes | ({"b_U": "o"} if "b_U" in cfg.biases else {})

    def __call__(
        self, x: Float[Array, "b p d"], W_E: Float[Array, "v w"], tap, tokens: Int[Array, "t"] | None = None
    ) -> Float[Array, "b p o"]:
        """The logits of all tokens, or of these."""
        check_has_head(self.cfg)
        x = tap("hook_in", x)
        tied, factor = self.W_U is None, self.cfg.output_logits_scale
        x = x if self.W_proj is None else project(x, self.W_proj)
        x = x if factor == 1 else scaled(x, factor)
        W, b = W_E if tied else self.W_U, self.b_U
        if tokens is not None:
            W, b = jnp.take(W, tokens, axis=0 if tied else 1), b if b is None else b[tokens]
        logits = unembed(x, W, b, "od" if tied else "do")
        cap = self.cfg.output_logits_soft_cap
        return tap("hook_out", logits if cap is None else soft_cap(logits, cap))
