"""TransformerLens's names for weights, stacked over layers: `model.W_Q [layer head d_model d_head]` and the others."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.config import Config
from jaxlens.nn.block import Block
from jaxlens.nn.part import sizes
from jaxlens.parameters import Parts, parameter_axes

STACKED = {
    "W_Q": "attn", "W_K": "attn", "W_V": "attn", "W_O": "attn", "b_Q": "attn", "b_K": "attn", "b_V": "attn",
    "b_O": "attn", "W_in": "mlp", "W_gate": "mlp", "W_out": "mlp", "b_in": "mlp", "b_gate": "mlp", "b_out": "mlp",
}  # fmt: skip
BIAS_AXES = {"b_Q": "n h", "b_K": "k h", "b_V": "k h", "b_O": "d", "b_in": "m", "b_gate": "m", "b_out": "d"}


class Layers:
    """`model.blocks`: the layers one by one; `model.blocks[3].attn.W_Q` is that layer's own weight."""

    def __init__(self, cfg: Config, parts: Parts):
        self._cfg, self._parts = cfg, parts

    def __len__(self) -> int:
        return self._cfg.n_layers

    def __getitem__(self, layer: int) -> Block:
        n = len(self)
        if not isinstance(layer, int | np.integer):
            raise TypeError(f"a layer is a number; got {type(layer).__name__}")
        if not -n <= layer < n:
            raise IndexError(f"there is no layer {layer}; the model has {n}")
        stack, row = next((i, rows.index(layer % n)) for i, rows in enumerate(self._cfg.stacks) if layer % n in rows)
        return jax.tree.map(lambda w: w[row], self._parts.stacks[stack])


class WeightAttributes:
    """Mixin: weights by TransformerLens's names.

    Keys and values of a grouped model are repeated, one per query head, as TransformerLens gives them; the weights as
    they are stored are in `model.params` and `model.blocks[l]`. A bias that the model does not have is given as zeros.
    """

    cfg: Config
    parts: Parts

    def __getattr__(self, name: str) -> jax.Array:
        if name in STACKED:
            return _stacked(self, name)
        if isinstance(found := getattr(type(self), name, None), property):
            return found.fget(self)  # it raised an AttributeError, which Python would replace by the one below
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @property
    def blocks(self) -> Layers:
        """The layers one by one."""
        return Layers(self.cfg, self.parts)

    @property
    def W_E(self) -> jax.Array:
        """The token embedding [d_vocab d_model]."""
        return self.parts.embed.W_E

    @property
    def W_pos(self) -> jax.Array:
        """The learned position embedding [n_ctx d_model]."""
        if self.parts.pos_embed is None:
            raise AttributeError(f'a model with positions "{self.cfg.positional_embedding_type}" has no W_pos')
        return self.parts.pos_embed.W_pos

    @property
    def W_E_pos(self) -> jax.Array:
        """W_E and W_pos, one after the other [d_vocab + n_ctx d_model]."""
        return jnp.concatenate((self.W_E, self.W_pos))

    @property
    def W_U(self) -> jax.Array:
        """The unembedding [d_model d_vocab_out]; the embedding transposed where they are tied."""
        return self.parts.embed.W_E.T if self.parts.unembed.W_U is None else self.parts.unembed.W_U

    @property
    def b_U(self) -> jax.Array:
        """The unembedding's bias [d_vocab_out]."""
        b_U = self.parts.unembed.b_U
        return jnp.zeros(self.cfg.d_vocab_out, self.cfg.dtype) if b_U is None else b_U

    @property
    def ln_final(self):
        """The norm before the unembedding, or None."""
        return self.parts.ln_final

    @property
    def embed(self):
        """The token embedding as a part."""
        return self.parts.embed

    @property
    def pos_embed(self):
        """The position embedding as a part, or None."""
        return self.parts.pos_embed

    @property
    def unembed(self):
        """The unembedding as a part."""
        return self.parts.unembed


def _stacked(model: WeightAttributes, name: str) -> jax.Array:
    """A weight of all layers [layer, ...], in the order of the layers."""
    cfg = model.cfg
    if cfg.attn_only and STACKED[name] == "mlp":
        raise AttributeError(f"an attention-only model has no {name}")
    rows: dict[int, jax.Array] = {}
    for stack, layers in zip(model.parts.stacks, cfg.stacks, strict=True):
        weight = getattr(getattr(stack, STACKED[name]), name, None)
        if weight is None and name in BIAS_AXES:
            lengths = sizes(cfg)
            weight = jnp.zeros((len(layers), *(lengths[letter] for letter in BIAS_AXES[name].split())), cfg.dtype)
        if weight is None:
            raise AttributeError(f"the model has no {name}; its parameters are {list(parameter_axes(cfg))}")
        if len(cfg.stacks) == 1:
            rows = {}
            break
        rows |= dict(zip(layers, weight, strict=True))
    if rows:
        shapes = {row.shape for row in rows.values()}
        if len(shapes) > 1:
            raise AttributeError(f"{name} differs in shape from layer to layer: {sorted(shapes)}; read it per layer")
        weight = jnp.stack([rows[layer] for layer in range(cfg.n_layers)])
    grouped = name in ("W_K", "W_V", "b_K", "b_V") and cfg.n_key_value_heads != cfg.n_heads
    return jnp.repeat(weight, cfg.n_heads // cfg.n_key_value_heads, axis=1) if grouped else weight
