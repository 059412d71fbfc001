"""Sweeps with a user-defined setter, with the arguments of TransformerLens.

A setter receives an activation of the corrupted run, an index and the clean activation, and returns the patched
activation. Activation patching is from Meng et al. 2022 (arXiv 2202.05262) and Wang et al. 2022 (arXiv 2211.00593).
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlens._jax.explicit_axes import on_any_mesh
from jaxlens.analysis.inputs import check_source, read_single
from jaxlens.analysis.interventions.activation_patching import MetricFunction
from jaxlens.analysis.interventions.cells import Cells, axis_lengths_of_sweep, combinations, index_axes
from jaxlens.analysis.interventions.sweep import PaddedSetter, Setter, SweepOptions, sweep
from jaxlens.errors import require
from jaxlens.model.transformer import HookedTransformer

AxisNames = Literal["layer", "pos", "head", "head_index", "src_pos", "dest_pos", "neuron"]


@on_any_mesh
def generic_activation_patch(
    model: HookedTransformer, corrupted_tokens: Any, clean_cache: Mapping[str, Array], patching_metric: MetricFunction,
    patch_setter: Setter, activation_name: str, index_axis_names: Sequence[AxisNames] | None = None,
    index_df: Any = None, return_index_df: bool = False, **options: Unpack[SweepOptions],
) -> Any:  # fmt: skip
    """The metric of the corrupted run with each of many patches from the clean cache.

    `patch_setter(corrupted_activation, index, clean_activation)` returns the whole patched activation. It patches
    `activation_name` (as for `get_act_name`) in one layer, the first entry of the index. The indices are all of those
    along `index_axis_names`, or the rows of the DataFrame `index_df`. The options are those of
    `jaxlens.analysis.interventions.sweep.SweepOptions` (`batch_size`, `progress`, `attention_mask`).

    Returns:
        An array with one axis per name, or [row] for an `index_df`; with `return_index_df` also the indices. Its
        layers are those that have the activation. The axes of a metric that is not a single number follow.

    Raises:
        ValueError: `index_axis_names` and `index_df` are both given or both missing, an axis is unknown, or the cache
            was made at other positions or with other padding.
        ActivationNotFound: The cache lacks the activation.

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
        raise ValueError("give exactly one of index_axis_names and index_df; either selects the patches")
    if clean_cache is None:
        raise TypeError("clean_cache is None; expected the cache of the clean run, `model.run_with_cache(clean)[1]`")
    cfg, inputs = model.cfg, read_single(model, corrupted_tokens, options.get("attention_mask"))
    check_source(model, corrupted_tokens, options.get("attention_mask"), clean_cache)
    n_positions = inputs.n_positions
    if index_df is not None:
        indices = _indices(index_df, axis_lengths_of_sweep(cfg, n_positions, activation_name))
        shape = (len(index_df),)
    else:
        labels = index_axes(cfg, n_positions, activation_name, index_axis_names)
        indices, shape = combinations(labels), tuple(map(len, labels.values()))
    cells = Cells.at(cfg, activation_name, indices)
    values = sweep(model, inputs, cells, patch_setter, clean_cache, {"": patching_metric}, **options).cells[""]
    result = jnp.asarray(values.reshape(*shape, *values.shape[1:]))
    if not return_index_df:
        return result
    if index_df is None:
        index_df = require("pandas", "a DataFrame").DataFrame(indices, columns=list(index_axis_names))
    return result, index_df


def _indices(index_df: Any, lengths: Mapping[str, int | None]) -> np.ndarray:
    """The rows of a DataFrame of indices, checked."""
    columns, indices = list(index_df.columns), np.asarray(index_df.to_numpy())
    if not len(indices) or columns[0] != "layer":
        given = f"index_df has columns {columns} and {len(indices)} rows"
        raise ValueError(f'{given}; expected "layer" as the first column, and at least one row')
    if not np.issubdtype(indices.dtype, np.integer):
        raise TypeError(f"index_df holds {indices.dtype}; expected integers")
    indices = indices.astype(np.int32)
    for name, column in zip(columns[1:], indices.T[1:], strict=True):
        length = lengths.get(name) or column.max() + 1
        if column.min() < -length or column.max() >= length:
            raise ValueError(f"index_df has {name} {column.min()} to {column.max()}, but the length is {length}")
        if name in lengths:
            column[column < 0] += length
    return indices


def make_df_from_ranges(column_max_ranges: Sequence[int], column_names: Sequence[str]) -> Any:
    """A DataFrame of all combinations of indices below these lengths. The last column varies fastest."""
    pandas = require("pandas", "a DataFrame")
    return pandas.DataFrame(itertools.product(*map(range, column_max_ranges)), columns=list(column_names))


# --- setters; the first entry of every index is the layer


def _setter(function: Setter) -> Setter:
    """Marks a setter that reads only its arguments, so that its compiled programs can be reused."""
    return functools.update_wrapper(PaddedSetter(function), function)


@_setter
def layer_pos_patch_setter(corrupted_activation, index, clean_activation):
    """Patches one position of an activation [b p ...]. An index is (layer, pos)."""
    _, pos = index
    return corrupted_activation.at[:, pos].set(clean_activation[:, pos])


@_setter
def layer_pos_head_vector_patch_setter(corrupted_activation, index, clean_activation):
    """Patches one head at one position of an activation [b p head ...]. An index is (layer, pos, head)."""
    _, pos, head = index
    return corrupted_activation.at[:, pos, head].set(clean_activation[:, pos, head])


@_setter
def layer_head_vector_patch_setter(corrupted_activation, index, clean_activation):
    """Patches one head at all positions of an activation [b p head ...]. An index is (layer, head)."""
    _, head = index
    return corrupted_activation.at[:, :, head].set(clean_activation[:, :, head])


@_setter
def layer_head_pattern_patch_setter(corrupted_activation, index, clean_activation):
    """Patches one head of scores or a pattern [b head dest src]. An index is (layer, head)."""
    _, head = index
    return corrupted_activation.at[:, head].set(clean_activation[:, head])


@_setter
def layer_head_pos_pattern_patch_setter(corrupted_activation, index, clean_activation):
    """Patches one row of one head of scores or a pattern [b head dest src]. An index is (layer, head, dest_pos)."""
    _, head, dest = index
    return corrupted_activation.at[:, head, dest].set(clean_activation[:, head, dest])


@_setter
def layer_head_dest_src_pos_pattern_patch_setter(corrupted_activation, index, clean_activation):
    """Patches an entry of a head of scores or a pattern [b head dest src]. Index: (layer, head, dest_pos, src_pos)."""
    _, head, dest, src = index
    return corrupted_activation.at[:, head, dest, src].set(clean_activation[:, head, dest, src])


@_setter
def layer_neuron_patch_setter(corrupted_activation, index, clean_activation):
    """Patches one neuron at all positions of an activation [b p ... neuron]. An index is (layer, neuron)."""
    _, neuron = index
    return corrupted_activation.at[..., neuron].set(clean_activation[..., neuron])
