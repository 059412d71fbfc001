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

from jaxlens._jax import inlined
from jaxlens.config import Config
from jaxlens.nn.adapter import Adaptable, LowRank
from jaxlens.nn.in_stack import InStack, one_token
from jaxlens.nn.module import prefixed, within
from jaxlens.nn.norm import Norm


def solu(x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
    """Softmax linear unit (Elhage et al. 2022, transformer-circuits.pub/2022/solu)."""
    return x * jax.nn.softmax(x, axis=-1)


def gelu_fast(x: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
    """GELU's tanh approximation with sqrt(2 / π) rounded to ten digits, as in the training of some checkpoints."""
    return 0.5 * x * (1 + jnp.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x)))


def xielu(x: Float[Array, "*b m"], alpha_p: Float[Array, "1"], alpha_n: Float[Array, "1"]) -> Float[Array, "*b m"]:
    """xIELU: the integral of an ELU on both sides, with learned curvatures (Huang & Schlag 2024, arXiv 2411.13010)."""
    beta, least = 0.5, jnp.asarray(-1e-6, x.dtype)
    alpha_p, alpha_n = jax.nn.softplus(alpha_p), beta + jax.nn.softplus(alpha_n)
    negative = (jnp.expm1(jnp.minimum(x, least)) - x) * alpha_n + beta * x
    return jnp.where(x > 0, alpha_p * x * x + beta * x, negative)


def clamped_swiglu(gate: Float[Array, "*b m"], linear: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
    """The gate of gpt-oss (arXiv 2508.10925): g σ(1.702 g) (1 + clip(linear, ±7)), where g = min(gate, 7)."""
    gate, linear = jnp.minimum(gate, 7.0), jnp.clip(linear, -7.0, 7.0)
    return gate * jax.nn.sigmoid(1.702 * gate) * (linear + 1)


tanh_gelu = functools.partial(jax.nn.gelu, approximate=True)
ACTIVATION_FUNCTIONS = {
    "relu": jax.nn.relu, "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "gelu": functools.partial(jax.nn.gelu, approximate=False), "gelu_new": tanh_gelu, "gelu_pytorch_tanh": tanh_gelu,
    "gelu_fast": gelu_fast, "silu": jax.nn.silu, "solu": solu, "solu_ln": solu,
}  # fmt: skip


@inlined
def linear(x, W, b):
    y = one_token(x[0, 0], W)[None, None] if isinstance(W, InStack) else jnp.einsum("bpd,dm->bpm", x, W)
    return y if b is None else y + b


@functools.partial(inlined, static_argnames=("act_fn",))
def activate(pre, act_fn: str):
    return ACTIVATION_FUNCTIONS[act_fn](pre)


@functools.partial(inlined, static_argnames=("act_fn",))
def gate(pre, pre_linear, act_fn: str):
    if act_fn == "clamped_swiglu":
        return clamped_swiglu(pre, pre_linear)
    return ACTIVATION_FUNCTIONS[act_fn](pre) * pre_linear


activate_xielu = inlined(xielu)


class MLP(Adaptable):
    """Two linear maps with an activation function between them.

    If `act_fn` ends in "_ln", a LayerNorm follows the activation function, before the second map.
    """

    adaptable = products = ("W_in", "W_out")

    W_in: Float[Array, "d m"] = nnx.data()
    W_out: Float[Array, "m d"] = nnx.data()
    b_in: Float[Array, "m"] | None = nnx.data()
    b_out: Float[Array, "d"] | None = nnx.data()
    alpha_p: Float[Array, "1"] | None = nnx.data()
    alpha_n: Float[Array, "1"] | None = nnx.data()
    ln: Norm | None = nnx.data()
    lora_in: LowRank | None = nnx.data()
    lora_out: LowRank | None = nnx.data()

    def __init__(self, cfg: Config, weights):
        super().__init__(cfg, weights)
        self.ln = Norm(cfg, within("ln", weights), self.norm_kind(cfg)) if cfg.act_fn.endswith("_ln") else None

    @staticmethod
    def norm_kind(cfg: Config) -> str:
        """The kind of the norm inside the MLP: a LayerNorm, without weights if those of the other norms are folded."""
        return "LNPre" if cfg.normalization_type in ("LNPre", "RMSPre") else "LN"

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        axes = {"W_in": "d m", "W_out": "m d"}
        axes |= {name: letters for name, letters in {"b_in": "m", "b_out": "d"}.items() if name in cfg.biases}
        axes |= {"alpha_p": "one", "alpha_n": "one"} if cfg.act_fn == "xielu" else {}
        axes |= cls.update_axes(cfg)
        return axes | (prefixed("ln", Norm.axes(cfg, "m", cls.norm_kind(cfg))) if cfg.act_fn.endswith("_ln") else {})

    def __call__(self, x: Float[Array, "b p d"], tap) -> Float[Array, "b p d"]:
        pre = tap("hook_pre", self.adapted("W_in", x, linear(x, self.W_in, self.b_in), tap))
        post = self.activated(pre) if self.ln is None else self.ln(tap("hook_mid", self.activated(pre)), tap.at("ln"))
        post = tap("hook_post", post)
        return self.adapted("W_out", post, linear(post, self.W_out, self.b_out), tap)

    def activated(self, pre: Float[Array, "b p m"]) -> Float[Array, "b p m"]:
        if self.cfg.act_fn == "xielu":
            return activate_xielu(pre, self.alpha_p, self.alpha_n)
        return activate(pre, self.cfg.act_fn)


class GatedMLP(Adaptable):
    """An MLP whose hidden layer is an activated gate times a linear map (Shazeer 2020, arXiv 2002.05202)."""

    adaptable = products = ("W_in", "W_gate", "W_out")

    W_in: Float[Array, "d m"] = nnx.data()
    W_gate: Float[Array, "d m"] = nnx.data()
    W_out: Float[Array, "m d"] = nnx.data()
    b_in: Float[Array, "m"] | None = nnx.data()
    b_gate: Float[Array, "m"] | None = nnx.data()
    b_out: Float[Array, "d"] | None = nnx.data()
    lora_in: LowRank | None = nnx.data()
    lora_gate: LowRank | None = nnx.data()
    lora_out: LowRank | None = nnx.data()

    @classmethod
    def axes(cls, cfg: Config, width: str = "m") -> dict[str, str]:
        """`width` is the axis letter of the hidden layer."""
        weights = {"W_in": f"d {width}", "W_gate": f"d {width}", "W_out": f"{width} d"}
        weights |= {name: letters for name, letters in cls.bias_axes(width).items() if name in cfg.biases}
        return weights | cls.update_axes(cfg)

    @classmethod
    def bias_axes(cls, width: str = "m") -> dict[str, str]:
        return {"b_in": width, "b_gate": width, "b_out": "d"}

    def __call__(self, x: Float[Array, "b p d"], tap) -> Float[Array, "b p d"]:
        pre = tap("hook_pre", self.adapted("W_gate", x, linear(x, self.W_gate, self.b_gate), tap))
        pre_linear = tap("hook_pre_linear", self.adapted("W_in", x, linear(x, self.W_in, self.b_in), tap))
        post = tap("hook_post", gate(pre, pre_linear, self.cfg.act_fn))
        return self.adapted("W_out", post, linear(post, self.W_out, self.b_out), tap)
