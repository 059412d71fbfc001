"""The model's parts as TransformerLens's modules: `model.blocks[1].attn.W_K`, `model.ln_final(resid)`.

Axes: b batch, p position, d d_model, n query head, k key/value head, h d_head; "..." any leading axes.

A part of jaxlens is given what is around it (a tap, positions) and holds weights as they are stored, those of all
layers stacked. A Module is one part of one layer with the rest filled in.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.hooked import HookPointOnModel
from jaxlens.hooks import Tap
from jaxlens.nn.attention import Attention
from jaxlens.nn.block import Block
from jaxlens.nn.context import make_context
from jaxlens.nn.embed import Embed, PosEmbed, Unembed
from jaxlens.nn.part import Part, sizes

KEYS_AND_VALUES = ("W_K", "W_V", "b_K", "b_V")
BIAS_AXES = {
    "b_Q": "n h", "b_K": "k h", "b_V": "k h", "b_O": "d", "b_in": "m", "b_gate": "m", "b_out": "d", "b_U": "o",
}  # fmt: skip


class Module:
    """A part of a model as TransformerLens shows it.

    Its weights are attributes; keys and values of grouped heads are repeated, one per query head, and `_W_K` is how
    they are stored; a bias that the model does not have is zeros. Its hook points are attributes too. Called, it
    computes what the part does, on activations with any leading axes; hooks act in a layer (`model.blocks[1](resid)`)
    but not in pieces of one. `part` is the part itself.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=4, n_key_value_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> logits, cache = model.run_with_cache([[1, 2, 3]])
        >>> attn = model.blocks[1].attn
        >>> attn.W_K.shape, attn._W_K.shape, attn.hook_z
        ((4, 8, 4), (2, 8, 4), HookPoint('blocks.1.attn.hook_z'))
        >>> bool(jnp.allclose(model.unembed(model.ln_final(cache["resid_post", -1])), logits, atol=1e-5))
        True
    """

    def __init__(self, model: Any, name: str, stored: Part, row: int | None = None):
        self._model, self.name, self._stored, self._row = model, name, stored, row

    @property
    def part(self) -> Part:
        """The part itself, with the weights of its layer."""
        return self._stored if self._row is None else jax.tree.map(lambda w: w[self._row], self._stored)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("hook_"):
            return self._hook_point(name)
        raw = name.removeprefix("_") if isinstance(self._stored, Attention) else name
        if raw != name and raw not in KEYS_AND_VALUES:
            raise AttributeError(f"{self.name} has no {name!r}")
        value = getattr(self._stored, raw)
        if name == "W_U" and value is None:  # tied
            return self._model.W_U
        if isinstance(value, Part):
            return Module(self._model, f"{self.name}.{name}", value, self._row)
        if value is None and raw in BIAS_AXES:
            value = self._zeros(raw)
        elif isinstance(value, jax.Array) and self._row is not None:
            value = value[self._row]
        elif self._row is not None:
            return getattr(self.part, name)
        return self._repeated(value) if name in KEYS_AND_VALUES and isinstance(self._stored, Attention) else value

    def _hook_point(self, name: str) -> HookPointOnModel:
        if (full := f"{self.name}.{name}") not in self._model._points:
            raise AttributeError(f'there is no hook point "{full}" in this model; `model.hook_dict` lists them')
        return HookPointOnModel(self._model, full)

    def _zeros(self, bias: str) -> Array:
        lengths = sizes(self._model.cfg)
        return jnp.zeros([lengths[letter] for letter in BIAS_AXES[bias].split()], self._model.cfg.dtype)

    def _repeated(self, weight: Float[Array, "k ..."]) -> Float[Array, "n ..."]:
        return jnp.repeat(weight, self._model.cfg.n_heads // len(weight), axis=0)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the part makes of its input."""
        return _run(self._stored, self, *args, **kwargs)

    def __repr__(self) -> str:
        return f"{type(self._stored).__name__}({self.name})"


class Layers:
    """`model.blocks`: the layers one by one; `model.blocks[3].attn.W_Q` is that layer's own weight."""

    def __init__(self, model: Any):
        self._model = model

    def __len__(self) -> int:
        return self._model.cfg.n_layers

    def __getitem__(self, layer: int) -> Module:
        n, stacks = len(self), self._model.cfg.stacks
        if not isinstance(layer, int | np.integer):
            raise TypeError(f"a layer is a number; got {type(layer).__name__}")
        if not -n <= layer < n:
            raise IndexError(f"there is no layer {layer}; the model has {n}")
        stack, row = next((i, rows.index(layer % n)) for i, rows in enumerate(stacks) if layer % n in rows)
        return Module(self._model, f"blocks.{layer % n}", self._model.parts.stacks[stack], row)

    def __iter__(self) -> Iterator[Module]:
        return (self[layer] for layer in range(len(self)))


# --- what a module does when it is called


@functools.singledispatch
def _run(stored: Part, module: Module, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """A norm or an MLP, position by position."""
    x = jnp.asarray(x)
    return module.part(x.reshape(1, -1, x.shape[-1]), Tap(())).reshape(x.shape)


@_run.register
def _(stored: Block, module: Module, resid_pre: Float[Array, "b p d"], attention_mask: Any = None):
    layer = int(module.name.split(".")[1])
    how = {"start_at_layer": layer, "stop_at_layer": layer + 1}
    return module._model(resid_pre, attention_mask=attention_mask, **how)


@_run.register
def _(stored: Attention, module: Module, query_input, key_input, value_input, attention_mask: Any = None):
    layer, real = int(module.name.split(".")[1]), jnp.ones(query_input.shape[:2], bool)
    real = real if attention_mask is None else jnp.asarray(attention_mask, bool)
    at = make_context(module._model.cfg, real).at_layer(jnp.int32(layer))
    return module.part((query_input, key_input, value_input), at, Tap((), layer=layer))


@_run.register
def _(stored: Embed, module: Module, tokens):
    return stored(jnp.asarray(tokens), Tap(()))


@_run.register
def _(stored: PosEmbed, module: Module, tokens, past_kv_pos_offset: int = 0, attention_mask: Any = None):
    real = jnp.ones(tokens.shape, bool) if attention_mask is None else jnp.asarray(attention_mask, bool)
    return stored(make_context(module._model.cfg, real).positions + past_kv_pos_offset, real)


@_run.register
def _(stored: Unembed, module: Module, x: Float[Array, "... d"]) -> Float[Array, "... o"]:
    x = jnp.asarray(x)
    logits = stored(x.reshape(1, -1, x.shape[-1]), module._model.parts.embed.W_E, Tap(()))
    return logits.reshape(*x.shape[:-1], -1)
