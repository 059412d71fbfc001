"""What every part is: named weights whose shapes are written in axis letters, and a function of them.

Axes: b batch, p query position, s source position, d d_model, n query head, k key/value head, h d_head, m d_mlp,
e expert, f d_expert, x d_shared_expert, v vocabulary, o output vocabulary, w d_embed, l layer, c n_ctx, u pos_offset.
In latent attention: t d_v_head, r q_lora_rank, z kv_lora_rank, j the rotated part of d_head, y the other.
"""

import dataclasses
from collections.abc import Mapping

import jax
from flax import nnx

from jaxlens.config import Config


class Part(nnx.Module):
    """A piece of the transformer: weights that its class declares with `nnx.data()`, as plain arrays, and `__call__`.

    A weight is an array, traced or not, or None where the config leaves it out. The declaration is what makes it data:
    without one, Flax takes a tracer for a static attribute.

    A part is a pytree, so a stack of blocks is a Block whose arrays carry a leading layer axis, and one layer of it is
    `jax.tree.map(lambda w: w[layer], stack)`.
    """

    def __init__(self, cfg: Config, weights: Mapping[str, jax.Array]):
        self.cfg = cfg
        declared = {name: value for owner in reversed(type(self).__mro__) for name, value in vars(owner).items()}
        for name, value in declared.items():
            if isinstance(value, dataclasses.Field):
                setattr(self, name, weights.get(name))

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        """Every weight this part has under `cfg`, and its axes: `{"W_in": "d m", ...}`."""
        raise NotImplementedError


def sizes(cfg: Config) -> dict[str, int | None]:
    """How long each axis letter is.

    Example:
        >>> cfg = Config(n_layers=2, d_model=12, n_heads=6, n_key_value_heads=2, d_head=5, d_vocab=50, n_ctx=16)
        >>> sizes(cfg)["k"], sizes(cfg)["m"]
        (2, 48)
    """
    return {
        "c": cfg.n_ctx, "d": cfg.d_model, "e": cfg.num_experts, "f": cfg.d_expert, "h": cfg.d_head,
        "j": cfg.rotary_dim, "y": cfg.d_head - (cfg.rotary_dim or 0), "t": cfg.d_v_head or cfg.d_head,
        "r": cfg.q_lora_rank, "z": cfg.kv_lora_rank,
        "k": cfg.n_key_value_heads, "l": cfg.n_layers, "m": cfg.d_mlp, "n": cfg.n_heads, "o": cfg.d_vocab_out,
        "u": cfg.pos_offset, "v": cfg.d_vocab, "w": cfg.d_embed or cfg.d_model, "x": cfg.d_shared_expert, "one": 1,
    }  # fmt: skip


def within(prefix: str, weights: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The weights under a prefix, without it: within("attn", {"attn.W_Q": w}) is {"W_Q": w}."""
    return {name.removeprefix(f"{prefix}."): w for name, w in weights.items() if name.startswith(f"{prefix}.")}


def prefixed(prefix: str, axes: Mapping[str, str]) -> dict[str, str]:
    """The reverse of `within`, for axes."""
    return {f"{prefix}.{name}": letters for name, letters in axes.items()}
