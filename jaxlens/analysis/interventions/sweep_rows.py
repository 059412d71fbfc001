"""The rows of a batch of cells through the layers: a loop over layers, and in it a loop over the blocks that run there.

    layer 0   [block 0][block 1]
    layer 1   [block 0][block 1][block 2][block 3]         rows join at the layer of their cell, with the baseline's
    layer 2   [block 0][block 1][block 2][block 3][ …      residual stream and the new value at the swept site

The number of blocks in each layer is data. A block is small enough for the caches of a processor, and all blocks of a
layer read its weights once.

Axes: c cell, b batch, l layer, i block, r row of a block, g sequence of a block, q prompt of a block, t slot of a
sequence, o slot of the baseline run, s source, d d_model.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.analysis.interventions.sweep_batches import Baseline, Batch, BatchShape
from jaxlens.config import Config
from jaxlens.hooks.api import DataHook
from jaxlens.hooks.plan import SiteHook
from jaxlens.hooks.table import LENGTH_AXES
from jaxlens.hooks.tap import Tap
from jaxlens.model.loops import LoopInputs, layer_at, set_row, step
from jaxlens.nn.block import SPLIT_INPUTS, Block
from jaxlens.nn.packing import PADDING, PackedRows, PackedSequences
from jaxlens.nn.sequence import SequenceInfo, token_indices


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a batch. All arrays have an axis of blocks, except the `keys` and `values` of the baseline run.

    `info` are the arrays of a SequenceInfo with this `structure` for each block. `new` has the new values by site, with
    the layer in which each is put. `x` is the residual stream.
    """

    structure: Any = dataclasses.field(metadata={"static": True})
    info: list[Array]
    keys: Float[Array, "l o k h"]
    values: Float[Array, "l o k h"]
    new: dict[str, tuple[Array, Array]]
    x: Float[Array, "i 1 r d"] | None

    def at(self, block: Any) -> tuple[SequenceInfo, tuple[SiteHook, ...]]:
        """The inputs of a block's layers, and the hooks that let its rows join."""
        arrays, new = layer_at((self.info, self.new), block)
        info = self.structure.unflatten(arrays)
        packing = dataclasses.replace(info.packing, keys=self.keys, values=self.values)
        hooks = (SiteHook(DataHook(_put, new=values, layers=layers), site) for site, (values, layers) in new.items())
        return dataclasses.replace(info, packing=packing), tuple(hooks)


def _put(value, hook, new, layers):
    """The new value in the layer of each cell. `layers` has an entry per row [1 r] or per sequence [g]."""
    changes = layers == hook.layer()
    return jnp.where(jnp.expand_dims(changes, tuple(range(changes.ndim, value.ndim))), new, value)


# --- the rows of a batch


def needs_sequences(site: str) -> bool:
    """Whether a site's values belong to whole sequences: scores and patterns, which have an axis of sources."""
    return LENGTH_AXES[site][0] != 1


def packed_rows(shape: BatchShape, batch: Batch, baseline: Baseline, site: str, new: Float[Array, "c b ..."]) -> Rows:
    """The rows of a batch, traced. `new` are the values of the cells at the swept site."""
    prompts, row_layers = batch.groups % shape.prompts, batch.row_layers[:, None]
    x = baseline.residuals[jnp.maximum(batch.row_layers, 0), prompts, batch.slots][:, None]
    structures = []

    def arrays_of_block(*of_block):
        arrays, structure = jax.tree.flatten(_info_of_block(shape, batch.rows, baseline.info, *of_block))
        structures.append(structure)
        return arrays

    info = jax.vmap(arrays_of_block)(
        np.arange(shape.blocks), batch.groups, batch.numbers, batch.slots, batch.starts, batch.prompts, batch.sequences
    )  # fmt: skip
    # A row joins at the layer of its cell with the baseline's residual stream, if that is not the swept site.
    by_site = {"hook_resid_pre": (x, row_layers)}
    if needs_sequences(site):
        of_sequences = batch.cell_layers[batch.sequences // shape.prompts]
        by_site[site] = new.reshape(-1, *new.shape[2:])[batch.sequences], of_sequences
    else:
        by_site[site] = new[batch.groups // shape.prompts, prompts, batch.slots][:, None], row_layers
    return Rows(structures[0], info, baseline.keys, baseline.values, by_site, x)


def _info_of_block(shape: BatchShape, rows, info: SequenceInfo, block, groups, numbers, slots, starts, of, sequences):
    """The inputs of all layers for one block, of which only the keys and values are missing. `of` are its prompts."""
    prompts = groups % shape.prompts
    if shape.sequences:
        own = jnp.where(rows[sequences] // shape.block == block, rows[sequences] % shape.block, -1)
        baseline = (sequences % shape.prompts)[:, None] * shape.slots + np.arange(shape.slots)
        packing = PackedSequences(jnp.minimum(numbers, shape.sequences - 1), slots, own, baseline)
        return info.packed(prompts, slots, info.mask[sequences % shape.prompts], packing)
    indices, span = token_indices(info.mask), shape.slots + 1  # more than the number of any token
    unused = (0, shape.block - shape.grouped * shape.slots)
    numbered = jnp.where(info.mask[of], indices[of], PADDING)
    of_slots = jnp.pad(numbered.ravel(), unused, constant_values=PADDING)
    offset_of_slots = np.pad(np.repeat(np.arange(shape.grouped) * span, shape.slots), unused)
    baseline = jnp.pad((of[:, None] * shape.slots + np.arange(shape.slots)).ravel(), unused)

    is_token, own = info.mask[prompts, slots], indices[prompts, slots]
    offsets = jnp.stack((prompts % shape.grouped, shape.grouped + numbers)) * span
    source_indices = jnp.concatenate((of_slots, jnp.where(is_token, own, PADDING)))
    sources = source_indices + jnp.concatenate((offset_of_slots, offsets[1]))
    packing = PackedRows(
        indices=own[None], before=(indices - info.mask + 1)[prompts, starts][None], offsets=offsets[:, None],
        slots=baseline, sources=jnp.where(source_indices == PADDING, PADDING, sources)[None],
        source_indices=jnp.maximum(source_indices, 0)[None],
    )  # fmt: skip
    return info.packed(prompts, slots, is_token[None], packing)


# --- the loop


def run_rows(cfg: Config, stacks: tuple[Block, ...], rows: Rows, batch: Batch) -> Float[Array, "i 1 r d"]:
    """The residual stream of the rows after the last layer."""
    of_stack = {layer: (stack, i) for stack, layers in enumerate(cfg.stacks) for i, layer in enumerate(layers)}
    joining = set(batch.cell_layers[: batch.n_cells].tolist())
    first, x = min(joining), rows.x
    for stack, layers in itertools.groupby(range(first, cfg.n_layers), lambda layer: of_stack[layer][0]):
        indices = [of_stack[layer][1] for layer in layers]
        bounds = np.int32(indices[0]), np.int32(indices[-1] + 1)
        # other kinds of blocks may have the site in another shape
        of_rows = dataclasses.replace(rows, new={} if joining.isdisjoint(cfg.stacks[stack]) else rows.new, x=None)
        x = _loop(cfg.stacks[stack], stacks[stack], of_rows, x, batch.settled, batch.running, *bounds)
    return x


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _loop(layers: tuple[int, ...], stack: Block, rows: Rows, x, settled, running, first, last):
    """Layers first..last-1 of a stack, each on the blocks that run in it."""
    per_head = not rows.new.keys().isdisjoint(SPLIT_INPUTS)

    def of_layer(i, x):
        block_of_model, layer = LoopInputs(stack, None, {}).within(i, 0).stack, jnp.array(layers, jnp.int32)[i]

        def of_block(edited, block, x):
            info, hooks = rows.at(block)
            tap = Tap(hooks if edited else (), frozenset(), layer)
            return set_row(x, step(block_of_model, layer_at(x, block), layer, info, tap)[0], block)

        start = 0
        if per_head:  # inputs of attention are copied for each head, so only for the blocks in which rows join
            x = jax.lax.fori_loop(0, settled[layer], functools.partial(of_block, False), x)
            start = settled[layer]
        return jax.lax.fori_loop(start, running[layer], functools.partial(of_block, True), x)

    return jax.lax.fori_loop(first, last, of_layer, x)
