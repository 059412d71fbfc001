"""Tokens into the residual stream, and the residual stream into logits.

Axes: b batch, p position, d d_model, v vocabulary, o output vocabulary, c n_ctx.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxlens.config import Config
from jaxlens.nn.part import Part

piece = functools.partial(jax.jit, inline=True)


@functools.partial(piece, static_argnames=("scale",))
def look_up(W_E, tokens, scale: float):
    return W_E[tokens] * jnp.asarray(scale, W_E.dtype) if scale != 1 else W_E[tokens]


@piece
def look_up_positions(W_pos, positions, real):
    return jnp.where(real[..., None], W_pos[positions], 0)


@functools.partial(piece, static_argnames=("letters",))
def unembed(x, W, b, letters: str):
    logits = jnp.einsum(f"bpd,{letters}->bpo", x, W)
    return logits if b is None else logits + b


@functools.partial(piece, static_argnames=("cap",))
def soft_cap(logits, cap: float):
    return cap * jnp.tanh(logits / cap)


class Embed(Part):
    """The token embedding, times `cfg.embed_scale` (rounded to the model's dtype, as the checkpoints expect)."""

    W_E: Float[Array, "v d"] = nnx.data()

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        return {"W_E": "v d"}

    def __call__(self, tokens: Int[Array, "b p"]) -> Float[Array, "b p d"]:
        return look_up(self.W_E, tokens, self.cfg.embed_scale)


class PosEmbed(Part):
    """The learned position embedding; zero on padding."""

    W_pos: Float[Array, "c d"] = nnx.data()

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        return {"W_pos": "c d"} if cfg.positional_embedding_type in ("standard", "shortformer") else {}

    def __call__(self, positions: Int[Array, "b p"], real: Bool[Array, "b p"]) -> Float[Array, "b p d"]:
        return look_up_positions(self.W_pos, positions, real)


class Unembed(Part):
    """The map to logits. A tied model has no W_U of its own and is given the embedding's W_E."""

    W_U: Float[Array, "d o"] | None = nnx.data()
    b_U: Float[Array, "o"] | None = nnx.data()

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        tied = {} if cfg.tie_word_embeddings else {"W_U": "d o"}
        return tied | ({"b_U": "o"} if "b_U" in cfg.biases else {})

    def __call__(self, x: Float[Array, "b p d"], W_E: Float[Array, "v d"], tap) -> Float[Array, "b p o"]:
        x = tap("hook_in", x)
        tied = self.W_U is None
        logits = unembed(x, W_E if tied else self.W_U, self.b_U, "od" if tied else "do")
        cap = self.cfg.output_logits_soft_cap
        return tap("hook_out", logits if cap is None else soft_cap(logits, cap))
