"""TransformerLens's names for weights, stacked over layers: `model.W_Q [layer head d_model d_head]` and the others.

Axes: l layer, n query head, d d_model, v vocabulary; l2 and n2 the later of two layers and its heads.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.compat.modules import Layers, Module
from jaxlens.config import Config
from jaxlens.config_checks import check_adds_up, check_heads_are_linear
from jaxlens.factored_matrix import FactoredMatrix, composition_scores
from jaxlens.hooked import HookPointOnModel
from jaxlens.nn.part import sizes
from jaxlens.parameters import Parts, parameter_axes

STACKED = {
    "W_Q": "attn", "W_K": "attn", "W_V": "attn", "W_O": "attn", "b_Q": "attn", "b_K": "attn", "b_V": "attn",
    "b_O": "attn", "W_in": "mlp", "W_gate": "mlp", "W_out": "mlp", "b_in": "mlp", "b_gate": "mlp", "b_out": "mlp",
}  # fmt: skip
BIAS_AXES = {"b_Q": "n h", "b_K": "k h", "b_V": "k h", "b_O": "d", "b_in": "m", "b_gate": "m", "b_out": "d"}


class WeightAttributes:
    """Mixin: weights by TransformerLens's names.

    Keys and values of a grouped model are repeated, one per query head, as TransformerLens gives them; the weights as
    they are stored are in `model.params`. A bias that the model does not have is given as zeros.
    """

    cfg: Config
    parts: Parts

    def __getattr__(self, name: str) -> jax.Array:
        if name in STACKED:
            return _stacked(self, name)
        if name.startswith("hook_") and name in self._points:
            return HookPointOnModel(self, name)
        if isinstance(found := getattr(type(self), name, None), property):
            return found.fget(self)  # it raised an AttributeError, which Python would replace by the one below
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @property
    def blocks(self) -> Layers:
        """The layers one by one."""
        return Layers(self)

    @property
    def W_E(self) -> jax.Array:
        """The token embedding [d_vocab d_model], with the map to d_model where tokens are embedded in fewer."""
        embed = self.parts.embed
        return embed.W_E if embed.W_proj is None else _product(embed.W_E, embed.W_proj)

    @property
    def W_pos(self) -> jax.Array:
        """The learned position embedding [n_ctx d_model]."""
        if self.parts.pos_embed is None or self.parts.pos_embed.W_pos is None:
            raise AttributeError(f'a model with positions "{self.cfg.positional_embedding_type}" has no W_pos')
        return self.parts.pos_embed.W_pos

    @property
    def W_E_pos(self) -> jax.Array:
        """W_E and W_pos, one after the other [d_vocab + n_ctx d_model]."""
        return jnp.concatenate((self.W_E, self.W_pos))

    @property
    def W_U(self) -> jax.Array:
        """The unembedding [d_model d_vocab_out]; the embedding transposed where they are tied.

        It is what the unembedding's input is multiplied by: `cfg.output_logits_scale` and the map from d_model to the
        dimensions of the embedding are in it, where a model has them.
        """
        unembed, factor = self.parts.unembed, self.cfg.output_logits_scale
        W_U = self.parts.embed.W_E.T if unembed.W_U is None else unembed.W_U
        W_U = W_U if unembed.W_proj is None else _product(unembed.W_proj, W_U)
        return W_U if factor == 1 else W_U * jnp.asarray(factor, W_U.dtype)

    @property
    def b_U(self) -> jax.Array:
        """The unembedding's bias [d_vocab_out]."""
        b_U = self.parts.unembed.b_U
        return jnp.zeros(self.cfg.d_vocab_out, self.cfg.dtype) if b_U is None else b_U

    @property
    def ln_final(self) -> Module | None:
        """The norm before the unembedding, or None."""
        return self._module("ln_final")

    @property
    def embed(self) -> Module:
        """The token embedding."""
        return self._module("embed")

    @property
    def pos_embed(self) -> Module | None:
        """The position embedding, or None."""
        return self._module("pos_embed")

    @property
    def unembed(self) -> Module:
        """The unembedding."""
        return self._module("unembed")

    def _module(self, name: str) -> Module | None:
        part = getattr(self.parts, name)
        return None if part is None else Module(self, name, part)

    # --- circuits, and what else follows from the weights

    @property
    def QK(self) -> FactoredMatrix:
        """Every head's QK circuit `W_Q @ W_K.T` [l n d d]: what makes a query attend to a key, but for the rotation.

        The circuits of Elhage et al. 2021 (transformer-circuits.pub/2021/framework); `model.QK[3, 5]` is that head's.
        """
        check_heads_are_linear(self.cfg)
        return FactoredMatrix(self.W_Q, self.W_K.mT)

    @property
    def OV(self) -> FactoredMatrix:
        """Every head's OV circuit `W_V @ W_O` [l n d d]: what it writes for what it reads at the source."""
        check_heads_are_linear(self.cfg)
        return FactoredMatrix(self.W_V, self.W_O)

    def all_composition_scores(self, mode: Literal["Q", "K", "V"]) -> Float[Array, "l n l2 n2"]:
        """How strongly the output of each head (l n) meets the queries, keys or values of each later one (l2 n2).

        It is `composition_scores` of OV and QK ("Q"), QK.T ("K") or OV ("V"), and 0 where l2 is not later than l.

        Raises:
            ValueError: `mode` is something else.
        """
        if mode not in ("Q", "K", "V"):
            raise ValueError(f'mode is {mode!r}; wanted "Q", "K" or "V"')
        reads = {"Q": lambda: self.QK, "K": lambda: self.QK.T, "V": lambda: self.OV}[mode]()
        layers = np.arange(self.cfg.n_layers)
        later = layers[:, None, None, None] < layers[:, None]
        return jnp.where(later, composition_scores(self.OV, reads), 0)

    def all_head_labels(self) -> list[str]:
        """The names of all heads, "L0H0" and on, layer by layer."""
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Array, " d"]:
        """What the layers before `layer` add to the residual stream whatever they read: the sum of their biases.

        With `mlp_input` that of attention in this layer too, unless its MLP does not see it (a parallel block). Where a
        norm follows attention or MLP, the norm's bias is what is added, and b_O and b_out are not.

        Raises:
            ValueError: there is no such layer, or in this model (norms of sums) what is written is scaled later on.
        """
        check_adds_up(self.cfg)
        n = self.cfg.n_layers
        if not 0 <= layer <= n - mlp_input:
            last = f"{n - 1} with mlp_input" if mlp_input else str(n)
            raise ValueError(f"layer is {layer}; the model has {n} layers, so wanted 0 to {last}")
        passed = np.arange(n)[:, None] < layer
        seen = passed | (np.arange(n)[:, None] == layer) if mlp_input and not self.cfg.parallel_attn_mlp else passed
        bias = jnp.sum(_written_constants(self, "attn") * seen, axis=0)
        return bias + jnp.sum(_written_constants(self, "mlp") * passed, axis=0) if include_mlp_biases else bias

    @property
    def n_params_total(self) -> int:
        """How many numbers the model is made of; a tied unembedding is the embedding and counts once."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.parts))


@jax.jit
def _product(a: Float[Array, "x y"], b: Float[Array, "y z"]) -> Float[Array, "x z"]:
    return jnp.einsum("xy,yz->xz", a, b, precision="highest")


def _stacked(model: WeightAttributes, name: str) -> jax.Array | None:
    """A weight of all layers [layer, ...], in the order of the layers."""
    cfg = model.cfg
    if name == "W_gate" and not cfg.gated_mlp and not cfg.num_experts:
        return None
    if cfg.attn_only and STACKED[name] == "mlp":
        raise AttributeError(f"an attention-only model has no {name}")
    found = []
    for stack, layers in zip(model.parts.stacks, cfg.stacks, strict=True):
        weight = getattr(getattr(stack, STACKED[name]), name, None)
        if weight is None and name in BIAS_AXES:
            weight = _zeros(cfg, f"l {BIAS_AXES[name]}", len(layers))
        if weight is None:
            raise AttributeError(f"the model has no {name}; its parameters are {list(parameter_axes(cfg))}")
        found.append(weight)
    if len(shapes := {weight.shape[1:] for weight in found}) > 1:
        raise AttributeError(f"{name} differs in shape from layer to layer: {sorted(shapes)}; read it per layer")
    weight = _in_order(cfg, found)
    grouped = name in ("W_K", "W_V", "b_K", "b_V") and cfg.n_key_value_heads != cfg.n_heads
    return jnp.repeat(weight, cfg.n_heads // cfg.n_key_value_heads, axis=1) if grouped else weight


def _written_constants(model: WeightAttributes, sublayer: Literal["attn", "mlp"]) -> Float[Array, "l d"]:
    """What attention or MLP of every layer adds to the residual stream whatever it reads."""
    cfg = model.cfg
    followed_by_norm = cfg.normalization_type is not None and cfg.norm_placement in ("post", "both")
    bias = {"attn": ("attn", "b_O"), "mlp": ("mlp", "b_out")}[sublayer]
    part, name = ({"attn": "ln1_post", "mlp": "ln2_post"}[sublayer], "b") if followed_by_norm else bias
    found = [getattr(getattr(stack, part), name, None) for stack in model.parts.stacks]
    found = [
        _zeros(cfg, "l d", len(layers)) if constant is None or constant.ndim > 2 else constant
        for constant, layers in zip(found, cfg.stacks, strict=True)  # experts' biases depend on what is read
    ]
    constants = _in_order(cfg, found)
    return constants if cfg.residual_scale == 1 else constants * jnp.asarray(cfg.residual_scale, constants.dtype)


def _zeros(cfg: Config, letters: str, n_layers: int) -> jax.Array:
    lengths = sizes(cfg) | {"l": n_layers}
    return jnp.zeros([lengths[letter] for letter in letters.split()], cfg.dtype)


def _in_order(cfg: Config, by_stack: list[jax.Array]) -> jax.Array:
    """The rows of all stacks as one array [layer, ...], in the order of the layers."""
    if len(by_stack) == 1:
        return by_stack[0]
    layers = np.concatenate([np.asarray(stack) for stack in cfg.stacks])
    return jnp.concatenate(by_stack)[np.argsort(layers)]
