"""Attention of one layer: grouped heads, windows, soft caps, QK-norm and every position scheme.

Axes: b batch, p query position, s source position, d d_model, n query head, k key/value head, g query heads per
key/value head, h d_head, t d_v_head (d_head in most models).

    x ─ W_Q ─(hook_q)─ q_norm ─ clip ─ rotate ─(hook_rot_q)─┐
    x ─ W_K ─(hook_k)─ k_norm ─ clip ─ rotate ─(hook_rot_k)─┴─ ÷ scale, cap, bias, mask ─(hook_attn_scores)─┐
    x ─ W_V ─(hook_v)─ clip ───────────────────────────────── × ─(hook_pattern)─────── softmax (and sink) ──┘
                        out ─ + b_O ─ Σ heads ─(hook_result)─ W_O ─(hook_z)

The class comes first; below it are its steps, in the order in which they run. A step between two hook points is a small
jitted function: it is inlined into a compiled forward, and compiled once for all layers that a Python function edits.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from jaxlens._jax import inlined
from jaxlens.config import Config
from jaxlens.nn.adapter import Adaptable, LowRank, add_update, head_updates
from jaxlens.nn.in_stack import InStack, as_array, one_token
from jaxlens.nn.kernels import attend_unseen
from jaxlens.nn.module import prefixed, within
from jaxlens.nn.norm import HeadNorm, Identity
from jaxlens.nn.position_bias import position_bias
from jaxlens.nn.scores import (
    both_heads_first,
    grouped_scores,
    masked_pattern,
    masked_scores,
    plain_softmax,
    weight_values,
)  # fmt: skip
from jaxlens.nn.sequence import LayerInfo


class Attention(Adaptable):
    """Multi-head, grouped-query or multi-query attention, depending on `cfg.n_key_value_heads`."""

    adaptable = ("W_Q", "W_K", "W_V", "W_O")
    products = ("W_Q", "W_K", "W_V", "W_O")

    W_Q: Float[Array, "n d h"] = nnx.data()
    W_K: Float[Array, "k d h"] = nnx.data()
    W_V: Float[Array, "k d h"] = nnx.data()
    W_O: Float[Array, "n h d"] = nnx.data()
    b_Q: Float[Array, "n h"] | None = nnx.data()
    b_K: Float[Array, "k h"] | None = nnx.data()
    b_V: Float[Array, "k h"] | None = nnx.data()
    b_O: Float[Array, "d"] | None = nnx.data()
    sinks: Float[Array, "n"] | None = nnx.data()
    q_norm: HeadNorm | Identity = nnx.data()
    k_norm: HeadNorm | Identity = nnx.data()
    lora_Q: LowRank | None = nnx.data()
    lora_K: LowRank | None = nnx.data()
    lora_V: LowRank | None = nnx.data()
    lora_O: LowRank | None = nnx.data()

    def __init__(self, cfg: Config, weights):
        super().__init__(cfg, weights)
        norm = functools.partial(HeadNorm, cfg) if cfg.qk_norm else lambda weights, heads: Identity(cfg, weights)
        self.q_norm, self.k_norm = norm(within("q_norm", weights), "n"), norm(within("k_norm", weights), "k")

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        axes = {"W_Q": "n d h", "W_K": "k d h", "W_V": "k d h", "W_O": "n h d"}
        axes |= {name: letters for name, letters in cls.bias_axes().items() if name in cfg.biases}
        axes |= {"sinks": "n"} if cfg.attn_sinks else {}
        if cfg.qk_norm:
            axes |= prefixed("q_norm", HeadNorm.axes(cfg, "n")) | prefixed("k_norm", HeadNorm.axes(cfg, "k"))
        return axes | cls.update_axes(cfg)

    @classmethod
    def bias_axes(cls) -> dict[str, str]:
        return {"b_Q": "n h", "b_K": "k h", "b_V": "k h", "b_O": "d"}

    def __call__(self, inputs, info: LayerInfo, tap) -> Float[Array, "b p d"]:
        """`inputs` holds the inputs of queries, keys and values: each [b p d], or [b p n d] with one input per head."""
        q, k, v = self.queries_keys_values(inputs, tap)
        q, k, v = self.prepared(q, "q", info, tap), self.prepared(k, "k", info, tap), self.clipped(v)
        if info.packing is None:
            z = self.attend(q, k, v, info, tap)
        else:
            z = info.packing.pack(self.attend(*info.packing.unpack(q, k, v), info, tap))
        z = tap("hook_z", z)
        if tap.needs("hook_result"):
            return self.sum_of_results(z, tap)
        return self.adapted("W_O", z, write_all(z, self.W_O, self.b_O), tap)

    def sum_of_results(self, z, tap) -> Float[Array, "b p d"]:
        """The output, computed from what each head writes. This includes the update of W_O."""
        results = write_heads(z, self.W_O)
        if self.lora_O is None:
            return sum_heads(tap("hook_result", results), self.b_O)
        update = self.lora_O(z)
        edited = tap.at("lora_O")("hook_out", update)
        results = add_update(results, head_updates(z, self.lora_O.A, self.lora_O.B, self.lora_O.scale))
        out = sum_heads(tap("hook_result", results), self.b_O)
        return add_update(out, edited - update) if tap.edits("lora_O.hook_out") else out

    def queries_keys_values(self, inputs, tap):
        q, k, v = inputs
        q = tap("hook_q", self.adapted("W_Q", q, project(q, self.W_Q, self.b_Q), tap))
        k = tap("hook_k", self.adapted("W_K", k, project(k, self.W_K, self.b_K), tap))
        v = tap("hook_v", self.adapted("W_V", v, project(v, self.W_V, self.b_V), tap))
        return q, k, v

    def prepared(self, x: Float[Array, "b p n h"], which: Literal["q", "k"], info: LayerInfo, tap):
        """Queries or keys, ready for the dot product: after QK-norm, clip, RoPE and, for queries, growth."""
        norm = functools.partial(getattr(self, f"{which}_norm"), tap=tap.at(f"{which}_norm"))
        x = self.clipped(x if self.cfg.qk_norm_after_rotary else norm(x))
        if info.cos is not None:
            x = tap(f"hook_rot_{which}", self.rotated(x, info))
        x = norm(x) if self.cfg.qk_norm_after_rotary else x
        return x if info.growth is None or which == "k" else grow(x, info.growth)

    def rotated(self, x: Float[Array, "b p n h"], info: LayerInfo) -> Float[Array, "b p n h"]:
        return rotate(x, info.cos, info.sin, next(rotary for rotary in self.cfg.rotary if rotary).adjacent_pairs)

    def clipped(self, x):
        return x if self.cfg.clip_qkv is None else clip(x, self.cfg.clip_qkv)

    def attend(self, q, k, v, info: LayerInfo, tap) -> Float[Array, "b p n t"]:
        """The sum of values, weighted by the pattern.

        Scores and pattern are stored only if a hook or a capture needs them, or if the sequence has at most
        `cfg.attn_block` tokens. With a memory of earlier tokens, queries attend to their keys and values too.
        """
        k, v = both_heads_first(k, v)
        if tap.memory is not None:
            k, v = tap.memory.extended(k, v)
        needs_scores = tap.needs("hook_attn_scores")
        if q.shape[1] > self.cfg.attn_block and not (needs_scores or tap.needs("hook_pattern")):
            return attend_unseen(self.cfg, q, k, v, info, self.sink)
        if needs_scores or tap.stepwise:  # stepwise: so that scores are already compiled if a hook needs them later
            scores = masked_scores(q, k, info, self.cfg.attn_scores_soft_cap, position_bias(self.cfg))
            pattern = plain_softmax(tap("hook_attn_scores", scores), self.sink)
        else:
            pattern = masked_pattern(self.scores(q, k, info), info, self.sink)
        return weight_values(tap("hook_pattern", pattern), v)

    def scores(self, q, k: Float[Array, "b k s h"], info: LayerInfo) -> Float[Array, "b k g p s"]:
        """Attention scores before the mask."""
        return grouped_scores(q, k, info.scale, self.cfg.attn_scores_soft_cap, position_bias(self.cfg), info.indices)

    @property
    def sink(self) -> Float[Array, "k g 1 1"] | None:
        """The sink logit of each head: a score whose probability goes to no source."""
        return None if self.sinks is None else self.sinks.reshape(self.cfg.n_key_value_heads, -1, 1, 1)


# --- queries, keys and values

FEW_TOKENS = 256
"""Up to so many tokens, heads are multiplied one by one."""


def by_each_head(x: Float[Array, "b p d"], W: Float[Array, "n d h"] | InStack) -> Float[Array, "b p n h"]:
    """The product of x with the weight of every head."""
    if isinstance(W, InStack):
        return one_token(x[0, 0], W)[None, None]
    return _head_by_head(x, W) if x.shape[0] * x.shape[1] <= FEW_TOKENS else _all_heads(x, W)


def _all_heads(x, W):
    return jnp.einsum("bpd,ndh->bpnh", x, W)


@jax.custom_jvp
def _head_by_head(x, W):
    """XLA copies W to [d n h] to multiply all heads at once, which takes longer than the product if tokens are few.

    It multiplies matrices fastest in the order of `matmul`; einsum would put W first.
    """
    n_tokens = x.shape[0] * x.shape[1]
    heads = jnp.matmul(jnp.broadcast_to(x.reshape(n_tokens, -1), (len(W), n_tokens, x.shape[2])), W)
    return jnp.moveaxis(heads, 0, 1).reshape(*x.shape[:2], len(W), -1)


@functools.partial(_head_by_head.defjvp, symbolic_zeros=True)
def _head_by_head_jvp(primals, tangents):
    """The derivative is that of all heads at once: head by head, the backward pass would keep x for every head."""
    (x, W), (dx, dW) = primals, tangents
    of_x = [] if isinstance(dx, SymbolicZero) else [_all_heads(dx, W)]
    of_W = [] if isinstance(dW, SymbolicZero) else [_all_heads(x, dW)]
    return _head_by_head(x, W), sum(of_x + of_W)


@inlined
def project(x, W, b):
    """[b p d], or [b p n d] with one input per head, to [b p n h]."""
    heads = by_each_head(x, W) if x.ndim == 3 else jnp.einsum("bpnd,ndh->bpnh", x, as_array(W))
    return heads if b is None else heads + b


@functools.partial(inlined, static_argnames=("limit",))
def clip(x, limit: float):
    return jnp.clip(x, -limit, limit)


@functools.partial(inlined, static_argnames=("adjacent_pairs",))
def rotate(
    x: Float[Array, "b p n h"], cos: Float[Array, "b p r"], sin: Float[Array, "b p r"], adjacent_pairs: bool
) -> Float[Array, "b p n h"]:
    """Rotates the first 2r dimensions of every head by the given angles: pairs (0, 1), (2, 3), … or (i, i + r)."""
    rotating, still = jnp.split(x, [2 * cos.shape[-1]], axis=-1)
    cos, sin = (angle[:, :, None].astype(x.dtype) for angle in (cos, sin))
    if adjacent_pairs:
        first, second = rotating[..., 0::2], rotating[..., 1::2]
    else:
        first, second = jnp.split(rotating, 2, axis=-1)
    pair = (first * cos - second * sin, second * cos + first * sin)
    joined = jnp.stack(pair, axis=-1).reshape(rotating.shape) if adjacent_pairs else jnp.concatenate(pair, axis=-1)
    return jnp.concatenate((joined, still), axis=-1)


@inlined
def grow(q, growth: Float[Array, "b p"]):
    return q * growth.astype(q.dtype)[..., None, None]


# --- the output


@inlined
def write_heads(z, W_O):
    """The output of each head to the residual stream, [b p n d]."""
    return jnp.einsum("bpnh,nhd->bpnd", z, as_array(W_O))


@inlined
def write_all(z, W_O, b_O):
    in_place = isinstance(W_O, InStack)
    out = one_token(z[0, 0], W_O)[None, None] if in_place else jnp.tensordot(z, W_O, axes=2)  # einsum would copy W_O
    return out if b_O is None else out + b_O


@inlined
def sum_heads(result, b_O):
    out = jnp.sum(result, axis=2)
    return out if b_O is None else out + b_O
