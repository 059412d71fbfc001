"""The MLPs and the table of activation functions.

Axes: b batch, p position, d d_model, m d_mlp.

    plain:  x ─ W_in ─(hook_pre)─ act ─(hook_post)─ W_out
    gated:  x ─ W_gate ─(hook_pre)─ act ─ × ─(hook_post)─ W_out
            x ─ W_in ─(hook_pre_linear)───┘
    "_ln":  x ─ W_in ─(hook_pre)─ act ─(hook_mid)─ ln ─(hook_post)─ W_out
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlens.config import Config
from jaxlens.nn.norm import Norm
from jaxlens.nn.part import Part, prefixed, within

piece = functools.partial(jax.jit, inline=True)


def solu(x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
    """Softmax linear unit (Elhage et al. 2022, transformer-circuits.pub/2022/solu)."""
    return x * jax.nn.softmax(x, axis=-1)


def gelu_fast(x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
    """The tanh approximation with its constant written out to eight digits, as some checkpoints were trained."""
    return 0.5 * x * (1 + jnp.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x)))


tanh_gelu = functools.partial(jax.nn.gelu, approximate=True)
ACTIVATION_FUNCTIONS = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "gelu_fast": gelu_fast,
    "silu": jax.nn.silu,
    "solu": solu,
    "solu_ln": solu,
}


@piece
def linear(x, W, b):
    y = jnp.einsum("bpd,dm->bpm", x, W)
    return y if b is None else y + b


@functools.partial(piece, static_argnames=("act_fn",))
def activate(pre, act_fn: str):
    return ACTIVATION_FUNCTIONS[act_fn](pre)


@functools.partial(piece, static_argnames=("act_fn",))
def gate(pre, pre_linear, act_fn: str):
    return ACTIVATION_FUNCTIONS[act_fn](pre) * pre_linear


class MLP(Part):
    """Two linear maps with an activation between them, and a LayerNorm after it where `act_fn` ends in "_ln"."""

    W_in: Float[Array, "d m"] = nnx.data()
    W_out: Float[Array, "m d"] = nnx.data()
    b_in: Float[Array, "m"] | None = nnx.data()
    b_out: Float[Array, "d"] | None = nnx.data()

    def __init__(self, cfg: Config, weights):
        super().__init__(cfg, weights)
        self.ln = Norm(cfg, within("ln", weights), "m", self.norm_kind(cfg)) if cfg.act_fn.endswith("_ln") else None

    @staticmethod
    def norm_kind(cfg: Config) -> str:
        """The norm inside is a LayerNorm, folded or not as the others are."""
        return "LNPre" if cfg.normalization_type in ("LNPre", "RMSPre") else "LN"

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        axes = {"W_in": "d m", "W_out": "m d", "b_in": "m", "b_out": "d"}
        axes = {name: letters for name, letters in axes.items() if name.startswith("W") or name in cfg.biases}
        inner = prefixed("ln", Norm.axes(cfg, "m", cls.norm_kind(cfg))) if cfg.act_fn.endswith("_ln") else {}
        return axes | inner

    def __call__(self, x: Float[Array, "b p d"], tap) -> Float[Array, "b p d"]:
        pre = tap("hook_pre", linear(x, self.W_in, self.b_in))
        if self.ln is None:
            post = activate(pre, self.cfg.act_fn)
        else:
            post = self.ln(tap("hook_mid", activate(pre, self.cfg.act_fn)), tap.at("ln"))
        return linear(tap("hook_post", post), self.W_out, self.b_out)


class GatedMLP(Part):
    """An MLP whose hidden layer is the product of an activated gate and a linear map (Shazeer 2020, 2002.05202)."""

    W_in: Float[Array, "d m"] = nnx.data()
    W_gate: Float[Array, "d m"] = nnx.data()
    W_out: Float[Array, "m d"] = nnx.data()
    b_in: Float[Array, "m"] | None = nnx.data()
    b_gate: Float[Array, "m"] | None = nnx.data()
    b_out: Float[Array, "d"] | None = nnx.data()

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        axes = {"W_in": "d m", "W_gate": "d m", "W_out": "m d", "b_in": "m", "b_gate": "m", "b_out": "d"}
        return {name: letters for name, letters in axes.items() if name.startswith("W") or name in cfg.biases}

    def __call__(self, x: Float[Array, "b p d"], tap) -> Float[Array, "b p d"]:
        pre = tap("hook_pre", linear(x, self.W_gate, self.b_gate))
        pre_linear = tap("hook_pre_linear", linear(x, self.W_in, self.b_in))
        post = tap("hook_post", gate(pre, pre_linear, self.cfg.act_fn))
        return linear(post, self.W_out, self.b_out)
