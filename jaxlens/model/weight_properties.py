"""Properties of HookedTransformer: weights under TransformerLens's names, stacked as `W_Q [layer head d_model d_head]`.

Axes: l layer, n query head, d d_model, v vocabulary; l2 and n2 are a later layer and its heads.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens._jax import in_full_precision
from jaxlens._jax.explicit_axes import on_any_mesh
from jaxlens.config import Config
from jaxlens.model.arguments import METHODS
from jaxlens.model.hook_methods import ModelHookPoint
from jaxlens.model.module_views import KEYS_AND_VALUES, BlockViews, ModuleView, zeros
from jaxlens.nn.embed import check_has_head
from jaxlens.nn.module import arrays
from jaxlens.nn.parameters import BIAS_AXES, parameter_axes
from jaxlens.nn.transformer import Modules
from jaxlens.weights.circuits import ov_circuit, per_query_head, qk_circuit, require_additive_residual
from jaxlens.weights.factored_matrix import FactoredMatrix, composition_scores

STACKED = {
    "W_Q": "attn", "W_K": "attn", "W_V": "attn", "W_O": "attn", "b_Q": "attn", "b_K": "attn", "b_V": "attn",
    "b_O": "attn", "W_in": "mlp", "W_gate": "mlp", "W_out": "mlp", "b_in": "mlp", "b_gate": "mlp", "b_out": "mlp",
}  # fmt: skip
"""The module that holds each stacked weight."""


@in_full_precision
class WeightProperties:
    """Mixin of HookedTransformer: weights under TransformerLens's names.

    As in TransformerLens, keys and values of a grouped model are repeated, one per query head, and a bias that the
    model does not have is zeros. The weights as they are stored are in `model.params`."""

    cfg: Config
    modules: Modules

    def __getattr__(self, name: str) -> jax.Array:
        if name in STACKED:
            return _stacked(self, name)
        if name.startswith("hook_") and name in self._points:
            return ModelHookPoint(self, name)
        if isinstance(attribute := getattr(type(self), name, None), property):
            return attribute.fget(self)  # raises the property's own AttributeError again, instead of the one below
        instead = f": {METHODS[name]}" if name in METHODS else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{instead}")

    @property
    def blocks(self) -> BlockViews:
        """The layers one by one."""
        return BlockViews(self)

    @property
    def W_E(self) -> jax.Array:
        """The token embedding [d_vocab d_model], with the projection to d_model if the model has one."""
        embed = arrays(self.modules.embed)
        return embed.W_E if embed.W_proj is None else _product(embed.W_E, embed.W_proj)

    @property
    def W_pos(self) -> jax.Array:
        """The learned position embedding [n_ctx d_model]."""
        if self.modules.pos_embed is None or self.modules.pos_embed.W_pos is None:
            raise AttributeError(f'a model with positions "{self.cfg.positional_embedding_type}" has no W_pos')
        return arrays(self.modules.pos_embed).W_pos

    @property
    @on_any_mesh
    def W_E_pos(self) -> jax.Array:
        """W_E and W_pos, one after the other [d_vocab + n_ctx d_model]."""
        return jnp.concatenate((self.W_E, self.W_pos))

    @property
    @on_any_mesh
    def W_U(self) -> jax.Array:
        """The unembedding [d_model d_vocab_out], with `cfg.output_logits_scale` and the projection to d_embed, if any.

        In a tied model it is the transposed embedding.
        """
        check_has_head(self.cfg)
        embed, unembed, factor = *arrays((self.modules.embed, self.modules.unembed)), self.cfg.output_logits_scale
        W_U = embed.W_E.T if unembed.W_U is None else unembed.W_U
        W_U = W_U if unembed.W_proj is None else _product(unembed.W_proj, W_U)
        return W_U if factor == 1 else W_U * jnp.asarray(factor, W_U.dtype)

    @property
    def b_U(self) -> jax.Array:
        """The unembedding's bias [d_vocab_out]."""
        b_U = arrays(self.modules.unembed).b_U
        return jnp.zeros(self.cfg.d_vocab_out, self.cfg.dtype) if b_U is None else b_U

    @property
    def ln_final(self) -> ModuleView | None:
        """The norm before the unembedding, or None."""
        return self._module("ln_final")

    @property
    def embed(self) -> ModuleView:
        """The token embedding."""
        return self._module("embed")

    @property
    def pos_embed(self) -> ModuleView | None:
        """The position embedding, or None."""
        return self._module("pos_embed")

    @property
    def unembed(self) -> ModuleView:
        """The unembedding."""
        return self._module("unembed")

    def _module(self, name: str) -> ModuleView | None:
        module = getattr(self.modules, name)
        return None if module is None else ModuleView(self, name, module)

    # --- circuits and other functions of the weights

    @property
    @on_any_mesh
    def QK(self) -> FactoredMatrix:
        """Every head's QK circuit `W_Q @ W_K.T` [l n d d]; `model.QK[3, 5]` is that of head 5 in layer 3.

        It scores keys for queries, without rotation (Elhage et al. 2021, transformer-circuits.pub/2021/framework).
        """
        return qk_circuit(self.cfg, self.W_Q, _stacked(self, "W_K", grouped=True))

    @property
    @on_any_mesh
    def OV(self) -> FactoredMatrix:
        """Every head's OV circuit `W_V @ W_O` [l n d d]: the map from its input at the source to its output."""
        return ov_circuit(self.cfg, _stacked(self, "W_V", grouped=True), self.W_O)

    @on_any_mesh
    def all_composition_scores(self, mode: Literal["Q", "K", "V"]) -> Float[Array, "l n l2 n2"]:
        """How strongly each head (l n) composes with the queries, keys or values of each later head (l2 n2).

        These are `composition_scores` of OV with QK ("Q"), QK.T ("K") or OV ("V"). They are 0 unless l < l2.

        Raises:
            ValueError: There is no such mode.
        """
        if mode not in ("Q", "K", "V"):
            raise ValueError(f'mode is {mode!r}; expected "Q", "K" or "V"')
        reads = {"Q": lambda: self.QK, "K": lambda: self.QK.T, "V": lambda: self.OV}[mode]()
        layers = np.arange(self.cfg.n_layers)
        later = layers[:, None, None, None] < layers[:, None]
        return jnp.where(later, composition_scores(self.OV, reads), 0)

    def all_head_labels(self) -> list[str]:
        """The names of all heads, "L0H0", "L0H1", …, layer by layer."""
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]

    @on_any_mesh
    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Array, " d"]:
        """The sum of the biases that the layers before `layer` add to the residual stream.

        With `mlp_input`, the bias of this layer's attention is included, except in a parallel block, whose MLP has the
        same input as attention. If a norm follows attention or MLP, the norm's bias replaces b_O or b_out. Biases of
        experts are left out: what they add depends on the router.

        Raises:
            ValueError: There is no such layer, or the model's residual stream is not additive (norm_placement="sum").
        """
        require_additive_residual(self.cfg)
        n = self.cfg.n_layers
        if not 0 <= layer <= n - mlp_input:
            last = f"{n - 1} with mlp_input" if mlp_input else str(n)
            raise ValueError(f"layer is {layer}; expected 0 to {last}: the model has {n} layers")
        earlier = np.arange(n)[:, None] < layer
        attn = earlier | (np.arange(n)[:, None] == layer) if mlp_input and not self.cfg.parallel_attn_mlp else earlier
        bias = jnp.sum(_written_biases(self, "attn") * attn, axis=0)
        return bias + jnp.sum(_written_biases(self, "mlp") * earlier, axis=0) if include_mlp_biases else bias

    @property
    def n_params_total(self) -> int:
        """The number of parameters. A tied unembedding counts once."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.modules))


@jax.jit
def _product(a: Float[Array, "x y"], b: Float[Array, "y z"]) -> Float[Array, "x z"]:
    return jnp.einsum("xy,yz->xz", a, b)


def _stacked(model: WeightProperties, name: str, grouped: bool = False) -> jax.Array | None:
    """A weight of all layers [layer, ...]. Keys and values are repeated, one per query head, unless `grouped`."""
    cfg = model.cfg
    if name == "W_gate" and not cfg.gated_mlp and not cfg.num_experts:
        return None
    if cfg.attn_only and STACKED[name] == "mlp":
        raise AttributeError(f"an attention-only model has no {name}")
    by_stack = []
    for stack, layers in zip(arrays(model.modules.stacks), cfg.stacks, strict=True):
        weight = getattr(getattr(stack, STACKED[name]), name, None)
        if weight is None and name in BIAS_AXES:
            weight = zeros(cfg, f"l {BIAS_AXES[name]}", len(layers))
        if weight is None:
            raise AttributeError(f"the model has no {name}; its parameters are {list(parameter_axes(cfg))}")
        by_stack.append(weight)
    if len(shapes := {weight.shape[1:] for weight in by_stack}) > 1:
        raise AttributeError(f"{name} differs in shape between layers: {sorted(shapes)}; read it layer by layer")
    weight = _in_order(cfg, by_stack)
    return per_query_head(cfg, weight, axis=1) if name in KEYS_AND_VALUES and not grouped else weight


def _written_biases(model: WeightProperties, sublayer: Literal["attn", "mlp"]) -> Float[Array, "l d"]:
    """The bias that attention or MLP of every layer adds to the residual stream."""
    cfg = model.cfg
    followed_by_norm = cfg.normalization_type is not None and cfg.norm_placement in ("post", "both")
    bias = {"attn": ("attn", "b_O"), "mlp": ("mlp", "b_out")}[sublayer]
    module, name = ({"attn": "ln1_post", "mlp": "ln2_post"}[sublayer], "b") if followed_by_norm else bias
    by_stack = []
    for stack, layers in zip(arrays(model.modules.stacks), cfg.stacks, strict=True):
        b = getattr(getattr(stack, module), name, None)
        varies = b is not None and b.ndim > 2  # what the biases of experts add depends on the router
        by_stack.append(zeros(cfg, "l d", len(layers)) if b is None or varies else b)
    biases = _in_order(cfg, by_stack)
    return biases if cfg.residual_scale == 1 else biases * jnp.asarray(cfg.residual_scale, biases.dtype)


def _in_order(cfg: Config, by_stack: list[jax.Array]) -> jax.Array:
    """The rows of all stacks as one array [layer, ...], in layer order."""
    if len(by_stack) == 1:
        return by_stack[0]
    layers = np.concatenate([np.asarray(stack) for stack in cfg.stacks])
    return jnp.concatenate(by_stack)[np.argsort(layers)]
