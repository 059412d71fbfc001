"""Mixture of experts: a router chooses, for every token, the few gated MLPs that answer it.

Axes: b batch, p position, d d_model, e expert, f d_expert, x d_shared_expert.

    x ─ W_router ─ softmax ─(hook_expert_weights)─ top k ─ × ── Σ experts ─ + ─ out
    x ─ each expert's gated MLP, (hook_pre), (hook_pre_linear), (hook_post) ─┘    │
    x ─ the shared expert's, (shared.hook_pre), … ─ × (hook_shared_gate) ─────────┘

Every expert answers every token and the unchosen answers get weight 0: shapes stay static, and an expert that was not
chosen can still be read and edited. It costs num_experts / experts_per_token times the arithmetic of dispatching.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlens.config import Config
from jaxlens.nn.mlp import GatedMLP, gate
from jaxlens.nn.part import Part, prefixed, within

piece = functools.partial(jax.jit, inline=True)


@functools.partial(piece, static_argnames=("cfg",))
def route(x, W_router, b_router, cfg: Config) -> Float[Array, "b p e"]:
    """How much each expert would weigh, by `cfg.router`; in float32 at least."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    logits = jnp.einsum("bpd,de->bpe", x.astype(wide), W_router.astype(wide))
    logits = logits if b_router is None else logits + b_router.astype(wide)
    if cfg.router == "sparsemixer":
        return sparsemixer(logits, cfg.router_tolerance)
    return jax.nn.sigmoid(logits) if cfg.router == "sigmoid" else jax.nn.softmax(logits, axis=-1)


def sparsemixer(logits: Float[Array, "b p e"], tolerance: float) -> Float[Array, "b p e"]:
    """Weights of the best expert and of the second, each by a softmax over those not much worse (Liu et al. 2024,
    arXiv 2409.12136); no other has any."""
    best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
    second = jax.nn.one_hot(jnp.argmax(jnp.where(best, -jnp.inf, logits), axis=-1), logits.shape[-1], dtype=bool)

    def weight(chosen, others):
        top = jnp.sum(jnp.where(chosen, logits, 0), axis=-1, keepdims=True)
        near = (top - logits) / jnp.maximum(jnp.abs(logits), top) <= 2 * tolerance
        return jnp.where(chosen, jax.nn.softmax(jnp.where(near & others, logits, -jnp.inf), axis=-1), 0)

    return weight(best, jnp.ones_like(best)) + weight(second, ~best)


@functools.partial(piece, static_argnames=("cfg",))
def choose(weights: Float[Array, "*b e"], b_choice: Float[Array, "*l e"] | None, cfg: Config) -> Float[Array, "*b e"]:
    """The weights of the experts that are asked, the others zero: the top k, of the best groups if there are groups.

    `b_choice` counts in the choice alone. The best groups are those with the largest sum of their two largest entries,
    or under a softmax with the largest entry (DeepSeek-V3 and V2, arXiv 2412.19437 and 2405.04434).
    """
    ranks = weights if b_choice is None else weights + b_choice
    if cfg.router_groups:
        n_groups, kept = cfg.router_groups
        grouped = ranks.reshape(*ranks.shape[:-1], n_groups, -1)
        best = jnp.sum(jax.lax.top_k(grouped, 2 if cfg.router == "sigmoid" else 1)[0], axis=-1)
        asked = jnp.sum(jax.nn.one_hot(jax.lax.top_k(best, kept)[1], n_groups, dtype=bool), axis=-2, dtype=bool)
        ranks = jnp.where(asked[..., None], grouped, -jnp.inf).reshape(ranks.shape)
    _, indices = jax.lax.top_k(ranks, cfg.experts_per_token)
    values = jnp.take_along_axis(weights, indices, axis=-1)
    if cfg.norm_topk_prob:
        values = values / jnp.sum(values, axis=-1, keepdims=True)
    values = values * cfg.router_scale
    return jnp.sum(jax.nn.one_hot(indices, weights.shape[-1], dtype=values.dtype) * values[..., None], axis=-2)


@piece
def into_experts(x, W, b):
    y = jnp.einsum("bpd,edf->bpef", x, W)
    return y if b is None else y + b


@piece
def out_of_experts(post, weights, W_out, b_out):
    weights = weights.astype(post.dtype)
    out = jnp.einsum("bpef,bpe,efd->bpd", post, weights, W_out)
    return out if b_out is None else out + jnp.einsum("bpe,ed->bpd", weights, b_out)


@piece
def open_gate(x, W):
    return jax.nn.sigmoid(jnp.einsum("bpd,d->bp", x, W))[..., None]


@piece
def join(out, shared, share):
    return out + (shared if share is None else share * shared)


class MoE(Part):
    """A router over gated experts (Shazeer et al. 2017, 1701.06538; Jiang et al. 2024, 2401.04088), and beside them one
    that answers every token where `cfg.d_shared_expert` says so (Dai et al. 2024, 2401.06066)."""

    W_router: Float[Array, "d e"] = nnx.data()
    W_in: Float[Array, "e d f"] = nnx.data()
    W_gate: Float[Array, "e d f"] = nnx.data()
    W_out: Float[Array, "e f d"] = nnx.data()
    b_router: Float[Array, "e"] | None = nnx.data()
    b_choice: Float[Array, "e"] | None = nnx.data()
    b_in: Float[Array, "e f"] | None = nnx.data()
    b_gate: Float[Array, "e f"] | None = nnx.data()
    b_out: Float[Array, "e d"] | None = nnx.data()
    W_shared_gate: Float[Array, "d"] | None = nnx.data()

    def __init__(self, cfg: Config, weights):
        super().__init__(cfg, weights)
        self.shared = GatedMLP(cfg, within("shared", weights)) if cfg.d_shared_expert else None

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        axes = {"W_router": "d e", "W_in": "e d f", "W_gate": "e d f", "W_out": "e f d"}
        biases = {"b_router": "e", "b_choice": "e", "b_in": "e f", "b_gate": "e f", "b_out": "e d"}
        axes |= {name: letters for name, letters in biases.items() if name in cfg.biases}
        axes |= {"W_shared_gate": "d"} if cfg.shared_expert_gate else {}
        return axes | (prefixed("shared", GatedMLP.axes(cfg, "x")) if cfg.d_shared_expert else {})

    def __call__(self, x: Float[Array, "b p d"], tap) -> Float[Array, "b p d"]:
        weights = tap("hook_expert_weights", route(x, self.W_router, self.b_router, self.cfg))
        pre = tap("hook_pre", into_experts(x, self.W_gate, self.b_gate))
        pre_linear = tap("hook_pre_linear", into_experts(x, self.W_in, self.b_in))
        post = tap("hook_post", gate(pre, pre_linear, self.cfg.act_fn))
        out = out_of_experts(post, choose(weights, self.b_choice, self.cfg), self.W_out, self.b_out)
        if self.shared is None:
            return out
        share = None if self.W_shared_gate is None else tap("hook_shared_gate", open_gate(x, self.W_shared_gate))
        return join(out, self.shared(x, tap.at("shared")), share)
