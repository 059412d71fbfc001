"""The base class of every module: named weights whose shapes are written in axis letters, and a function of them.

Axes: b batch, p query position, s source position, d d_model, n query head, k key/value head, h d_head, m d_mlp,
e expert, f d_expert, x d_shared_expert, v vocabulary, o output vocabulary, w d_embed, l layer, c n_ctx, u pos_offset,
a adapter_rank.
In latent attention: t d_v_head, r q_lora_rank, z kv_lora_rank, j the rotated part of d_head, y the other part.
"""

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

import jax
from flax import nnx

from jaxlens._jax import OF_FLAX, FlaxModule
from jaxlens.config import Config


class Module(FlaxModule):
    """A function, `__call__`, of named weights, which the class declares with `nnx.data()`.

    A new module holds each weight as an `nnx.Param`, or None if the config leaves it out. It computes with arrays:
    `arrays(module)` is the module for a computation. Modules inside a module are declared with `nnx.data()` too.

    A module is a pytree. A stack of blocks is a Block whose weights have a leading layer axis, and one layer of it is
    `jax.tree.map(lambda w: w[layer], stack)`.
    """

    children: tuple[str, ...] = ()
    products: tuple[str, ...] = ()
    """The weights that multiply every token as one matrix."""
    of_experts: tuple[str, ...] = ()
    """The weights that each expert has its own of."""
    _not_static: Set[str] = OF_FLAX

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        declared = (name for name, value in vars(cls).items() if isinstance(value, dataclasses.Field))
        cls.children = tuple(dict.fromkeys((*cls.children, *declared)))
        cls._not_static = {*cls.children, *OF_FLAX}

    def __init__(self, cfg: Config, weights: Mapping[str, jax.Array]):
        self.cfg = cfg
        for name in self.children:
            weight = weights.get(name)
            setattr(self, name, None if weight is None else nnx.Param(weight))

    def tree_flatten(self):
        attributes, not_static = vars(self), self._not_static
        static = [name for name in attributes if name not in not_static]
        static.sort()
        return [attributes[name] for name in self.children], tuple([(name, attributes[name]) for name in static])

    def tree_flatten_with_keys(self):
        children, static = self.tree_flatten()
        return list(zip(map(jax.tree_util.GetAttrKey, self.children), children, strict=True)), static

    @classmethod
    def tree_unflatten(cls, static, children):
        module = object.__new__(cls)
        vars(module).update(static, **dict(zip(cls.children, children, strict=True)))
        return module

    @classmethod
    def axes(cls, cfg: Config) -> dict[str, str]:
        """The weights of the module for this config, and their axes: `{"W_in": "d m", ...}`. Empty by default."""
        return {}


def arrays(modules: Any) -> Any:
    """The same modules (any pytree of them) with arrays in place of `nnx.Param`s."""

    def is_variable(w):
        return isinstance(w, nnx.Variable)

    return jax.tree.map(lambda w: w.get_raw_value() if is_variable(w) else w, modules, is_leaf=is_variable)


def axis_lengths(cfg: Config) -> dict[str, int | None]:
    """The length of each axis letter.

    Example:
        >>> cfg = Config(n_layers=2, d_model=12, n_heads=6, n_key_value_heads=2, d_head=5, d_vocab=50, n_ctx=16)
        >>> axis_lengths(cfg)["k"], axis_lengths(cfg)["m"]
        (2, 48)
    """
    return {
        "a": cfg.adapter_rank,
        "c": cfg.n_ctx, "d": cfg.d_model, "e": cfg.num_experts, "f": cfg.d_expert, "h": cfg.d_head,
        "j": cfg.rotary_dim, "y": cfg.d_head - (cfg.rotary_dim or 0), "t": cfg.d_v_head or cfg.d_head,
        "r": cfg.q_lora_rank, "z": cfg.kv_lora_rank,
        "k": cfg.n_key_value_heads, "l": cfg.n_layers, "m": cfg.d_mlp, "n": cfg.n_heads, "o": cfg.d_vocab_out,
        "u": cfg.pos_offset, "v": cfg.d_vocab, "w": cfg.d_embed or cfg.d_model, "x": cfg.d_shared_expert, "one": 1,
    }  # fmt: skip


def within(prefix: str, weights: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The weights whose names have a prefix, which is removed: within("attn", {"attn.W_Q": w}) is {"W_Q": w}."""
    return {name.removeprefix(f"{prefix}."): w for name, w in weights.items() if name.startswith(f"{prefix}.")}


def prefixed(prefix: str, axes: Mapping[str, str]) -> dict[str, str]:
    """The axes with a prefix before each name: the reverse of `within`."""
    return {f"{prefix}.{name}": letters for name, letters in axes.items()}
