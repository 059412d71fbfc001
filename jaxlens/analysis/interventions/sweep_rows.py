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
from jaxtyping import Array, Bool, Float

from jaxlens.analysis.interventions.sweep_batches import Baseline, Batch, BatchShape
from jaxlens.config import Config
from jaxlens.hooks.api import DataHook
from jaxlens.hooks.plan import SiteHook
from jaxlens.hooks.table import LENGTH_AXES
from jaxlens.hooks.tap import Tap
from jaxlens.model.loops import LoopInputs, layer_at, set_row, step
from jaxlens.nn.block import SPLIT_INPUTS, Block
from jaxlens.nn.packing import PADDING, PackedRows, PackedSequences
from jaxlens.nn.sequence import SequenceInfo


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a batch.

    `info` has the inputs of the layers that all blocks share, and those of the first block. Arrays with an axis of
    blocks are its fields in `of_blocks`, the fields of packings, the residual stream `x`, and the new values by site in
    `new`, with the layer in which each is put.
    """

    info: SequenceInfo
    of_blocks: dict[str, Array]
    of_packings: dict[str, Array]
    keys: Float[Array, "l o k h"]
    values: Float[Array, "l o k h"]
    new: dict[str, tuple[Array, Array]]
    x: Float[Array, "i 1 r d"] | None

    def at(self, block: Any) -> tuple[SequenceInfo, tuple[SiteHook, ...]]:
        """The inputs of a block's layers, and the hooks that let its rows join."""
        of_block, of_packing, new = layer_at((self.of_blocks, self.of_packings, self.new), block)
        kind = PackedRows if "sources" in of_packing else PackedSequences
        packing = kind(**of_packing, keys=self.keys, values=self.values)
        hooks = (SiteHook(DataHook(_put, new=values, layers=layers), site) for site, (values, layers) in new.items())
        return dataclasses.replace(self.info, **of_block, packing=packing), tuple(hooks)


def _put(value, hook, new, layers):
    """The new value in the layer of each cell. `layers` has an entry per row [1 r] or per sequence [g]."""
    changes = layers == hook.layer()
    return jnp.where(jnp.expand_dims(changes, tuple(range(changes.ndim, value.ndim))), new, value)


# --- the rows of a batch


def needs_sequences(site: str) -> bool:
    """Whether a site's values belong to whole sequences: scores and patterns, which have an axis of sources."""
    return LENGTH_AXES[site][0] != 1


def packings(shape: BatchShape, batch: Batch, mask: Bool[np.ndarray, "b t"]) -> dict[str, np.ndarray]:
    """The fields of the blocks' `PackedRows` or `PackedSequences`, with an axis of blocks."""
    prompts, slot = batch.groups % shape.prompts, np.arange(shape.slots)
    if shape.sequences:
        rows, block = batch.rows[batch.sequences], np.arange(shape.blocks)[:, None, None]
        rows = np.where(rows // shape.block == block, rows % shape.block, -1)
        slots = (batch.sequences % shape.prompts)[..., None] * shape.slots + slot
        groups = np.minimum(batch.numbers, shape.sequences - 1)
        return _int32(groups=groups, slots=batch.slots, rows=rows, baseline=slots)
    count, span = np.cumsum(mask, axis=-1), shape.slots + 1  # a span holds the numbers of a sequence's tokens
    indices = np.where(mask, count - 1, PADDING)
    n_blocks, unused = shape.blocks, ((0, 0), (0, shape.block - shape.grouped * shape.slots))
    of_baseline = np.pad(indices[batch.prompts].reshape(n_blocks, -1), unused, constant_values=PADDING)
    offset = np.pad(np.repeat(np.arange(shape.grouped) * span, shape.slots), unused[1])
    slots = np.pad((batch.prompts[..., None] * shape.slots + slot).reshape(n_blocks, -1), unused)
    offsets = np.stack((prompts % shape.grouped, shape.grouped + batch.numbers), axis=1) * span
    source_indices = np.concatenate((of_baseline, indices[prompts, batch.slots]), axis=1)
    sources = source_indices + np.concatenate((np.broadcast_to(offset, slots.shape), offsets[:, 1]), axis=1)
    sources = np.where(source_indices == PADDING, PADDING, sources)
    return _int32(
        indices=(count - 1)[prompts, batch.slots][:, None], before=(count - mask)[prompts, batch.starts][:, None],
        offsets=offsets[:, :, None], slots=slots, sources=sources[:, None],
        source_indices=np.maximum(source_indices, 0)[:, None],
    )  # fmt: skip


def _int32(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    return {name: array.astype(np.int32) for name, array in arrays.items()}


def packed_rows(
    shape: BatchShape, batch: Batch, packings: dict[str, Array], baseline: Baseline, site: str,
    new: Float[Array, "c b ..."],
) -> Rows:  # fmt: skip
    """The rows of a batch, traced. `new` are the values of the cells at the swept site."""
    at, row_layers = (batch.groups % shape.prompts, batch.slots), batch.row_layers[:, None]
    x = baseline.residuals[jnp.maximum(batch.row_layers, 0), *at][:, None]
    # A row joins at the layer of its cell with the baseline's residual stream, if that is not the swept site.
    by_site = {"hook_resid_pre": (x, row_layers)}
    if needs_sequences(site):
        of_sequences = batch.cell_layers[batch.sequences // shape.prompts]
        by_site[site] = new.reshape(-1, *new.shape[2:])[batch.sequences], of_sequences
    else:
        by_site[site] = new[batch.groups // shape.prompts, *at][:, None], row_layers
    info = baseline.info
    of_blocks = {name: getattr(info, name)[at][:, None] for name in ("positions", "steps")}
    of_blocks["mask"] = info.mask[batch.sequences % shape.prompts] if shape.sequences else info.mask[at][:, None]
    if info.cos is not None:
        of_blocks |= {name: jnp.moveaxis(getattr(info, name)[:, *at], 0, 1)[:, :, None] for name in ("cos", "sin")}
    if info.qk_input is not None:
        of_blocks["qk_input"] = info.qk_input[at][:, None]
    info = dataclasses.replace(info, **{name: of_block[0] for name, of_block in of_blocks.items()})
    return Rows(info, of_blocks, packings, baseline.keys, baseline.values, by_site, x)


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
            return set_row(x, step(block_of_model, layer_at(x, block), layer, info, tap, None)[0], block)

        start = 0
        if per_head:  # inputs of attention are copied for each head, so only for the blocks in which rows join
            x = jax.lax.fori_loop(0, settled[layer], functools.partial(of_block, False), x)
            start = settled[layer]
        return jax.lax.fori_loop(start, running[layer], functools.partial(of_block, True), x)

    return jax.lax.fori_loop(first, last, of_layer, x)
