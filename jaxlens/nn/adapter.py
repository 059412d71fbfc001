"""Low-rank updates of the linear maps of a layer: LoRA (Hu et al. 2021, arXiv 2106.09685), not merged.

Axes: b batch, p position, d d_model, n query head, k key/value head, h d_head, m d_mlp, a adapter_rank.

    x ─┬─ W ───────────────────────── + ─
       └─ A ─ B ─ × scale ─(hook_out)─┘
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlens._jax import inlined
from jaxlens.config import Config
from jaxlens.nn.module import Module, prefixed, within

AXES = {
    "W_Q": ("d a", "a n h"), "W_K": ("d a", "a k h"), "W_V": ("d a", "a k h"), "W_O": ("n h a", "a d"),
    "W_in": ("d a", "a m"), "W_gate": ("d a", "a m"), "W_out": ("m a", "a d"),
}  # fmt: skip
"""The weights that can have an update, and the axes of its factors A and B."""


@functools.partial(inlined, static_argnames=("axes",))
def low_rank(x, A, B, scale, axes: tuple[str, str]):
    """x [b p ...] times A B. Queries, keys and values may have an input per head, [b p n d]."""
    of_A, of_B = (letters.replace(" ", "") for letters in axes)
    head = of_B[1] if of_A == "da" and x.ndim == 4 else ""
    inner = jnp.einsum(f"bp{head}{of_A[:-1]},{of_A}->bp{head}a", x, A)
    return jnp.einsum(f"bp{head}a,{of_B}->bp{of_B[1:]}", inner, B) * scale


@inlined
def head_updates(z, A, B, scale):
    """The update of W_O for each head, [b p n d]."""
    return jnp.einsum("bpna,ad->bpnd", jnp.einsum("bpnh,nha->bpna", z, A), B) * scale


@inlined
def add_update(x, update):
    return x + update


class LowRank(Module):
    """An update of a weight: `scale * A B`. The factor of the adapter (alpha / r) is part of B."""

    A: Float[Array, "*inputs a"] = nnx.data()
    B: Float[Array, "a *outputs"] = nnx.data()
    scale: Float[Array, ""] = nnx.data()

    def __init__(self, cfg: Config, weights: Mapping[str, jax.Array], of: str):
        super().__init__(cfg, weights)
        self.of = of

    def __call__(self, x):
        return low_rank(x, self.A, self.B, self.scale, AXES[self.of])


class Adaptable(Module):
    """A module whose weights can have low-rank updates. `lora_Q` is the update of `W_Q`, or None."""

    adaptable: tuple[str, ...] = ()

    def __init__(self, cfg: Config, weights: Mapping[str, jax.Array]):
        super().__init__(cfg, weights)
        for of in self.adaptable:
            name = _name(of)
            setattr(self, name, LowRank(cfg, within(name, weights), of) if of in cfg.adapter else None)

    @classmethod
    def update_axes(cls, cfg: Config) -> dict[str, str]:
        """The axes of the updates."""
        axes: dict[str, str] = {}
        for of in (of for of in cls.adaptable if of in cfg.adapter):
            axes |= prefixed(_name(of), {"A": AXES[of][0], "B": AXES[of][1], "scale": ""})
        return axes

    def adapted(self, of: str, x, y, tap):
        """`y`, the output of the weight `of` for the input `x`, plus the output of its update."""
        update = getattr(self, _name(of))
        return y if update is None else add_update(y, tap.at(_name(of))("hook_out", update(x)))

    def updated(self, of: str):
        """The weight `of` including its update. Both may have leading layer axes."""
        W, update = getattr(self, of), getattr(self, _name(of))
        if update is None:
            return W
        of_A, of_B = (letters.replace(" ", "") for letters in AXES[of])
        merged = {"W_O": "nhd", "W_out": "md", "W_in": "dm", "W_gate": "dm", "W_Q": "ndh"}.get(of, "kdh")
        change = jnp.einsum(f"...{of_A},...{of_B}->...{merged}", update.A, update.B)
        return W + (change * update.scale.reshape(update.scale.shape + (1,) * len(merged))).astype(W.dtype)


def _name(of: str) -> str:
    return f"lora_{of.removeprefix('W_')}"
