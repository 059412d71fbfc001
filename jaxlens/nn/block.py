"""One layer: attention and MLP, and how they read and write the residual stream.

Axes: b batch, p position, d d_model, n query head, k key/value head.
"""

import functools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlens._jax import inlined
from jaxlens.config import BlockKind, Config
from jaxlens.nn.attention import Attention
from jaxlens.nn.latent import LatentAttention
from jaxlens.nn.mlp import MLP, GatedMLP
from jaxlens.nn.module import Module, prefixed, within
from jaxlens.nn.moe import MoE
from jaxlens.nn.norm import Identity, Norm, OutputNorm, OutputScale
from jaxlens.nn.sequence import LayerInfo

INPUTS_OF_ATTENTION = ("ln1.hook_scale", "ln1.hook_normalized", "ln1.hook_out", "attn.hook_in")
SPLIT_INPUTS = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")
ATTENTIONS = {"standard": Attention, "latent": LatentAttention}
MLPS = {"plain": MLP, "gated": GatedMLP, "experts": MoE}


class Block(Module):
    """A transformer layer. The config determines its norms, and its BlockKind determines its attention and MLP.

    Sequential:

        ─(hook_resid_pre)─┬─ ln1 ─(ln1.hook_out)─ attn ─ ln1_post ─(hook_attn_out)─ + ─(hook_resid_mid)─┐
                          └─────────────────────────────────────────────────────────┘                   │
        ┌───────────────────────────────────────────────────────────────────────────────────────────────┘
        └─────────────────┬─ ln2 ─(ln2.hook_out)─ mlp ─ ln2_post ─(hook_mlp_out)─ + ─(hook_resid_post)─
                          └───────────────────────────────────────────────────────┘

    Parallel: ln2 and the MLP read hook_resid_pre too, and both outputs are added to it at once. With a shared norm:

        ─(hook_resid_pre)─ ln1 ─(ln1.hook_out)─┬─(attn.hook_in)─ attn
                                               └─(mlp.hook_in)─ mlp

    A norm that the config leaves out is the identity. With norm_placement="sum", ln1_sum and ln2_sum normalize the two
    sums. A residual_scale replaces ln1_post and ln2_post by a factor.
    """

    ln1: Norm | Identity = nnx.data()
    attn: Attention = nnx.data()
    ln1_post: OutputNorm | OutputScale | Identity = nnx.data()
    ln1_sum: OutputNorm | Identity = nnx.data()
    ln2: Norm | Identity = nnx.data()
    mlp: MLP | GatedMLP | MoE | None = nnx.data()
    ln2_post: OutputNorm | OutputScale | Identity = nnx.data()
    ln2_sum: OutputNorm | Identity = nnx.data()

    def __init__(self, cfg: Config, weights, kind: BlockKind):
        self.cfg = cfg
        modules = self.modules(cfg, kind)
        for name in self.children:
            setattr(self, name, modules[name](cfg, within(name, weights)) if name in modules else None)

    @staticmethod
    def modules(cfg: Config, kind: BlockKind) -> dict[str, type[Module]]:
        """The class of each module of a block."""
        placed = {cfg.norm_placement} if cfg.normalization_type else set()
        before = Norm if placed & {"pre", "both"} else Identity
        after = OutputNorm if placed & {"post", "both"} else Identity if cfg.residual_scale == 1 else OutputScale
        of_sum = OutputNorm if placed & {"sum"} else Identity
        modules = {"ln1": before, "attn": ATTENTIONS[kind.attention], "ln1_post": after}
        modules |= {"ln1_sum": of_sum, "ln2_sum": of_sum}
        if kind.mlp == "none":
            return modules | {"ln2": Identity, "ln2_post": Identity}
        return modules | {"ln2": Identity if cfg.shared_norm else before, "mlp": MLPS[kind.mlp], "ln2_post": after}

    @classmethod
    def axes(cls, cfg: Config, kind: BlockKind) -> dict[str, str]:
        axes: dict[str, str] = {}
        for name, module in cls.modules(cfg, kind).items():
            axes |= prefixed(name, module.axes(cfg))
        return axes

    def __call__(self, x: Float[Array, "b p d"], info: LayerInfo, tap) -> Float[Array, "b p d"]:
        x = tap("hook_resid_pre", x)
        normed = self.ln1(x, tap.at("ln1"))
        attn_in = tap("attn.hook_in", normed)  # a hook point if the MLP reads `normed` too
        attn_out = self.attn(self.attention_inputs(x, attn_in, info, tap), info, tap.at("attn"))
        attn_out = tap("hook_attn_out", self.ln1_post(attn_out, tap.at("ln1_post")))
        if self.cfg.parallel_attn_mlp:
            return tap("hook_resid_post", add(x, attn_out, self.mlp_out(x, normed, tap)))
        if self.cfg.attn_only:
            return tap("hook_resid_post", add(x, attn_out))
        x = tap("hook_resid_mid", self.ln1_sum(add(x, attn_out), tap.at("ln1_sum")))
        return tap("hook_resid_post", self.ln2_sum(add(x, self.mlp_out(x, None, tap)), tap.at("ln2_sum")))

    def mlp_out(self, x, shared, tap) -> Float[Array, "b p d"]:
        """The output of the MLP to the residual stream x. `shared` is ln1's output, for models with a shared norm."""
        mlp_in = tap("hook_mlp_in", x)
        if not self.cfg.shared_norm:
            normed = self.ln2(mlp_in, tap.at("ln2"))
        else:
            normed = self.normed_copy(mlp_in, x, shared, tap) if tap.edits("hook_mlp_in") else shared
            normed = tap("mlp.hook_in", normed)
        return tap("hook_mlp_out", self.ln2_post(self.mlp(normed, tap.at("mlp")), tap.at("ln2_post")))

    def attention_inputs(self, x, normed, info: LayerInfo, tap):
        """The inputs of queries, keys and values: the normed residual, or one copy per head if a hook needs them."""
        inputs = (normed, normed, normed)
        if any(tap.needs(name) for name in SPLIT_INPUTS):
            inputs = self.split_inputs(x, normed, tap)
        if info.qk_input is None:
            return inputs
        q, k, v = inputs
        qk_input = info.qk_input if q.ndim == 3 else info.qk_input[:, :, None]
        return add(q, qk_input), add(k, qk_input), v

    def split_inputs(self, x, normed, tap):
        """The inputs of queries, keys and values per head: copies of the residual stream, after their hooks and ln1."""
        n, k = self.cfg.n_heads, self.cfg.n_key_value_heads
        if tap.needs("hook_attn_in"):
            shared = tap("hook_attn_in", copy_for_heads(x, n))
            copies = (shared, shared, shared)
        else:
            copies = (copy_for_heads(x, n), copy_for_heads(x, k), copy_for_heads(x, k))
        inputs = (tap(name, copy) for name, copy in zip(SPLIT_INPUTS[1:], copies, strict=True))
        return tuple(self.normed_copy(copy, x, normed, tap) for copy in inputs)

    def normed_copy(self, copy, x, normed, tap):
        """ln1 of a copy of the residual stream `x`, plus the change that hooks made to `normed`, ln1 of `x`."""
        copy = self.ln1(copy, tap.without_hooks())
        if not any(map(tap.edits, INPUTS_OF_ATTENTION)):
            return copy
        return add_difference(copy, normed, self.ln1(x, tap.without_hooks()))


@inlined
def add(*terms):
    return sum(terms[1:], start=terms[0])


@functools.partial(inlined, static_argnames=("n_heads",))
def copy_for_heads(x: Float[Array, "b p d"], n_heads: int) -> Float[Array, "b p n d"]:
    return jnp.broadcast_to(x[:, :, None], (*x.shape[:2], n_heads, x.shape[-1]))


@inlined
def add_difference(x, edited, unedited):
    """Adds the change `edited - unedited` [b p d] to x, [b p d] or [b p n d]."""
    difference = edited - unedited
    return x + (difference if x.ndim == 3 else difference[:, :, None])
