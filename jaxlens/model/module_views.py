"""The model's modules as TransformerLens shows them: `model.blocks[1].attn.W_K`, `model.ln_final(resid)`.

A module of `jaxlens.nn` holds the stacked weights of all layers, and takes a tap and positions as arguments. A
ModuleView is a module of a single layer, and supplies these arguments.

Axes: b batch, p position, d d_model, n query head, k key/value head, h d_head; "..." any leading axes.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens._jax import full_precision
from jaxlens.config import Config
from jaxlens.hooks.names import why_no_norm_output, without_alias
from jaxlens.hooks.tap import Tap
from jaxlens.model.automatic_axes import layout_of
from jaxlens.model.hook_methods import ModelHookPoint
from jaxlens.nn.attention import Attention
from jaxlens.nn.block import Block
from jaxlens.nn.embed import Embed, PosEmbed, Unembed
from jaxlens.nn.module import Module, arrays, axis_lengths
from jaxlens.nn.parameters import BIAS_AXES
from jaxlens.nn.sequence import sequence_info
from jaxlens.weights.circuits import ov_circuit, per_query_head, qk_circuit
from jaxlens.weights.factored_matrix import FactoredMatrix

KEYS_AND_VALUES = ("W_K", "W_V", "b_K", "b_V")


class ModuleView:
    """A module of a model as TransformerLens shows it.

    Its weights and hook points are attributes. As in TransformerLens, grouped keys and values are repeated, one per
    query head (`_W_K` is the stored weight), and a bias that the model does not have is zeros. A call applies the
    module to activations with any leading axes. Hooks run when a whole layer is called (`model.blocks[1](resid)`), but
    not when a module of a layer is. `module` is the `jaxlens.nn` module.

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

    def __init__(self, model: Any, name: str, stored: Module, row: int | None = None):
        self._model, self.name, self._stored, self._row = model, name, arrays(stored), row

    @property
    def module(self) -> Module:
        """The `jaxlens.nn` module with the weights of its layer."""
        return self._stored if self._row is None else jax.tree.map(lambda w: w[self._row], self._stored)

    @property
    def QK(self) -> FactoredMatrix:
        """The QK circuit `W_Q @ W_K.T` of every head [n d d]; see `model.QK`."""
        return qk_circuit(self._model.cfg, self.W_Q, self._W_K)

    @property
    def OV(self) -> FactoredMatrix:
        """The OV circuit `W_V @ W_O` of every head [n d d]; see `model.OV`."""
        return ov_circuit(self._model.cfg, self._W_V, self.W_O)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_stored" not in vars(self):  # copy and pickle look up methods of other objects
            raise AttributeError(f"{type(self).__name__} has no {name!r}")
        if name.startswith("hook_"):
            return self._hook_point(name)
        is_attention = isinstance(self._stored, Attention)
        raw = name.removeprefix("_") if is_attention else name
        if raw != name and raw not in KEYS_AND_VALUES:
            raise AttributeError(f"{self.name} has no {name!r}")
        value = getattr(self._stored, raw)
        if name == "W_U" and value is None:  # tied
            return self._model.W_U
        if isinstance(value, Module):
            return ModuleView(self._model, f"{self.name}.{name}", value, self._row)
        if value is None and raw in BIAS_AXES:
            value = zeros(self._model.cfg, BIAS_AXES[raw])
        elif isinstance(value, jax.Array) and self._row is not None:
            value = value[self._row]
        elif self._row is not None:
            return getattr(self.module, name)
        return per_query_head(self._model.cfg, value, axis=0) if is_attention and name in KEYS_AND_VALUES else value

    def _hook_point(self, name: str) -> ModelHookPoint:
        full = without_alias(cfg := self._model.cfg, f"{self.name}.{name}")
        if full not in self._model._points:
            why = why_no_norm_output(cfg, f"{self.name}.{name}") or "`model.hook_dict` lists its hook points"
            raise AttributeError(f'there is no hook point "{self.name}.{name}" in this model: {why}')
        return ModelHookPoint(self._model, full)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with full_precision(self._model.cfg.dtype):
            layout = layout_of(self._model, *args)
            if layout is None:
                return _run(self._stored, self, *args, **kwargs)
            with layout.automatic():
                modules, stored, args, kwargs = layout.to_automatic((self._model.modules, self._stored, args, kwargs))
                view = ModuleView(self._model._copy(modules), self.name, stored, self._row)
                output = _run(stored, view, *args, **kwargs)
        last = "o" if isinstance(stored, Unembed) else "d"
        return layout.to_explicit(output, f"b p {last}" if output.ndim == 3 else "1 " * (output.ndim - 1) + last)

    def __repr__(self) -> str:
        return f"{type(self._stored).__name__}({self.name})"


class BlockViews:
    """`model.blocks`: the layers one by one. `model.blocks[3].attn.W_Q` is the weight of layer 3."""

    def __init__(self, model: Any):
        self._model = model

    def __len__(self) -> int:
        return self._model.cfg.n_layers

    def __getitem__(self, layer: int) -> ModuleView:
        n, stacks = len(self), self._model.cfg.stacks
        if not isinstance(layer, int | np.integer):
            raise TypeError(f"model.blocks is indexed by a layer number; got {type(layer).__name__}")
        if not -n <= layer < n:
            raise IndexError(f"there is no layer {layer}; the model has {n} layers")
        stack, row = next((i, rows.index(layer % n)) for i, rows in enumerate(stacks) if layer % n in rows)
        return ModuleView(self._model, f"blocks.{layer % n}", self._model.modules.stacks[stack], row)

    def __iter__(self) -> Iterator[ModuleView]:
        return (self[layer] for layer in range(len(self)))


# --- calling a view


@functools.singledispatch
def _run(stored: Module, view: ModuleView, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """A norm or an MLP, position by position."""
    x = jnp.asarray(x)
    return view.module(x.reshape(1, -1, x.shape[-1]), Tap()).reshape(x.shape)


@_run.register
def _(stored: Block, view: ModuleView, resid_pre: Float[Array, "b p d"], attention_mask: Any = None):
    layer = int(view.name.split(".")[1])
    return view._model(resid_pre, attention_mask=attention_mask, start_at_layer=layer, stop_at_layer=layer + 1)


@_run.register
def _(stored: Attention, view: ModuleView, query_input, key_input, value_input, attention_mask: Any = None):
    layer, mask = int(view.name.split(".")[1]), _mask(query_input.shape[:2], attention_mask)
    info = sequence_info(view._model.cfg, mask).at_layer(jnp.int32(layer))
    return view.module((query_input, key_input, value_input), info, Tap(layer=layer))


@_run.register
def _(stored: Embed, view: ModuleView, tokens):
    return stored(jnp.asarray(tokens), Tap())


@_run.register
def _(stored: PosEmbed, view: ModuleView, tokens, past_kv_pos_offset: int = 0, attention_mask: Any = None):
    mask = _mask(tokens.shape, attention_mask)
    return stored(sequence_info(view._model.cfg, mask).positions + past_kv_pos_offset, mask)


@_run.register
def _(stored: Unembed, view: ModuleView, x: Float[Array, "... d"]) -> Float[Array, "... o"]:
    x = jnp.asarray(x)
    W_E = arrays(view._model.modules.embed).W_E
    logits = stored(x.reshape(1, -1, x.shape[-1]), W_E, Tap())
    return logits.reshape(*x.shape[:-1], -1)


def zeros(cfg: Config, letters: str, n_layers: int | None = None) -> Array:
    """Zeros with these axes. `n_layers` is the length of axis "l"."""
    lengths = axis_lengths(cfg) | {"l": n_layers}
    return jnp.zeros([lengths[letter] for letter in letters.split()], cfg.dtype)


def _mask(shape: tuple[int, ...], attention_mask: Any) -> Array:
    return jnp.ones(shape, bool) if attention_mask is None else jnp.asarray(attention_mask, bool)
