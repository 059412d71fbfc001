"""One layer: how attention and MLP meet the residual stream.

Axes: b batch, p position, d d_model, n query head, k key/value head.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens.config import Config
from jaxlens.nn.attention import Attention
from jaxlens.nn.context import LayerContext
from jaxlens.nn.latent import LatentAttention
from jaxlens.nn.mlp import MLP, GatedMLP
from jaxlens.nn.moe import MoE
from jaxlens.nn.norm import NoNorm, Norm, OutputNorm, OutputScale
from jaxlens.nn.part import Part, prefixed, within

SPLIT_INPUTS = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")


@functools.partial(jax.jit, inline=True)
def add(*terms):
    return sum(terms[1:], start=terms[0])


@functools.partial(jax.jit, static_argnames=("n_heads",), inline=True)
def copy_for_heads(x: Float[Array, "b p d"], n_heads: int) -> Float[Array, "b p n d"]:
    return jnp.broadcast_to(x[:, :, None], (*x.shape[:2], n_heads, x.shape[-1]))


@functools.partial(jax.jit, inline=True)
def add_difference(own, edited, unedited):
    """A reader's own input, [b p d] or [b p n d], moved by what an edit changed in the shared one [b p d]."""
    difference = edited - unedited
    return own + (difference if own.ndim == 3 else difference[:, :, None])


class Block(Part):
    """A transformer layer; which norms and which MLP it has follows from the config alone.

    Sequential:

        ─(hook_resid_pre)─┬─ ln1 ─ attn ─ ln1_post ─(hook_attn_out)─ + ─(hook_resid_mid)─┬─ ln2 ─ mlp ─ ln2_post ─(hook_mlp_out)─ + ─(hook_resid_post)─
                          └──────────────────────────────────────────┘                   └────────────────────────────────────────┘

    Parallel: ln2 and the MLP read hook_resid_pre too, and both outputs are added to it at once. A norm that the config
    places elsewhere is the identity here; norms of sums, ln1_sum and ln2_sum, stand right after the two +. Where the
    config has a residual_scale, it stands at ln1_post and ln2_post.
    """  # fmt: skip  # noqa: E501

    def __init__(self, cfg: Config, weights, mixes_experts: bool = False):
        self.cfg = cfg
        parts = self.parts(cfg, mixes_experts)
        build = {name: part(cfg, within(name, weights)) for name, part in parts.items()}
        self.ln1, self.attn, self.ln1_post = build["ln1"], build["attn"], build["ln1_post"]
        self.ln2, self.mlp, self.ln2_post = build["ln2"], build.get("mlp"), build["ln2_post"]
        self.ln1_sum, self.ln2_sum = build["ln1_sum"], build["ln2_sum"]

    @staticmethod
    def parts(cfg: Config, mixes_experts: bool) -> dict[str, type[Part]]:
        """What stands at each place of the block."""
        placed = {cfg.norm_placement} if cfg.normalization_type else set()
        before = Norm if placed & {"pre", "both"} else NoNorm
        after = OutputNorm if placed & {"post", "both"} else NoNorm if cfg.residual_scale == 1 else OutputScale
        of_sum = OutputNorm if placed & {"sum"} else NoNorm
        attention = Attention if cfg.kv_lora_rank is None else LatentAttention
        parts = {"ln1": before, "attn": attention, "ln1_post": after, "ln1_sum": of_sum, "ln2_sum": of_sum}
        if cfg.attn_only:
            return parts | {"ln2": NoNorm, "ln2_post": NoNorm}
        mlp = MoE if mixes_experts else GatedMLP if cfg.gated_mlp else MLP
        return parts | {"ln2": NoNorm if cfg.shared_norm else before, "mlp": mlp, "ln2_post": after}

    @classmethod
    def axes(cls, cfg: Config, mixes_experts: bool = False) -> dict[str, str]:
        axes: dict[str, str] = {}
        for name, part in cls.parts(cfg, mixes_experts).items():
            axes |= prefixed(name, part.axes(cfg))
        return axes

    def __call__(self, x: Float[Array, "b p d"], at: LayerContext, tap) -> Float[Array, "b p d"]:
        x = tap("hook_resid_pre", x)
        normal = self.ln1(x, tap.at("ln1"))
        attn_out = self.attn(self.attention_inputs(x, normal, at, tap), at, tap.at("attn"))
        attn_out = tap("hook_attn_out", self.ln1_post(attn_out, tap.at("ln1_post")))
        if self.cfg.parallel_attn_mlp:
            return tap("hook_resid_post", add(x, attn_out, self.mlp_out(x, normal, tap)))
        if self.cfg.attn_only:
            return tap("hook_resid_post", add(x, attn_out))
        x = tap("hook_resid_mid", self.ln1_sum(add(x, attn_out), tap.at("ln1_sum")))
        return tap("hook_resid_post", self.ln2_sum(add(x, self.mlp_out(x, None, tap)), tap.at("ln2_sum")))

    def mlp_out(self, x, shared, tap) -> Float[Array, "b p d"]:
        """What the MLP adds to the residual stream that it reads; `shared` is ln1's output, for a shared norm."""
        read = tap("hook_mlp_in", x)
        if not self.cfg.shared_norm:
            normal = self.ln2(read, tap.at("ln2"))
        else:
            normal = self.normal_apart(read, x, shared, tap) if tap.edits("hook_mlp_in") else shared
        return tap("hook_mlp_out", self.ln2_post(self.mlp(normal, tap.at("mlp")), tap.at("ln2_post")))

    def attention_inputs(self, x, normal, at: LayerContext, tap):
        """What queries, keys and values read: the normalised residual, or a copy of it for every head if asked for."""
        inputs = (normal, normal, normal)
        if any(tap.listens(name) for name in SPLIT_INPUTS):
            inputs = self.split_inputs(x, normal, tap)
        if at.pos_embed is None:
            return inputs
        q, k, v = inputs
        pos_embed = at.pos_embed if q.ndim == 3 else at.pos_embed[:, :, None]
        return add(q, pos_embed), add(k, pos_embed), v

    def split_inputs(self, x, normal, tap):
        """The inputs of queries, keys and values head by head, before and then after ln1."""
        n, k = self.cfg.n_heads, self.cfg.n_key_value_heads
        if tap.listens("hook_attn_in"):
            shared = tap("hook_attn_in", copy_for_heads(x, n))
            copies = (shared, shared, shared)
        else:
            copies = (copy_for_heads(x, n), copy_for_heads(x, k), copy_for_heads(x, k))
        inputs = (tap(name, copy) for name, copy in zip(SPLIT_INPUTS[1:], copies, strict=True))
        return tuple(self.normal_apart(copy, x, normal, tap) for copy in inputs)

    def normal_apart(self, own, x, normal, tap):
        """ln1 of a copy of the residual stream that some reader has for itself.

        An edit of ln1's own hook points moves it by as much as it moved `normal`, which is what ln1 made of `x`.
        """
        own = self.ln1(own, tap.silent())
        if not any(tap.edits(name) for name in ("ln1.hook_scale", "ln1.hook_normalized")):
            return own
        return add_difference(own, normal, self.ln1(x, tap.silent()))
