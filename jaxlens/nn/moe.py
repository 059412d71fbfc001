"""Mixture of experts: a router chooses, for every token, the few gated MLPs that answer it.

Axes: b batch, p position, d d_model, e expert, m d_mlp.

    x ─ W_router ─ softmax ─(hook_expert_weights)─ top k ─ × ── Σ experts
    x ─ each expert's gated MLP, (hook_pre), (hook_pre_linear), (hook_post) ─┘

Every expert answers every token and the unchosen answers get weight 0: shapes stay static, and an expert that was not
chosen can still be read and edited. It costs num_experts / experts_per_token times the arithmetic of dispatching.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlens.config import Config
from jaxlens.nn.mlp import gate
from jaxlens.nn.part import Part

piece = functools.partial(jax.jit, inline=True)


@piece
def route(x, W_router):
    logits = jnp.einsum("bpd,de->bpe", x, W_router)
    return jax.nn.softmax(logits.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=-1)


@functools.partial(piece, static_argnames=("k", "renormalise"))
def choose(weights: Float[Array, "b p e"], k: int, renormalise: bool) -> Float[Array, "b p e"]:
    """The k largest weights of each token, the others zero; rescaled to sum to one if asked."""
    values, indices = jax.lax.top_k(weights, k)
    if renormalise:
        values = values / jnp.sum(values, axis=-1, keepdims=True)
    return jnp.sum(jax.nn.one_hot(indices, weights.shape[-1], dtype=values.dtype) * values[..., None], axis=-2)


@piece
def into_experts(x, W):
    return jnp.einsum("bpd,edm->bpem", x, W)


@piece
def out_of_experts(post, weights, W_out):
    return jnp.einsum("bpem,bpe,emd->bpd", post, weights.astype(post.dtype), W_out)


class MoE(Part):
    """A softmax router over gated experts (Shazeer et al. 2017, 1701.06538; Jiang et al. 2024, 2401.04088)."""

    W_router: Float[Array, "d e"] = nnx.data()
    W_in: Float[Array, "e d m"] = nnx.data()
    W_gate: Float[Array, "e d m"] = nnx.data()
    W_out: Float[Array, "e m d"] = nnx.data()

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        return {"W_router": "d e", "W_in": "e d m", "W_gate": "e d m", "W_out": "e m d"}

    def __call__(self, x: Float[Array, "b p d"], tap) -> Float[Array, "b p d"]:
        weights = tap("hook_expert_weights", route(x, self.W_router))
        chosen = choose(weights, self.cfg.experts_per_token, self.cfg.norm_topk_prob)
        pre = tap("hook_pre", into_experts(x, self.W_gate))
        pre_linear = tap("hook_pre_linear", into_experts(x, self.W_in))
        post = tap("hook_post", gate(pre, pre_linear, self.cfg.act_fn))
        return out_of_experts(post, chosen, self.W_out)
