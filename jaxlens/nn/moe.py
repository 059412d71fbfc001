"""Mixture of experts: a router chooses a few gated MLPs for every token.

Axes: b batch, p position, d d_model, e expert, f d_expert, x d_shared_expert.

    x ─ W_router ─ softmax ─(hook_expert_weights)─ top k ─ × ── Σ experts ─ + ─ out
    x ─ each expert's gated MLP, (hook_pre), (hook_pre_linear), (hook_post) ─┘    │
    x ─ the shared expert's, (shared.hook_pre), … ─ × (hook_shared_gate) ─────────┘

If a hook or a capture needs the neurons of experts, every expert runs on every token, and those that the router did not
choose get weight 0. Otherwise each token's chosen experts run alone (`nn/experts.py`).
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlens._jax import inlined, wide
from jaxlens.config import Config
from jaxlens.nn.experts import run_chosen
from jaxlens.nn.in_stack import InStack, as_array
from jaxlens.nn.mlp import GatedMLP, gate
from jaxlens.nn.module import Module, prefixed, within


@functools.partial(inlined, static_argnames=("cfg",))
def route(x, W_router, b_router, cfg: Config) -> Float[Array, "b p e"]:
    """The weight of each expert before the top k are chosen, computed by `cfg.router` in float32 or wider."""
    logits = jnp.einsum("bpd,de->bpe", wide(x), wide(W_router))
    logits = logits if b_router is None else logits + wide(b_router)
    if cfg.router == "sparsemixer":
        return sparsemixer(logits, cfg.router_tolerance)
    return jax.nn.sigmoid(logits) if cfg.router == "sigmoid" else jax.nn.softmax(logits, axis=-1)


def sparsemixer(logits: Float[Array, "b p e"], tolerance: float) -> Float[Array, "b p e"]:
    """SparseMixer (Liu et al. 2024, arXiv 2409.12136): weights of the best and second-best expert, 0 for others.

    Each weight is a softmax over the experts whose logits are lower by at most twice the tolerance (relative).
    """
    best = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
    second = jax.nn.one_hot(jnp.argmax(jnp.where(best, -jnp.inf, logits), axis=-1), logits.shape[-1], dtype=bool)

    def weight(chosen, others):
        top = jnp.sum(jnp.where(chosen, logits, 0), axis=-1, keepdims=True)
        far = (top - logits) / jnp.maximum(jnp.abs(logits), top) > 2 * tolerance  # logits of 0 are 0 / 0, and not far
        return jnp.where(chosen, jax.nn.softmax(jnp.where(others & ~far, logits, -jnp.inf), axis=-1), 0)

    return weight(best, jnp.ones_like(best)) + weight(second, ~best)


@functools.partial(inlined, static_argnames=("cfg",))
def choose(
    weights: Float[Array, "*b e"], b_choice: Float[Array, "*l e"] | None, cfg: Config
) -> tuple[Int[Array, "*b c"], Float[Array, "*b c"]]:
    """The top k experts and their weights. With `cfg.router_groups`, within the best groups only.

    `b_choice` affects only which experts are chosen. A group's rank is the sum of its two largest entries, or with a
    softmax router its largest entry (DeepSeek-V3 and V2, arXiv 2412.19437 and 2405.04434).
    """
    ranks = weights if b_choice is None else weights + b_choice
    if cfg.router_groups:
        n_groups, kept = cfg.router_groups
        grouped = ranks.reshape(*ranks.shape[:-1], n_groups, -1)
        best = jnp.sum(jax.lax.top_k(grouped, 2 if cfg.router == "sigmoid" else 1)[0], axis=-1)
        is_kept = jnp.sum(jax.nn.one_hot(jax.lax.top_k(best, kept)[1], n_groups, dtype=bool), axis=-2, dtype=bool)
        ranks = jnp.where(is_kept[..., None], grouped, -jnp.inf).reshape(ranks.shape)
    _, indices = jax.lax.top_k(ranks, cfg.experts_per_token)
    values = jnp.take_along_axis(weights, indices, axis=-1)
    if cfg.norm_topk_prob:
        values = values / jnp.sum(values, axis=-1, keepdims=True)
    return indices, values * cfg.router_scale


@functools.partial(inlined, static_argnames=("n_experts",))
def of_all(indices: Int[Array, "*b c"], values: Float[Array, "*b c"], n_experts: int) -> Float[Array, "*b e"]:
    """The weights of all experts: those of the chosen ones, and 0 for the others."""
    return jnp.sum(jax.nn.one_hot(indices, n_experts, dtype=values.dtype) * values[..., None], axis=-2)


@inlined
def into_experts(x, W, b):
    y = jnp.einsum("bpd,edf->bpef", x, W)
    return y if b is None else y + b


@inlined
def out_of_experts(post, weights, W_out, b_out):
    weights = weights.astype(post.dtype)
    out = jnp.einsum("bpef,bpe,efd->bpd", post, weights, W_out)
    return out if b_out is None else out + jnp.einsum("bpe,ed->bpd", weights, b_out)


@inlined
def open_gate(x, W):
    return jax.nn.sigmoid(jnp.einsum("bpd,d->bp", x, W))[..., None]


@inlined
def add_shared(out, shared, gate):
    return out + (shared if gate is None else gate * shared)


NEURONS = ("hook_pre", "hook_pre_linear", "hook_post")


class MoE(Module):
    """A router over gated experts (Shazeer et al. 2017, 1701.06538; Jiang et al. 2024, 2401.04088).

    With `cfg.d_shared_expert` there is one more expert that every token uses (Dai et al. 2024, 2401.06066).
    """

    of_experts = ("W_gate", "W_in", "W_out", "b_gate", "b_in", "b_out")

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
    shared: GatedMLP | None = nnx.data()

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
        chosen = choose(weights, self.b_choice, self.cfg)
        if any(map(tap.needs, NEURONS)):
            out = self.with_neurons(x, of_all(*chosen, self.cfg.num_experts), tap)
        else:
            out = run_chosen(x, *chosen, self.expert_weights(), act_fn=self.cfg.act_fn)
        if self.shared is None:
            return out
        opening = None if self.W_shared_gate is None else tap("hook_shared_gate", open_gate(x, self.W_shared_gate))
        return add_shared(out, self.shared(x, tap.at("shared")), opening)

    def with_neurons(self, x, weights: Float[Array, "b p e"], tap) -> Float[Array, "b p d"]:
        """The output of the experts, each of which runs on every token."""
        W = {name: as_array(w) for name, w in self.expert_weights().items()}
        pre = tap("hook_pre", into_experts(x, W["W_gate"], W.get("b_gate")))
        pre_linear = tap("hook_pre_linear", into_experts(x, W["W_in"], W.get("b_in")))
        post = tap("hook_post", gate(pre, pre_linear, self.cfg.act_fn))
        return out_of_experts(post, weights, W["W_out"], W.get("b_out"))

    def expert_weights(self) -> dict[str, Array | InStack]:
        """The weights and biases that each expert has its own of."""
        weights = {name: getattr(self, name) for name in self.of_experts}
        return {name: w for name, w in weights.items() if w is not None}
