"""The components of a run's residual stream (heads, neurons, layers, embeddings and biases), read from a cache.

Axes: l layer, m neuron, e expert, f neuron of an expert, d d_model; "..." is batch and position, whichever there are.
"""

import dataclasses
import functools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.config import Config
from jaxlens.errors import ActivationNotFound
from jaxlens.hooks.names import split_name
from jaxlens.hooks.slice import Slice
from jaxlens.hooks.table import sites
from jaxlens.model.cache.linear_norm import IDENTITY, LinearNorm, NormChain
from jaxlens.model.cache.terms import Biases, Rows, Term, Units, UnitsByLayer, carried, runs_of
from jaxlens.nn.block import Block
from jaxlens.nn.module import arrays
from jaxlens.nn.moe import MoE, choose, of_all
from jaxlens.nn.norm import Identity, Norm, OutputScale

Sublayer = Literal["attn", "mlp"]
NORM_AFTER = {"attn": "ln1_post", "mlp": "ln2_post"}


@dataclasses.dataclass(frozen=True)
class ResidualPosition:
    """A position along the residual stream: the input of a layer's attention or MLP, or of the unembedding.

    The attentions of `n_attn` layers and the MLPs of `layer` layers come before it; for the unembedding, `layer` is
    n_layers. `stream` names the hook points whose value is the stream there, and `norm` the norm that is applied to it.
    """

    layer: int
    n_attn: int
    stream: tuple[str, ...]
    norm: str

    @classmethod
    def of(cls, cfg: Config, layer: int | None = None, mlp_input: bool = False) -> "ResidualPosition":
        """The position that TransformerLens's arguments select: None and -1 are the unembedding, -2 the last layer."""
        number = layer_count(cfg, layer)
        if number == cfg.n_layers:
            if mlp_input:
                raise ValueError(f"mlp_input needs a layer with an MLP, 0 to {number - 1}; layer is {layer}")
            return cls(number, number, (f"blocks.{number - 1}.hook_resid_post",), "ln_final")
        if mlp_input and cfg.attn_only:
            raise ValueError("mlp_input selects the input of an MLP, but this model has attention only")
        norm = f"blocks.{number}.ln{2 if mlp_input and not cfg.shared_norm else 1}"
        if mlp_input and not cfg.parallel_attn_mlp:
            return cls(number, number + 1, (f"blocks.{number}.hook_resid_mid",), norm)
        same = (f"blocks.{number - 1}.hook_resid_post",) if number else ()
        return cls(number, number, (f"blocks.{number}.hook_resid_pre", *same), norm)


def layer_count(cfg: Config, layer: int | None, least: int = 0) -> int:
    """How many layers come before `layer`; None and -1 mean all of them."""
    n = cfg.n_layers
    count = n if layer is None else layer + n + 1 if layer < 0 else layer
    if not least <= count <= n:
        raise ValueError(f"layer is {layer}; expected {least} to {n}, or -1 for all layers")
    return count


# --- reading a cache


def read(cache: Any, names: str | tuple[str, ...], positions: Slice) -> Float[Array, "..."]:
    """An activation at some positions. Of several names, the first that the cache holds."""
    names = (names,) if isinstance(names, str) else names
    name = next((name for name in names if name in cache), None)
    if name is None:
        raise _not_held(" or ".join(f'"{name}"' for name in names))
    return _cut(cache, name, cache[name], positions)


def read_layers(cache: Any, site: str, layers: Sequence[int], positions: Slice) -> Float[Array, "l ..."]:
    """The activations of a site in some layers, at some positions."""
    if missing := [layer for layer in layers if f"blocks.{layer}.{site}" not in cache]:
        raise _not_held(f'"blocks.{"*" if len(missing) == cache.cfg.n_layers else missing[0]}.{site}"')
    return _cut(cache, f"blocks.{layers[0]}.{site}", cache.of_layers(site, layers), positions)


def _not_held(what: str) -> ActivationNotFound:
    return ActivationNotFound(f"this needs {what}, which the cache does not hold; add it to the run's names_filter")


def _cut(cache: Any, name: str, value: jax.Array, positions: Slice) -> jax.Array:
    if positions.mode == "identity":
        return value
    axes = sites(cache.cfg)[name].axes.split()
    if cache.rank(name) < len(axes) - (not cache.has_batch_dim):
        raise ValueError(f"the cache has no position axis to select {positions.index} from; use pos_slice=None")
    _warn_of_padding(cache, positions)
    selected = positions.apply(value, axes.index("p") - len(axes))
    if not selected.size:
        raise ValueError(f"pos_slice={positions.slice} selects no position; expected at least one")
    return selected


def _warn_of_padding(cache: Any, positions: Slice) -> None:
    """Warns if positions count from the end of rows that end with padding."""
    if cache.mask is None or cache.mask[:, -1].all():
        return
    if any(number is not None and not isinstance(number, bool) and number < 0 for number in positions.numbers):
        rows = np.flatnonzero(~cache.mask[:, -1]).tolist()
        warnings.warn(
            f"pos_slice={positions.slice} counts from the end, but rows {rows} end with padding, so it selects padding "
            "there; run_with_cache(..., pos_slice=-1) keeps the last token of each row",
            stacklevel=5,
        )


def norm_named(cache: Any, name: str) -> Norm | None:
    """A norm of the model, or None if the model has none of this name."""
    if f"{name}.hook_scale" not in sites(cache.cfg):
        return None
    module, layer = split_name(name)
    if layer is None:
        return arrays(cache.require_model().modules.ln_final)
    block, row = next((block, rows.index(layer)) for block, rows in _stacks(cache) if layer in rows)
    return jax.tree.map(lambda w: w[row], getattr(block, module))


def norm_at(cache: Any, name: str, positions: Slice, batch: Slice | None = None) -> LinearNorm:
    """The same norm at its cached scale; the identity if the model has none."""
    if (norm := norm_named(cache, name)) is None:
        return IDENTITY
    scale = read(cache, f"{name}.hook_scale", positions)
    return LinearNorm.at(norm, batch.apply(scale) if batch is not None and cache.has_batch_dim else scale)


def _stacks(cache: Any) -> Iterator[tuple[Block, tuple[int, ...]]]:
    """Every stack of blocks with its layers."""
    return zip(arrays(cache.require_model().modules.stacks), cache.cfg.stacks, strict=True)


# --- components


@dataclasses.dataclass(frozen=True)
class Writers:
    """The components that wrote to the residual stream of a run before `until`, at some positions.

    With norm_placement="sum" a norm follows every addition. A component is then carried through the norms of its own
    addition and of all later additions before `until`. Without `until`, components are as they were written.
    """

    cache: Any
    positions: Slice
    until: ResidualPosition | None = None

    @property
    def cfg(self) -> Config:
        return self.cache.cfg

    def embeds(self) -> tuple[list[Term], list[str]]:
        """The embeddings that are added to the residual stream, and their labels."""
        names = ["embed"] + ["pos_embed"] * (self.cfg.positional_embedding_type in ("standard", "sinusoidal"))
        after = self._norms_after([0])
        embeds = [read(self.cache, f"hook_{name}", self.positions)[None] for name in names]
        return [Rows((carried(embed, after),)) for embed in embeds], names

    def layer_outputs(self, sublayer: Sublayer, layers: Sequence[int]) -> Float[Array, "l ..."]:
        """What attention or the MLPs of some layers add. With norm_placement="sum", also the biases of their norms."""
        after = self._norms_after([_additions_before(sublayer, layer) for layer in layers])
        added = carried(read_layers(self.cache, f"hook_{sublayer}_out", layers, self.positions), after)
        for bias, after in self._biases_of_sums(sublayer, layers):
            added = added + carried(bias, after)
        return added

    def heads(self, n_layers: int) -> tuple[list[Term], list[str]]:
        """What the heads of the first layers write: from hook_result if the cache holds it, or else from z and W_O."""

        def units(block, layers, of_layers):
            after = self._after("attn", block, layers)
            if all(f"blocks.{layer}.attn.hook_result" in self.cache for layer in layers):
                return Units(read_layers(self.cache, "attn.hook_result", layers, self.positions), None, after)
            z = read_layers(self.cache, "attn.hook_z", layers, self.positions)
            return Units(z, of_layers(block.attn.updated("W_O")), after)

        labels = [f"L{layer}H{head}" for layer in range(n_layers) for head in range(self.cfg.n_heads)]
        return [self._by_layer(range(n_layers), units)] if n_layers else [], labels

    def neurons(self, layers: Sequence[int], which: Slice) -> tuple[list[Term], list[str]]:
        """What the neurons of some layers write. `which` selects neurons of each layer.

        A mixture of experts has the neurons of every expert, times the expert's weight; then the experts' output
        biases, times the same weights; then the neurons and the output bias of the shared expert, times its gate.
        """
        if self.cfg.attn_only:
            raise ValueError("this model has attention only, and no neurons; use stack_head_results")

        def units(block, layers, of_layers):
            activations = read_layers(self.cache, "mlp.hook_post", layers, self.positions)
            W_out = of_layers(block.mlp.W_out if isinstance(block.mlp, MoE) else block.mlp.updated("W_out"))
            if isinstance(block.mlp, MoE):
                mlp = jax.tree.map(of_layers, block.mlp)
                activations, W_out = self._expert_neurons(mlp, activations, layers)
            else:
                activations = _neurons_as_units(activations)
            if which.mode != "identity":
                W_out = which.apply(W_out.reshape(len(layers), -1, W_out.shape[-1]), 1)
                activations = which.apply(activations, -2)
            return Units(activations, W_out, self._after("mlp", block, layers))

        return [self._by_layer(layers, units)] if layers else [], self._neuron_labels(layers, which)

    def biases(self, n_attn: int, n_mlp: int, like: jax.Array) -> Biases:
        """The sum of the biases that the first `n_attn` attentions and `n_mlp` MLPs add, in the shape of `like`."""
        biases = []
        for sublayer, name, n_layers in (("attn", "b_O", n_attn), ("mlp", "b_out", n_mlp)):
            for block, stack in _stacks(self.cache):
                if layers := [layer for layer in stack if layer < n_layers]:
                    module = getattr(block, sublayer)
                    # the biases of experts depend on the router, so they count as units
                    if (bias := None if isinstance(module, MoE) else getattr(module, name, None)) is not None:
                        biases.append((bias[: len(layers)], self._after(sublayer, block, layers)))
                    if (bias := getattr(getattr(block, NORM_AFTER[sublayer]), "b", None)) is not None:
                        biases.append((bias[: len(layers)], IDENTITY))
            biases += self._biases_of_sums(sublayer, range(n_layers))
        return Biases(tuple(biases), like)

    # --- the norms and factors after a component

    def _after(self, sublayer: Sublayer, block: Block, layers: Sequence[int]) -> LinearNorm | NormChain:
        """What follows attention or MLP in some layers of a stack: a norm at its scale, a factor, or several norms."""
        norm = getattr(block, NORM_AFTER[sublayer])
        if isinstance(norm, Identity):
            return self._norms_after([_additions_before(sublayer, layer) for layer in layers])
        if isinstance(norm, OutputScale):
            return LinearNorm(w=jnp.broadcast_to(LinearNorm.at(norm).w, (len(layers), 1)))
        stack = next(stack for stack in self.cfg.stacks if layers[0] in stack)
        norm = jax.tree.map(functools.partial(_rows_of, stack, layers), norm)
        scale = read_layers(self.cache, f"{NORM_AFTER[sublayer]}.hook_scale", layers, self.positions)
        return LinearNorm.at(norm, scale)

    def _norms_after(self, additions: Sequence[int]) -> LinearNorm | NormChain:
        """The norms of sums from each addition to `until`. Additions are numbered from 0, two per block."""
        if self.until is None or self.cfg.norm_placement != "sum" or self.cfg.normalization_type is None:
            return IDENTITY
        names = [_norm_of_sum(number) for number in range(self.until.n_attn + self.until.layer)]
        if not names:
            return IDENTITY
        scales = [read(self.cache, f"{name}.hook_scale", self.positions) for name in names]
        norms = [LinearNorm.at(norm_named(self.cache, name), scale) for name, scale in zip(names, scales, strict=True)]
        return NormChain.of_norms(norms, additions)

    def _biases_of_sums(self, sublayer: Sublayer, layers: Sequence[int]) -> list[tuple[Array, NormChain]]:
        """The biases of the norms that follow these additions, and the chains of norms after them."""
        norms = [norm_named(self.cache, _norm_of_sum(_additions_before(sublayer, layer))) for layer in layers]
        if not norms or norms[0] is None or norms[0].b is None:
            return []
        after = self._norms_after([_additions_before(sublayer, layer) + 1 for layer in layers])
        return [(jnp.stack([norm.b for norm in norms]), after)]

    # --- units

    def _by_layer(self, layers: Sequence[int], units) -> UnitsByLayer:
        """The results of `units(block, layers, of_layers)` by stack. `of_layers` takes the layers' rows of a weight."""
        stacks = [(block, stack, [layer for layer in stack if layer in layers]) for block, stack in _stacks(self.cache)]
        stacks = [entry for entry in stacks if entry[2]]
        by_stack = [units(block, chosen, functools.partial(_rows_of, stack, chosen)) for block, stack, chosen in stacks]
        return UnitsByLayer(tuple(by_stack), runs_of([chosen for _, _, chosen in stacks]))

    def _expert_neurons(self, mlp: MoE, post: Array, layers: Sequence[int]) -> tuple[Array, Array]:
        """The activations and the output weights of the units of mixtures of experts, in the order of `neurons`."""
        router = read_layers(self.cache, "mlp.hook_expert_weights", layers, self.positions)
        post, weights = _experts_as_units(post, router, mlp)
        activations, W_out = [post], [mlp.W_out.reshape(len(layers), -1, mlp.W_out.shape[-1])]
        if mlp.b_out is not None:
            activations.append(weights)
            W_out.append(mlp.b_out)
        if mlp.shared is not None:
            shared = read_layers(self.cache, "mlp.shared.hook_post", layers, self.positions)
            gate = jnp.ones_like(shared[..., :1])
            if mlp.W_shared_gate is not None:
                gate = read_layers(self.cache, "mlp.hook_shared_gate", layers, self.positions)
            activations.append((shared * gate)[..., None])
            W_out.append(mlp.shared.W_out)
            if mlp.shared.b_out is not None:
                activations.append(gate[..., None])
                W_out.append(mlp.shared.b_out[:, None])
        return jnp.concatenate(activations, axis=-2), jnp.concatenate(W_out, axis=1)

    def _neuron_labels(self, layers: Sequence[int], which: Slice) -> list[str]:
        """ "L0N3", or for experts "L0E1N3", "L0E1bias", "L0SN3", "L0Sbias", in the order of `neurons`."""
        cfg, labels = self.cfg, []
        for layer in layers:
            names = [f"N{neuron}" for neuron in range(cfg.d_mlp)]
            if cfg.block_kind(layer).mlp == "experts":
                names = [f"E{expert}N{neuron}" for expert in range(cfg.num_experts) for neuron in range(cfg.d_expert)]
                names += [f"E{expert}bias" for expert in range(cfg.num_experts if "b_out" in cfg.biases else 0)]
                names += [f"SN{neuron}" for neuron in range(cfg.d_shared_expert or 0)]
                names += ["Sbias"] * bool(cfg.d_shared_expert and "b_out" in cfg.biases)
            labels += [f"L{layer}{names[number]}" for number in np.arange(len(names))[which.slice]]
        return labels


def _additions_before(sublayer: Sublayer, layer: int) -> int:
    """The number of additions to the residual stream before that of a layer's attention or MLP."""
    return 2 * layer + (sublayer == "mlp")


def _norm_of_sum(addition: int) -> str:
    """The name of the norm that follows an addition."""
    return f"blocks.{addition // 2}.ln{addition % 2 + 1}_sum"


def _rows_of(stack: Sequence[int], layers: Sequence[int], weight: jax.Array) -> jax.Array:
    """The rows of a stacked weight that belong to some consecutive layers of the stack."""
    first = stack.index(layers[0])
    return weight if len(layers) == len(stack) else weight[first : first + len(layers)]


@jax.jit
def _neurons_as_units(post: Float[Array, "l ... m"]) -> Float[Array, "l ... m 1"]:
    return post[..., None]


@jax.jit
def _experts_as_units(post: Float[Array, "l ... e f"], weights: Float[Array, "l ... e"], mlp: MoE):
    """Experts' neurons times the expert's weight (0 if not chosen) [l ... (e f) 1], and these weights [l ... e 1]."""
    b_choice = mlp.b_choice
    if b_choice is not None:
        b_choice = b_choice.reshape(len(b_choice), *(1,) * (weights.ndim - 2), -1)
    chosen = of_all(*choose(weights, b_choice, mlp.cfg), weights.shape[-1]).astype(post.dtype)[..., None]
    weighted = post * chosen
    return weighted.reshape(*weighted.shape[:-2], -1, 1), chosen
