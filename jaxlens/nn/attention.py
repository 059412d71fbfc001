"""Attention: one class for grouped heads, windows, soft caps, QK-norm and every position scheme.

Axes: b batch, p query position, s source position, d d_model, n query head, k key/value head, g query heads per
key/value head, h d_head.

    x ─ W_Q ─(hook_q)─ q_norm ─ clip ─ rotate ─(hook_rot_q)─┐
    x ─ W_K ─(hook_k)─ k_norm ─ clip ─ rotate ─(hook_rot_k)─┴─ ÷ scale, cap, distance, mask ─(hook_attn_scores)─┐
    x ─ W_V ─(hook_v)─ clip ─────────────────────────────────── × ─(hook_pattern)────────── softmax (and sink) ─┘
                        out ─ + b_O ─ Σ heads ─(hook_result)─ W_O ─(hook_z)

Each piece between two hook points is a small jitted function: inside a compiled forward it is inlined, and in a layer
that a Python function edits it is compiled once and shared by every layer and every hook.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlens.config import Config
from jaxlens.config_checks import check_heads_are_linear
from jaxlens.factored_matrix import FactoredMatrix
from jaxlens.nn.blockwise import attend_blockwise
from jaxlens.nn.context import LayerContext
from jaxlens.nn.grouped import by_group, by_head, raw_scores, weigh_values
from jaxlens.nn.masks import masked_softmax, softmax, visible
from jaxlens.nn.norm import HeadNorm, NoNorm
from jaxlens.nn.part import Part, prefixed, within
from jaxlens.nn.positions import rotate

piece = functools.partial(jax.jit, inline=True)


@piece
def project(x, W, b):
    """[b p d], or [b p n d] with an input of its own for every head, to [b p n h]."""
    heads = jnp.einsum("bpd,ndh->bpnh" if x.ndim == 3 else "bpnd,ndh->bpnh", x, W)
    return heads if b is None else heads + b


@piece
def mask_scores(scores, at: LayerContext):
    return jnp.where(visible(at.low, at.high, at.real, scores.ndim), scores, -jnp.inf)


plain_softmax = piece(softmax)


@piece
def masked_pattern(scores, at: LayerContext, sink):
    return masked_softmax(scores, at.low, at.high, at.real, sink)


@piece
def grow(q, growth: Float[Array, "b p"]):
    return q * growth.astype(q.dtype)[..., None, None]


@functools.partial(piece, static_argnames=("most",))
def clip(x, most: float):
    return jnp.clip(x, -most, most)


@piece
def write_heads(z, W_O):
    """What each head alone writes to the residual stream: [b p n d]."""
    return jnp.einsum("bpnh,nhd->bpnd", z, W_O)


@piece
def write_all(z, W_O, b_O):
    out = jnp.einsum("bpnh,nhd->bpd", z, W_O)
    return out if b_O is None else out + b_O


@piece
def sum_heads(result, b_O):
    out = jnp.sum(result, axis=2)
    return out if b_O is None else out + b_O


class Attention(Part):
    """Multi-head, grouped-query or multi-query attention, by `cfg.n_key_value_heads`."""

    W_Q: Float[Array, "n d h"] = nnx.data()
    W_K: Float[Array, "k d h"] = nnx.data()
    W_V: Float[Array, "k d h"] = nnx.data()
    W_O: Float[Array, "n h d"] = nnx.data()
    b_Q: Float[Array, "n h"] | None = nnx.data()
    b_K: Float[Array, "k h"] | None = nnx.data()
    b_V: Float[Array, "k h"] | None = nnx.data()
    b_O: Float[Array, "d"] | None = nnx.data()
    sinks: Float[Array, "n"] | None = nnx.data()

    def __init__(self, cfg: Config, weights):
        super().__init__(cfg, weights)
        norm = functools.partial(HeadNorm, cfg) if cfg.qk_norm else lambda weights, heads: NoNorm(cfg, weights)
        self.q_norm, self.k_norm = norm(within("q_norm", weights), "n"), norm(within("k_norm", weights), "k")

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        axes = {"W_Q": "n d h", "W_K": "k d h", "W_V": "k d h", "W_O": "n h d"}
        biases = {"b_Q": "n h", "b_K": "k h", "b_V": "k h", "b_O": "d"}
        axes |= {name: letters for name, letters in biases.items() if name in cfg.biases}
        axes |= {"sinks": "n"} if cfg.attn_sinks else {}
        if cfg.qk_norm:
            axes |= prefixed("q_norm", HeadNorm.axes(cfg, "n")) | prefixed("k_norm", HeadNorm.axes(cfg, "k"))
        return axes

    @property
    def QK(self) -> FactoredMatrix:
        """Every query head's QK circuit `W_Q @ W_K.T` [n d d], of a stack of layers [l n d d] (see `model.QK`)."""
        check_heads_are_linear(self.cfg)
        group = self.W_Q.shape[-3] // self.W_K.shape[-3]
        return FactoredMatrix(self.W_Q, jnp.repeat(self.W_K, group, axis=-3).mT)

    @property
    def OV(self) -> FactoredMatrix:
        """Every query head's OV circuit `W_V @ W_O` [n d d], of a stack of layers [l n d d] (see `model.OV`)."""
        check_heads_are_linear(self.cfg)
        group = self.W_O.shape[-3] // self.W_V.shape[-3]
        return FactoredMatrix(jnp.repeat(self.W_V, group, axis=-3), self.W_O)

    def __call__(self, inputs, at: LayerContext, tap) -> Float[Array, "b p d"]:
        """`inputs`: what queries, keys and values read, each [b p d] (or [b p n d], one for every head)."""
        q, k, v = self.queries_keys_values(inputs, tap)
        q, k, v = self.meeting(q, "q", at, tap), self.meeting(k, "k", at, tap), self.clipped(v)
        if at.packing is None:
            z = self.attend(q, k, v, at, tap)
        else:
            z = at.packing.pack(self.attend(*at.packing.spread(q, k, v), at, tap))
        z = tap("hook_z", z)
        if tap.listens("hook_result"):
            return sum_heads(tap("hook_result", write_heads(z, self.W_O)), self.b_O)
        return write_all(z, self.W_O, self.b_O)

    def queries_keys_values(self, inputs, tap):
        q = tap("hook_q", project(inputs[0], self.W_Q, self.b_Q))
        k = tap("hook_k", project(inputs[1], self.W_K, self.b_K))
        v = tap("hook_v", project(inputs[2], self.W_V, self.b_V))
        return q, k, v

    def meeting(self, x: Float[Array, "b p n h"], which: Literal["q", "k"], at: LayerContext, tap):
        """Queries or keys as they meet each other: normalised, clipped, rotated, queries grown, where that is done."""
        norm = functools.partial(getattr(self, f"{which}_norm"), tap=tap.at(f"{which}_norm"))
        x = self.clipped(x if self.cfg.qk_norm_after_rotary else norm(x))
        if at.cos is not None:
            x = tap(f"hook_rot_{which}", self.rotated(x, at))
        x = norm(x) if self.cfg.qk_norm_after_rotary else x
        return x if at.growth is None or which == "k" else grow(x, at.growth)

    def rotated(self, x: Float[Array, "b p n h"], at: LayerContext) -> Float[Array, "b p n h"]:
        return rotate(x, at.cos, at.sin, next(rotary for rotary in self.cfg.rotary if rotary).adjacent_pairs)

    def clipped(self, x):
        return x if self.cfg.clip_qkv is None else clip(x, self.cfg.clip_qkv)

    def scores(self, q, k, at: LayerContext) -> Float[Array, "b k g p s"]:
        """How well every query matches every source, not yet masked."""
        cfg = self.cfg
        distances = () if at.places is None else (cfg.slopes, at.places, at.places, cfg.alibi_in_bfloat16)
        return raw_scores(q, k, at.scale, cfg.attn_scores_soft_cap, *distances)

    @property
    def sink(self) -> Float[Array, "k g 1 1"] | None:
        """The score of attending to nothing, beside those of sources."""
        return None if self.sinks is None else self.sinks.reshape(self.cfg.n_key_value_heads, -1, 1, 1)

    def attend(self, q, k, v, at: LayerContext, tap) -> Float[Array, "b p n h"]:
        """The values each query gathers. Scores and pattern exist as arrays only for short sequences or listeners."""
        watches_scores, watches_pattern = tap.listens("hook_attn_scores"), tap.listens("hook_pattern")
        if q.shape[1] > self.cfg.attn_block and not (watches_scores or watches_pattern):
            return attend_blockwise(self.cfg, q, k, v, at, self.sink)
        # In a layer run piece by piece all is shown, so that a later hook on what nobody watched finds its pieces made.
        watches_scores, watches_pattern = watches_scores or tap.in_pieces, watches_pattern or tap.in_pieces
        scores = self.scores(q, k, at)
        if watches_scores:  # masked where the listener can see it, and then a softmax without mask
            pattern = plain_softmax(self.show("hook_attn_scores", mask_scores(scores, at), tap), self.sink)
        else:
            pattern = masked_pattern(scores, at, self.sink)
        return weigh_values(self.show("hook_pattern", pattern, tap) if watches_pattern else pattern, v)

    def show(self, name: str, grouped: Float[Array, "b k g p s"], tap) -> Float[Array, "b k g p s"]:
        """Scores or a pattern at their hook point, where heads are not grouped."""
        return by_group(tap(name, by_head(grouped)), self.cfg.n_key_value_heads)
