"""What a cache holds, as terms of the residual stream: which activations a decomposition reads, and which weights.

Axes: l layer, n head, h d_head, m neuron, e expert, d d_model; "..." is batch and position, whichever there are.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens.analysis.final_norm import IDENTITY, Chain, FixedNorm
from jaxlens.analysis.terms import Biases, Units, UnitsByLayer, carried, runs_of
from jaxlens.config import Config
from jaxlens.errors import ActivationNotFound
from jaxlens.hook_table import sites, split_name
from jaxlens.nn.moe import MoE, choose
from jaxlens.nn.norm import NoNorm, Norm, OutputScale
from jaxlens.slices import Slice


@dataclasses.dataclass(frozen=True)
class Station:
    """A place of the residual stream: what a layer's attention reads, or its MLP, or (layer n_layers) the unembedding.

    `n_attn` layers' attention and `layer` layers' MLPs have written to it. `stream` names the hook points that hold it,
    `norm` is the place of the norm through which it is read.
    """

    layer: int
    n_attn: int
    stream: tuple[str, ...]
    norm: str

    @property
    def n_sums(self) -> int:
        """How many sums of a sequential block were made on the way."""
        return self.n_attn + self.layer

    @classmethod
    def of(cls, cfg: Config, layer: int | None = None, mlp_input: bool = False) -> "Station":
        """The station that TransformerLens's arguments name: None and -1 are the unembedding, -2 the last layer.

        In a parallel block the MLP reads the same stream as attention.
        """
        number = layer_count(cfg, layer)
        if number == cfg.n_layers:
            if mlp_input:
                raise ValueError(f"mlp_input needs a layer with an MLP, 0 to {number - 1}; layer is {layer}")
            return cls(number, number, (f"blocks.{number - 1}.hook_resid_post",), "ln_final")
        if mlp_input and cfg.attn_only:
            raise ValueError("mlp_input is what an MLP reads; this model has attention only")
        norm = f"blocks.{number}.ln{2 if mlp_input and not cfg.shared_norm else 1}"
        if mlp_input and not cfg.parallel_attn_mlp:
            return cls(number, number + 1, (f"blocks.{number}.hook_resid_mid",), norm)
        same = (f"blocks.{number - 1}.hook_resid_post",) if number else ()
        return cls(number, number, (f"blocks.{number}.hook_resid_pre", *same), norm)


def layer_count(cfg: Config, layer: int | None, least: int = 0) -> int:
    """How many layers come before `layer`; None and -1 mean all of them.

    Raises:
        ValueError: there is no such layer.
    """
    n = cfg.n_layers
    count = n if layer is None else layer + n + 1 if layer < 0 else layer
    if not least <= count <= n:
        raise ValueError(f"layer is {layer}; wanted {least} to {n}, or -1 for all layers")
    return count


# --- reading a cache


def read(cache: Any, names: str | tuple[str, ...], positions: Slice) -> Float[Array, "..."]:
    """An activation at some positions; of several names the first that the cache holds.

    Raises:
        ActivationNotFound: it holds none of them.
    """
    names = (names,) if isinstance(names, str) else names
    name = next((name for name in names if name in cache), None)
    if name is None:
        raise _not_held(" or ".join(f'"{name}"' for name in names))
    return _cut(cache, name, cache[name], positions)


def read_layers(cache: Any, site: str, layers: Sequence[int], positions: Slice) -> Float[Array, "l ..."]:
    """The activations of a site in some layers, at some positions.

    Raises:
        ActivationNotFound: the cache does not hold it in all of them.
    """
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
        raise ValueError(
            f"positions {positions.index} were asked for, but this cache was taken at one position and has no axis of "
            "them any more; ask for None"
        )
    return positions.apply(value, axes.index("p") - len(axes))


def norm_of(cache: Any, station: Station) -> Norm | None:
    """The norm through which a station is read, if there is one."""
    return _norm(cache, station.norm)


def _norm(cache: Any, name: str) -> Norm | None:
    if f"{name}.hook_scale" not in sites(cache.cfg):
        return None
    place, layer = split_name(name)
    if layer is None:
        return cache.needs_model().parts.ln_final
    block, row = next((block, rows.index(layer)) for block, rows in _stacks(cache) if layer in rows)
    return jax.tree.map(lambda w: w[row], getattr(block, place))


def norm_at(cache: Any, station: Station, positions: Slice, batch: Slice | None = None) -> FixedNorm:
    """The norm through which a station is read, at the scale it had; the identity if there is none."""
    if (norm := norm_of(cache, station)) is None:
        return IDENTITY
    scale = read(cache, f"{station.norm}.hook_scale", positions)
    return FixedNorm.at(norm, batch.apply(scale) if batch is not None and cache.has_batch_dim else scale)


def _stacks(cache: Any):
    """Every stack of blocks with its layers."""
    return zip(cache.needs_model().parts.stacks, cache.cfg.stacks, strict=True)


# --- terms


def head_units(cache: Any, layers: Sequence[int], positions: Slice, n_sums: int) -> UnitsByLayer:
    """What the heads of some layers write; from hook_result where the cache holds it, otherwise from z and W_O."""

    def units(block, some, cut):
        after = _after(cache, block, "attn", some, positions, n_sums)
        if all(f"blocks.{layer}.attn.hook_result" in cache for layer in some):
            return Units(read_layers(cache, "attn.hook_result", some, positions), None, after)
        return Units(read_layers(cache, "attn.hook_z", some, positions), cut(block.attn.W_O), after)

    return _by_layer(cache, layers, units)


def neuron_units(cache: Any, layers: Sequence[int], positions: Slice, which: Slice, n_sums: int) -> UnitsByLayer:
    """What the neurons of some layers write; of a mixture of experts those of every expert, times its weight, then the
    experts' biases times these weights, then the neurons of the shared expert."""

    def units(block, some, cut):
        held, W_out = read_layers(cache, "mlp.hook_post", some, positions), cut(block.mlp.W_out)
        if W_out.ndim == 4:
            held, W_out = _experts(cache, jax.tree.map(cut, block.mlp), held, some, positions)
        else:
            held = _neurons_as_units(held)
        if which.mode != "identity":
            W_out = which.apply(W_out.reshape(len(some), -1, W_out.shape[-1]), 1)
            held = which.apply(held, -2)
        return Units(held, W_out, _after(cache, block, "mlp", some, positions, n_sums))

    return _by_layer(cache, layers, units)


def neuron_labels(cfg: Config, layers: Sequence[int], which: Slice) -> list[str]:
    """ "L0N3", or where experts are mixed "L0E1N3", "L0E1bias", "L0SN3", in the order of `neuron_units`."""
    labels = []
    for layer in layers:
        names = [f"N{neuron}" for neuron in range(cfg.d_mlp)]
        if cfg.moe_layers and cfg.moe_layers[layer]:
            names = [f"E{expert}N{neuron}" for expert in range(cfg.num_experts) for neuron in range(cfg.d_expert)]
            names += [f"E{expert}bias" for expert in range(cfg.num_experts if "b_out" in cfg.biases else 0)]
            names += [f"SN{neuron}" for neuron in range(cfg.d_shared_expert or 0)]
        chosen = range(len(names)) if which.mode == "identity" else which.indices(len(names)).tolist()
        labels += [f"L{layer}{names[number]}" for number in chosen]
    return labels


def layer_outputs(cache: Any, kind: str, layers: Sequence[int], positions: Slice, n_sums: int) -> Float[Array, "l ..."]:
    """What attention or the MLPs ("attn" or "mlp") of some layers add; where the sum passes a norm, with its bias."""
    passed = onward(cache, [_sums_before(kind, layer) for layer in layers], positions, n_sums)
    added = carried(read_layers(cache, f"hook_{kind}_out", layers, positions), passed)
    for bias, passed in _biases_of_sums(cache, kind, layers, positions, n_sums):
        added = added + carried(bias, passed)
    return added


def biases(cache: Any, n_attn: int, n_mlp: int, positions: Slice, like: jax.Array, n_sums: int) -> Biases:
    """The sum of what the biases of the first attentions and MLPs add; one row, of the shape `like`."""
    found = []
    for kind, name, norm, n_layers in (("attn", "b_O", "ln1_post", n_attn), ("mlp", "b_out", "ln2_post", n_mlp)):
        for block, layers in _stacks(cache):
            if some := [layer for layer in layers if layer < n_layers]:
                if (bias := constant_of(getattr(block, kind), name)) is not None:
                    found.append((bias[: len(some)], _after(cache, block, kind, some, positions, n_sums)))
                if (bias := getattr(getattr(block, norm), "b", None)) is not None:
                    found.append((bias[: len(some)], IDENTITY))
        found += _biases_of_sums(cache, kind, range(n_layers), positions, n_sums)
    return Biases(tuple(found), like)


def constant_of(part: Any, name: str) -> Float[Array, "l d"] | None:
    """The bias that attention or an MLP adds whatever it reads; those of experts depend on their weights."""
    return None if isinstance(part, MoE) else getattr(part, name, None)


# --- norms of sums


def onward(cache: Any, skipped: Sequence[int], positions: Slice, n_sums: int) -> FixedNorm | Chain:
    """The norms that terms pass on their way through `n_sums` sums, each of them behind the first so many."""
    names = [_norm_of_sum(number) for number in range(n_sums)]
    if not names or (norms := [_norm(cache, name) for name in names])[0] is None:
        return IDENTITY
    scales = [read(cache, f"{name}.hook_scale", positions) for name in names]
    return Chain.of_norms([FixedNorm.at(*of) for of in zip(norms, scales, strict=True)], skipped)


def _biases_of_sums(cache: Any, kind: str, layers: Sequence[int], positions: Slice, n_sums: int) -> list[tuple]:
    """The biases of the norms that sums with what attention or MLPs added pass, and the norms that come after them."""
    norms = [_norm(cache, _norm_of_sum(_sums_before(kind, layer))) for layer in layers]
    if not norms or norms[0] is None or norms[0].b is None:
        return []
    passed = onward(cache, [_sums_before(kind, layer) + 1 for layer in layers], positions, n_sums)
    return [(jnp.stack([norm.b for norm in norms]), passed)]


def _sums_before(kind: str, layer: int) -> int:
    """How many sums were made before attention, or the MLP, of a layer adds to the residual stream."""
    return 2 * layer + (kind == "mlp")


def _norm_of_sum(number: int) -> str:
    return f"blocks.{number // 2}.ln{number % 2 + 1}_sum"


# --- what units hold


def _by_layer(cache: Any, layers: Sequence[int], units) -> UnitsByLayer:
    """The units of layers that lie in several stacks: `units(block, the layers of that stack, cut)`."""
    chosen = [(block, rows, [layer for layer in rows if layer in layers]) for block, rows in _stacks(cache)]
    chosen = [entry for entry in chosen if entry[2]]
    made = tuple(units(block, some, functools.partial(_rows_of, rows, some)) for block, rows, some in chosen)
    return UnitsByLayer(made, runs_of([some for _, _, some in chosen]))


def _rows_of(rows: Sequence[int], some: Sequence[int], weight: jax.Array) -> jax.Array:
    """The rows of a stacked weight that belong to some consecutive layers of the stack."""
    first = rows.index(some[0])
    return weight if len(some) == len(rows) else weight[first : first + len(some)]


def _after(
    cache: Any, block: Any, kind: str, layers: Sequence[int], positions: Slice, n_sums: int
) -> FixedNorm | Chain:  # fmt: skip
    """What comes after attention or MLP in some layers of a stack: a norm at its scales, a factor, or norms of sums."""
    place = {"attn": "ln1_post", "mlp": "ln2_post"}[kind]
    norm = getattr(block, place)
    if isinstance(norm, NoNorm):
        return onward(cache, [_sums_before(kind, layer) for layer in layers], positions, n_sums)
    if isinstance(norm, OutputScale):
        return FixedNorm(w=jnp.broadcast_to(FixedNorm.at(norm).w, (len(layers), 1)))
    rows = next(rows for rows in cache.cfg.stacks if layers[0] in rows)
    norm = jax.tree.map(functools.partial(_rows_of, rows, layers), norm)
    return FixedNorm.at(norm, read_layers(cache, f"{place}.hook_scale", layers, positions))


@jax.jit
def _neurons_as_units(post: Float[Array, "l ... m"]) -> Float[Array, "l ... m 1"]:
    return post[..., None]


def _experts(cache: Any, mlp: MoE, post: Array, layers: Sequence[int], positions: Slice) -> tuple[Array, Array]:
    """What the neurons of mixtures of experts hold, and what they write it with; see `neuron_units`."""
    post, weights = _experts_as_units(post, read_layers(cache, "mlp.hook_expert_weights", layers, positions), mlp)
    held, W_out = [post], [mlp.W_out.reshape(len(layers), -1, mlp.W_out.shape[-1])]
    if mlp.b_out is not None:
        held.append(weights)
        W_out.append(mlp.b_out)
    if mlp.shared is not None:
        shared = read_layers(cache, "mlp.shared.hook_post", layers, positions)
        if mlp.W_shared_gate is not None:
            shared = shared * read_layers(cache, "mlp.hook_shared_gate", layers, positions)
        held.append(shared[..., None])
        W_out.append(mlp.shared.W_out)
    return jnp.concatenate(held, axis=-2), jnp.concatenate(W_out, axis=1)


@jax.jit
def _experts_as_units(post: Float[Array, "l ... e f"], weights: Float[Array, "l ... e"], mlp: MoE):
    """Every expert's neurons [l ... (e f) 1], times the weight that the router gave it, zero if it was not chosen; and
    these weights [l ... e 1]."""
    b_choice = mlp.b_choice
    if b_choice is not None:
        b_choice = b_choice.reshape(len(b_choice), *(1,) * (weights.ndim - 2), -1)
    chosen = choose(weights, b_choice, mlp.cfg).astype(post.dtype)[..., None]
    held = post * chosen
    return held.reshape(*held.shape[:-2], -1, 1), chosen
