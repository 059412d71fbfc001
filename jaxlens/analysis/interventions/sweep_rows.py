"""The rows of a batch of cells through the layers: a loop over layers, and in it a loop over the blocks that run there.

    layer 0   [block 0][block 1]
    layer 1   [block 0][block 1][block 2][block 3]         rows join at the layer of their cell, with the baseline's
    layer 2   [block 0][block 1][block 2][block 3][ …      residual stream and the new value at the swept site

The number of blocks in each layer is data. A few blocks run at once (`BatchShape.at_once`): as many rows as matrix
products need for full speed, and as fit into the caches of a processor. Only attention keeps them apart.

Axes: c cell, b batch, l layer, i block, r row of a block, g sequence of a block, q prompt of a block, t slot of a
sequence, o slot of the baseline run, s source, d d_model, z kind of rotary positions.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxlens.analysis.interventions.sweep_batches import Baseline, Batch, BatchShape
from jaxlens.config import Config
from jaxlens.hooks.api import DataHook
from jaxlens.hooks.plan import SiteHook
from jaxlens.hooks.table import LENGTH_AXES
from jaxlens.hooks.tap import Tap
from jaxlens.model.loops import step
from jaxlens.nn.block import SPLIT_INPUTS, Block
from jaxlens.nn.in_stack import layer_in_stack
from jaxlens.nn.packing import PADDING, PackedRows, PackedSequences
from jaxlens.nn.sequence import SequenceInfo


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a batch: the inputs of the layers, the residual stream, and new values by site.

    Each new value comes with the layer in which it is put.
    """

    info: SequenceInfo
    new: dict[str, tuple[Array, Array]]
    x: Float[Array, "i r d"] | None

    def at(self, group: Any, n_groups: int) -> tuple[SequenceInfo, tuple[SiteHook, ...]]:
        """The inputs of a group of blocks that run at once, and the hooks that let their rows join."""

        def of_group(values: Array, axis: int = 0) -> Array:
            size = values.shape[axis] // n_groups
            return jax.lax.dynamic_slice_in_dim(values, group * size, size, axis)

        def fields_of_group(of: Any, axes: dict[str, int]) -> Any:
            present = {name: getattr(of, name) for name in axes if getattr(of, name, None) is not None}
            return dataclasses.replace(of, **{name: of_group(w, axes[name]) for name, w in present.items()})

        packing = fields_of_group(self.info.packing, PACKING_AXES)
        info = dataclasses.replace(fields_of_group(self.info, INFO_AXES), packing=packing)
        new = jax.tree.map(of_group, self.new)
        hooks = (SiteHook(DataHook(_put, new=values, layers=layers), site) for site, (values, layers) in new.items())
        return info, tuple(hooks)


INFO_AXES = {"positions": 0, "steps": 0, "indices": 0, "sources": 0, "cos": 1, "sin": 1, "qk_input": 0}
PACKING_AXES = {
    "indices": 0, "before": 0, "offsets": 1, "sources": 0, "source_indices": 0, "slots": 0,
    "groups": 0, "rows": 0, "baseline": 0,
}  # fmt: skip
"""The axis in which the values of a block are consecutive, by field of SequenceInfo and of the packings."""


def _put(value, hook, new, layers):
    """The new value in the layer of each cell. `layers` has an entry per row [i r] or per sequence [g]."""
    changes = layers == hook.layer()
    return jnp.where(jnp.expand_dims(changes, tuple(range(changes.ndim, value.ndim))), new, value)


# --- the rows of a batch


def needs_sequences(site: str) -> bool:
    """Whether a site's values belong to whole sequences: scores and patterns, which have an axis of sources."""
    return LENGTH_AXES[site][0] != 1


def packings(shape: BatchShape, batch: Batch, mask: Bool[np.ndarray, "b t"]) -> dict[str, np.ndarray]:
    """The fields of `PackedRows` or `PackedSequences`, for all blocks."""
    prompts, slot = batch.groups % shape.prompts, np.arange(shape.slots)
    if shape.sequences:
        rows, block = batch.rows[batch.sequences], np.arange(shape.blocks)[:, None, None]
        rows = np.where(rows // shape.block == block, rows % shape.block, -1).reshape(-1, shape.slots)
        slots = (batch.sequences.reshape(-1, 1) % shape.prompts) * shape.slots + slot
        groups = np.minimum(batch.numbers, shape.sequences - 1)
        return _int32(groups=groups, slots=batch.slots, rows=rows, baseline=slots)
    count, span = np.cumsum(mask, axis=-1), shape.slots + 1  # a span holds the numbers of a sequence's tokens
    indices = np.where(mask, count - 1, PADDING)
    n_blocks, unused = shape.blocks, ((0, 0), (0, shape.block - shape.grouped * shape.slots))
    of_baseline = np.pad(indices[batch.prompts].reshape(n_blocks, -1), unused, constant_values=PADDING)
    offset = np.pad(np.repeat(np.arange(shape.grouped) * span, shape.slots), unused[1])
    slots = np.pad((batch.prompts[..., None] * shape.slots + slot).reshape(n_blocks, -1), unused)
    offsets = np.stack((prompts % shape.grouped, shape.grouped + batch.numbers)) * span
    source_indices = np.concatenate((of_baseline, indices[prompts, batch.slots]), axis=1)
    sources = source_indices + np.concatenate((np.broadcast_to(offset, slots.shape), offsets[1]), axis=1)
    sources = np.where(source_indices == PADDING, PADDING, sources)
    return _int32(
        indices=(count - 1)[prompts, batch.slots], before=(count - mask)[prompts, batch.starts], offsets=offsets,
        slots=slots, sources=sources, source_indices=np.maximum(source_indices, 0),
    )  # fmt: skip


def _int32(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    return {name: array.astype(np.int32) for name, array in arrays.items()}


def packed_rows(
    shape: BatchShape, batch: Batch, packings: dict[str, Array], baseline: Baseline, site: str,
    new: Float[Array, "c b ..."],
) -> Rows:  # fmt: skip
    """The rows of a batch, traced. `new` are the values of the cells at the swept site."""
    at, row_layers = (batch.groups % shape.prompts, batch.slots), batch.row_layers
    x = baseline.residuals[jnp.maximum(row_layers, 0), *at]
    # A row joins at the layer of its cell with the baseline's residual stream, if that is not the swept site.
    by_site = {"hook_resid_pre": (x, row_layers)}
    if needs_sequences(site):
        sequences = batch.sequences.reshape(-1)
        by_site[site] = new.reshape(-1, *new.shape[2:])[sequences], batch.cell_layers[sequences // shape.prompts]
    else:
        by_site[site] = new[batch.groups // shape.prompts, *at], row_layers
    info = baseline.info
    kind = PackedSequences if shape.sequences else PackedRows
    of_blocks = {name: getattr(info, name)[at] for name in ("positions", "steps")}
    of_blocks["packing"] = kind(**packings, keys=baseline.keys, values=baseline.values)
    prompts = batch.sequences.reshape(-1) % shape.prompts  # packed rows have bounds of their own
    of_blocks |= {name: getattr(info, name)[prompts] if shape.sequences else None for name in ("indices", "sources")}
    if info.cos is not None:
        of_blocks |= {name: getattr(info, name)[:, *at] for name in ("cos", "sin")}
    if info.qk_input is not None:
        of_blocks["qk_input"] = info.qk_input[at]
    return Rows(dataclasses.replace(info, **of_blocks), by_site, x)


# --- the loop


def run_rows(
    cfg: Config, stacks: tuple[Block, ...], rows: Rows, batch: Batch, shape: BatchShape
) -> Float[Array, "i r d"]:
    """The residual stream of the rows after the last layer."""
    of_stack = {layer: (stack, i) for stack, layers in enumerate(cfg.stacks) for i, layer in enumerate(layers)}
    joining = set(batch.cell_layers[: batch.n_cells].tolist())
    first, x = min(joining), rows.x
    for stack, layers in itertools.groupby(range(first, cfg.n_layers), lambda layer: of_stack[layer][0]):
        indices = [of_stack[layer][1] for layer in layers]
        bounds = np.int32(indices[0]), np.int32(indices[-1] + 1)
        # other kinds of blocks may have the site in another shape
        of_rows = dataclasses.replace(rows, new={} if joining.isdisjoint(cfg.stacks[stack]) else rows.new, x=None)
        groups = batch.settled // shape.at_once, -(-batch.running // shape.at_once)
        x = _loop(cfg.stacks[stack], shape.at_once, stacks[stack], of_rows, x, *groups, *bounds)
    return x


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _loop(layers: tuple[int, ...], at_once: int, stack: Block, rows: Rows, x, settled, running, first, last):
    """Layers first..last-1 of a stack, each on the groups of `at_once` blocks that run in it."""
    per_head = not rows.new.keys().isdisjoint(SPLIT_INPUTS)

    def of_layer(i, x):
        block_of_model, layer = layer_in_stack(stack, i, products=False), jnp.array(layers, jnp.int32)[i]

        def of_group(edited, group, x):
            info, hooks = rows.at(group, len(x) // at_once)
            given = jax.lax.dynamic_slice_in_dim(x, group * at_once, at_once)
            tap = Tap(hooks if edited else (), frozenset(), layer)
            after = step(block_of_model, given, layer, info, tap, None)[0]
            return jax.lax.dynamic_update_slice_in_dim(x, after, group * at_once, 0)

        start = 0
        if per_head:  # inputs of attention are copied for each head, so only for the blocks in which rows join
            x = jax.lax.fori_loop(0, settled[layer], functools.partial(of_group, False), x)
            start = settled[layer]
        return jax.lax.fori_loop(start, running[layer], functools.partial(of_group, True), x)

    return jax.lax.fori_loop(first, last, of_layer, x)
