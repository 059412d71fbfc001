"""Activation patching: put an activation of one run into another, one place after another, and see what it does.

Every function is a sweep (sweep.py): one compiled program, whatever the layers, positions and heads. These are
TransformerLens's functions and give plain arrays; `activation_patch` (interventions.py) takes prompts instead of a
cache and gives a labelled result. Activation patching as here: Meng et al. 2022 (arXiv 2202.05262), Wang et al. 2022
(arXiv 2211.00593); on its use, Heimersheim & Nanda 2024 (arXiv 2404.15255).
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.analysis.sweep import Cells, How, Setter, sweep
from jaxlens.hook_table import matching, sites, split_name
from jaxlens.hooks import hook
from jaxlens.names import get_act_name
from jaxlens.optional import needed
from jaxlens.transformer import HookedTransformer

Metric = Callable[[Float[Array, "b p v"]], Any]
AxisNames = Literal["layer", "pos", "head", "head_index", "src_pos", "dest_pos", "neuron"]

# --- what a cell puts in the place of an activation; the index begins with the layer


def _setter(function: Setter) -> Setter:
    """A setter that programs are found by: it reads nothing but its arguments."""
    return functools.update_wrapper(hook(function), function)


@_setter
def layer_pos_patch_setter(corrupted_activation, index, clean_activation):
    """Index (layer, pos): one position of an activation [b p ...]."""
    _, pos = index
    return corrupted_activation.at[:, pos].set(clean_activation[:, pos])


@_setter
def layer_pos_head_vector_patch_setter(corrupted_activation, index, clean_activation):
    """Index (layer, pos, head): one head at one position of an activation [b p head ...]."""
    _, pos, head = index
    return corrupted_activation.at[:, pos, head].set(clean_activation[:, pos, head])


@_setter
def layer_head_vector_patch_setter(corrupted_activation, index, clean_activation):
    """Index (layer, head): one head at all positions of an activation [b p head ...]."""
    _, head = index
    return corrupted_activation.at[:, :, head].set(clean_activation[:, :, head])


@_setter
def layer_head_pattern_patch_setter(corrupted_activation, index, clean_activation):
    """Index (layer, head): one head of scores or a pattern [b head dest src]."""
    _, head = index
    return corrupted_activation.at[:, head].set(clean_activation[:, head])


@_setter
def layer_head_pos_pattern_patch_setter(corrupted_activation, index, clean_activation):
    """Index (layer, head, dest_pos): one row of one head of scores or a pattern [b head dest src]."""
    _, head, dest = index
    return corrupted_activation.at[:, head, dest].set(clean_activation[:, head, dest])


@_setter
def layer_head_dest_src_pos_pattern_patch_setter(corrupted_activation, index, clean_activation):
    """Index (layer, head, dest_pos, src_pos): one entry of one head of scores or a pattern [b head dest src]."""
    _, head, dest, src = index
    return corrupted_activation.at[:, head, dest, src].set(clean_activation[:, head, dest, src])


@_setter
def layer_neuron_patch_setter(corrupted_activation, index, clean_activation):
    """Index (layer, neuron): one neuron at all positions of an activation [b p ... neuron]."""
    _, neuron = index
    return corrupted_activation.at[..., neuron].set(clean_activation[..., neuron])


# --- the sweep by TransformerLens's arguments


def generic_activation_patch(
    model: HookedTransformer, corrupted_tokens: Any, clean_cache: Mapping[str, Array], patching_metric: Metric,
    patch_setter: Setter, activation_name: str, index_axis_names: Sequence[AxisNames] | None = None,
    index_df: Any = None, return_index_df: bool = False, **how: Unpack[How],
) -> Any:  # fmt: skip
    """The metric of the corrupted run with each of many patches from the clean cache.

    `patch_setter(corrupted_activation, index, clean_activation)` returns the whole patched activation. What is patched
    is `activation_name` (as for `get_act_name`) in the layer that the index begins with: all indices that
    `index_axis_names` span, or the rows of the DataFrame `index_df`. How it is run (`batch_size`, `progress`,
    `attention_mask`) is described by `jaxlens.analysis.sweep.How`.

    Returns:
        An array with an axis for each name, or [row] for an `index_df`; with `return_index_df` also the indices. A
        metric that is not a single number adds its own axes.

    Raises:
        ValueError: not exactly one of `index_axis_names` and `index_df`; an unknown axis; a cache of other positions.
        ActivationNotFound: the cache lacks the activation.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> _, clean_cache = model.run_with_cache([[1, 2, 3]])
        >>> generic_activation_patch(
        ...     model, [[1, 5, 3]], clean_cache, lambda logits: logits[0, -1, 4], layer_pos_patch_setter, "resid_pre",
        ...     ("layer", "pos")).shape
        (2, 3)
    """
    if (index_axis_names is None) == (index_df is None):
        raise ValueError("give exactly one of index_axis_names and index_df: either says which patches to make")
    if clean_cache is None:
        raise TypeError("clean_cache is None; wanted the cache of the clean run, `model.run_with_cache(clean)[1]`")
    n_positions = model._read_input(corrupted_tokens, attention_mask=how.get("attention_mask")).real.shape[1]
    if index_df is not None:
        indices, shape = _indices(index_df, lengths_of_axes(model, n_positions, activation_name)), (len(index_df),)
    else:
        lengths = [len(axis) for axis in index_axes(model, n_positions, activation_name, index_axis_names).values()]
        indices, shape = np.array(list(itertools.product(*map(range, lengths))), np.int32), tuple(lengths)
    cells = cells_at(model, activation_name, indices)
    values = sweep(model, corrupted_tokens, cells, patch_setter, clean_cache, {"": patching_metric}, **how)[""]
    result = jnp.asarray(values.reshape(*shape, *values.shape[1:]))
    if not return_index_df:
        return result
    return result, make_df_from_ranges(shape, index_axis_names) if index_df is None else index_df


def _indices(index_df: Any, lengths: Mapping[str, int | None]) -> np.ndarray:
    """The rows of a DataFrame of indices, those of known axes within their length."""
    columns, indices = list(index_df.columns), np.asarray(index_df.to_numpy())
    if not len(indices) or columns[0] != "layer":
        raise ValueError(
            f'index_df has columns {columns} and {len(indices)} rows; wanted "layer" first, and at least one row'
        )
    if not np.issubdtype(indices.dtype, np.integer):
        raise TypeError(f"index_df holds {indices.dtype}; indices are whole numbers")
    for name, column in zip(columns[1:], indices.T[1:], strict=True):
        length = lengths.get(name) or column.max() + 1
        if column.min() < -length or column.max() >= length:
            raise ValueError(f'index_df has {name} {column.min()} to {column.max()}; there are {length}')
    return indices.astype(np.int32)


def cells_at(model: HookedTransformer, activation_name: str, indices: np.ndarray) -> Cells:
    """The cells that patch an activation at these indices, which begin with the layer.

    Raises:
        ValueError: a layer that the model does not have, or an activation that is in no layer.
    """
    layers = indices[:, 0]
    if layers.min() < 0 or layers.max() >= model.cfg.n_layers:
        odd = int(layers.min() if layers.min() < 0 else layers.max())
        raise ValueError(f"there is no layer {odd} to patch; the model has layers 0 to {model.cfg.n_layers - 1}")
    return Cells(site_of(model, activation_name)[0], layers, indices)


def site_of(model: HookedTransformer, activation_name: str) -> tuple[str, str]:
    """The site of an activation by any of its names, and the letters of its axes.

    Raises:
        ValueError: it is in no layer.
        HookError: there is no such activation; the message offers the nearest names.
    """
    table = sites(model.cfg)
    name = activation_name.removeprefix("blocks.*.")
    if not any(full.endswith(f".{name}") and split_name(full)[0] == name for full in table):
        if split_name(name)[1] is not None:
            raise ValueError(f'"{activation_name}" is of one layer; a sweep goes over layers: leave "blocks.N." out')
        if {name, f"hook_{name}"} & table.keys():
            raise ValueError(f'"{activation_name}" is in no layer; a sweep patches activations of layers')
        name = split_name(get_act_name(activation_name, 0))[0]
    first = matching(model.cfg, f"blocks.*.{name}")[0]
    return split_name(first)[0], table[first].axes


def index_axes(
    model: HookedTransformer, n_positions: int, activation_name: str, names: Sequence[str]
) -> dict[str, list[str]]:
    """Each axis of a sweep and the names of its places.

    Raises:
        ValueError: there is no such axis, or "layer" is not the first.
    """
    lengths = lengths_of_axes(model, n_positions, activation_name)
    if isinstance(names, str):
        raise ValueError(f'index_axis_names is the string {names!r}; wanted a tuple of axes, such as ("layer", "pos")')
    if odd := [name for name in names if lengths.get(name) is None]:
        wanted = [name for name, length in lengths.items() if length is not None]
        raise ValueError(f"there is no axis {odd[0]!r} to sweep; wanted some of {wanted}")
    if not names or names[0] != "layer":
        raise ValueError(f'the first axis of a sweep is "layer"; got {list(names)}')
    return {name: [str(place) for place in range(lengths[name])] for name in names}


def lengths_of_axes(model: HookedTransformer, n_positions: int, activation_name: str) -> dict[str, int | None]:
    """How long each axis of a sweep is; None for one that this model does not have."""
    cfg = model.cfg
    letters = site_of(model, activation_name)[1].split()
    n_heads = cfg.n_key_value_heads if "k" in letters else cfg.n_heads
    n_neurons = {"f": cfg.d_expert, "x": cfg.d_shared_expert}.get(letters[-1], cfg.d_mlp)
    lengths = {"layer": cfg.n_layers, "neuron": n_neurons, "expert": cfg.num_experts}
    lengths |= dict.fromkeys(("pos", "src_pos", "dest_pos"), n_positions)
    return lengths | dict.fromkeys(("head", "head_index"), n_heads)


def make_df_from_ranges(column_max_ranges: Sequence[int], column_names: Sequence[str]) -> Any:
    """A DataFrame of all combinations of indices below these ranges, the last column fastest."""
    pandas = needed("pandas", "a DataFrame")

    return pandas.DataFrame(itertools.product(*map(range, column_max_ranges)), columns=list(column_names))


def _patches(what: str, activation_name: str, setter: Setter, *axes: AxisNames) -> Callable[..., Array]:
    """The sweep that patches one kind of activation, as a function (model, corrupted_tokens, clean_cache, metric)."""

    def patch(
        model: HookedTransformer, corrupted_tokens: Any, clean_cache: Mapping[str, Array], patching_metric: Metric,
        **how: Unpack[How],
    ) -> Array:  # fmt: skip
        return generic_activation_patch(
            model, corrupted_tokens, clean_cache, patching_metric, setter, activation_name, axes, **how
        )

    patch.__doc__ = f"The metric with {what} patched from the clean cache: [{' '.join(axes)}]. A sweep; see above."
    return patch


_AT_POS, _BY_HEAD, _BY_POS = layer_pos_patch_setter, layer_head_vector_patch_setter, layer_pos_head_vector_patch_setter

get_act_patch_resid_pre = _patches("the residual stream before a layer", "resid_pre", _AT_POS, "layer", "pos")
get_act_patch_resid_mid = _patches("the stream between attention and MLP", "resid_mid", _AT_POS, "layer", "pos")
get_act_patch_attn_out = _patches("what attention adds", "attn_out", _AT_POS, "layer", "pos")
get_act_patch_mlp_out = _patches("what an MLP adds", "mlp_out", _AT_POS, "layer", "pos")
get_act_patch_attn_head_out_by_pos = _patches("a head's output z", "z", _BY_POS, "layer", "pos", "head")
get_act_patch_attn_head_q_by_pos = _patches("a head's queries", "q", _BY_POS, "layer", "pos", "head")
get_act_patch_attn_head_k_by_pos = _patches("a key head's keys", "k", _BY_POS, "layer", "pos", "head")
get_act_patch_attn_head_v_by_pos = _patches("a value head's values", "v", _BY_POS, "layer", "pos", "head")
get_act_patch_attn_head_out_all_pos = _patches("a head's output z", "z", _BY_HEAD, "layer", "head")
get_act_patch_attn_head_q_all_pos = _patches("a head's queries", "q", _BY_HEAD, "layer", "head")
get_act_patch_attn_head_k_all_pos = _patches("a key head's keys", "k", _BY_HEAD, "layer", "head")
get_act_patch_attn_head_v_all_pos = _patches("a value head's values", "v", _BY_HEAD, "layer", "head")
get_act_patch_attn_head_pattern_all_pos = _patches(
    "a head's pattern", "pattern", layer_head_pattern_patch_setter, "layer", "head_index"
)
get_act_patch_attn_head_pattern_by_pos = _patches(
    "a row of a head's pattern", "pattern", layer_head_pos_pattern_patch_setter, "layer", "head_index", "dest_pos"
)
get_act_patch_attn_head_pattern_dest_src_pos = _patches(
    "an entry of a head's pattern", "pattern", layer_head_dest_src_pos_pattern_patch_setter,
    "layer", "head_index", "dest_pos", "src_pos",
)  # fmt: skip


def get_act_patch_attn_head_all_pos_every(
    model: HookedTransformer, corrupted_tokens: Any, clean_cache: Mapping[str, Array], metric: Metric,
    **how: Unpack[How],
) -> Float[Array, "5 l n"]:  # fmt: skip
    """Outputs, queries, keys, values and patterns of every head patched in turn; key/value heads first, then zeros."""
    return _every_head(
        model, get_act_patch_attn_head_out_all_pos, get_act_patch_attn_head_q_all_pos,
        get_act_patch_attn_head_k_all_pos, get_act_patch_attn_head_v_all_pos, get_act_patch_attn_head_pattern_all_pos,
    )(corrupted_tokens, clean_cache, metric, **how)  # fmt: skip


def get_act_patch_attn_head_by_pos_every(
    model: HookedTransformer, corrupted_tokens: Any, clean_cache: Mapping[str, Array], metric: Metric,
    **how: Unpack[How],
) -> Float[Array, "5 l p n"]:  # fmt: skip
    """The same position by position (of the query, for patterns)."""

    def pattern(*args: Any, **how: Unpack[How]) -> Array:
        return jnp.swapaxes(get_act_patch_attn_head_pattern_by_pos(*args, **how), 1, 2)

    return _every_head(
        model, get_act_patch_attn_head_out_by_pos, get_act_patch_attn_head_q_by_pos,
        get_act_patch_attn_head_k_by_pos, get_act_patch_attn_head_v_by_pos, pattern,
    )(corrupted_tokens, clean_cache, metric, **how)  # fmt: skip


def _every_head(model: HookedTransformer, *sweeps: Callable[..., Array]) -> Callable[..., Array]:
    """Several sweeps over heads, stacked; grouped keys and values have fewer heads and are filled up with zeros."""

    def run(*args: Any, **how: Unpack[How]) -> Array:
        found = [one(model, *args, **how) for one in sweeps]
        missing = [(0, 0)] * (found[0].ndim - 1)
        return jnp.stack([jnp.pad(one, [*missing, (0, model.cfg.n_heads - one.shape[-1])]) for one in found])

    return run


def get_act_patch_block_every(
    model: HookedTransformer, corrupted_tokens: Any, clean_cache: Mapping[str, Array], metric: Metric,
    **how: Unpack[How],
) -> Float[Array, "3 l p"]:  # fmt: skip
    """The residual stream before each layer, what attention adds, and what the MLP adds, patched in turn."""
    sweeps = (get_act_patch_resid_pre, get_act_patch_attn_out, get_act_patch_mlp_out)
    return jnp.stack([one(model, corrupted_tokens, clean_cache, metric, **how) for one in sweeps])
