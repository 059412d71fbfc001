"""The arrays of a sweep: the baseline run, and batches of cells that all have the same shapes.

A batch is divided into blocks of rows. The rows of a prompt in a cell are consecutive rows of one block. Blocks are
filled in the order of the cells' layers, so those that run in a layer are the first ones.

Axes: c cell, b batch, p position, l layer, s layer in which the site is swept, i block, r row of a block, q prompt of a
block, d d_model, g = c b sequence, t slot of a sequence, o = b t (and padding) slot of the baseline run, k key/value
head, h d_head, v vocabulary.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens.analysis.interventions.metric import Read
from jaxlens.config import Config
from jaxlens.nn.sequence import SequenceInfo

BLOCK_ON_CPU, BLOCK = 64, 512  # rows of a block
AT_ONCE_ON_CPU = 4  # blocks: together, enough rows for matrix products at full speed
ROWS_ON_CPU, ROWS = 2048, 16384  # rows of a batch, which share the copy of a layer's weights
SLOTS_PER_ROW = 4  # slots of sequences per computed row: only some slots of a sequence change


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Baseline:
    """The run that the cells of a sweep start from.

    `residuals` are the inputs of the layers, `keys` (rotated) and `values` those of attention, and `activations` the
    values at the swept site.
    """

    info: SequenceInfo
    residuals: Float[Array, "l b t d"]
    keys: Float[Array, "l o k h"]
    values: Float[Array, "l o k h"]
    activations: Float[Array, "s b ..."]
    logits: Float[Array, "b p v"]


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """The shape of a batch of cells, for which the programs of a sweep are compiled.

    A block has `block` rows, of `grouped` prompts at most, and `at_once` blocks run at once. `sequences` is the number
    of whole sequences in a block, or None if its rows stay packed in attention. Logits and metrics are computed for
    `read_cells` cells at a time.
    """

    cells: int
    rows: int
    block: int
    at_once: int
    grouped: int
    sequences: int | None
    read_cells: int
    prompts: int
    slots: int

    @classmethod
    def for_sweep(
        cls, cfg: Config, baseline: Baseline, read: Read, batch_size: int | None, whole: bool = False
    ) -> "BatchShape":
        """Batches of `batch_size` cells, or of as many as fit in the memory of the model's device.

        `whole`: attention needs whole sequences.
        """
        b, t = baseline.info.positions.shape
        devices = baseline.logits.devices()
        on_cpu = any(device.platform == "cpu" for device in devices)
        of_read = 3 * b * len(read.positions) * len(read.tokens)
        per_slot = cfg.n_heads * (3 * cfg.d_head + 3 * t) + 2 * math.prod(baseline.activations.shape[2:]) // t
        per_row = 6 * cfg.d_model + 3 * (cfg.d_mlp or 0) + SLOTS_PER_ROW * per_slot
        n_values = min(map(_memory, devices)) // baseline.logits.dtype.itemsize
        if batch_size is None:
            rows = min(n_values // per_row, ROWS_ON_CPU if on_cpu else ROWS)
            batch_size = max(2, SLOTS_PER_ROW * rows // (b * t))
        read_cells = _power_of_two(min(batch_size, n_values // 8 // of_read, 256 // (b * len(read.positions))))
        rows = max(b * t, batch_size * b * t // SLOTS_PER_ROW)
        block = max(t, min(BLOCK_ON_CPU if on_cpu else BLOCK, rows))
        whole = whole or block > cfg.attn_block
        n_blocks = max(b, -(-rows // block))
        at_once = min(AT_ONCE_ON_CPU, n_blocks) if on_cpu and not whole else 1
        rows = block * at_once * -(-n_blocks // at_once)
        sequences = SLOTS_PER_ROW * block // t if whole else None
        return cls(batch_size, rows, block, at_once, min(b, block // t), sequences, read_cells, b, t)

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return self.rows // self.block


def in_slots(values: Float[Array, "l b t k h"]) -> Float[Array, "l o k h"]:
    """Keys or values with one axis of slots, whose size is a power of two: most lengths then share the sweep's loop."""
    n_layers, b, t, *of_heads = values.shape
    padding = max(BLOCK_ON_CPU, 1 << (b * t - 1).bit_length()) - b * t
    return jnp.pad(values.reshape(n_layers, b * t, *of_heads), ((0, 0), (0, padding), (0, 0), (0, 0)))


class Filler:
    """Places the rows of cells in the blocks of a batch: those of each prompt in the first block with room for them."""

    def __init__(self, shape: BatchShape):
        self.shape = shape
        self.cells: list[int] = []
        self.placed: list[tuple[int, ...]] = []
        """The cell (its number in the batch), prompt, block, number in the block and first row of every sequence."""
        self._rows: list[int] = []  # free rows, by block
        self._sequences: list[int] = []  # sequences, by block
        self._blocks: dict[int, list[int]] = {}  # the blocks of a group of prompts

    def add(self, cell: int, n_rows: list[int]) -> bool:
        """Places a cell with these numbers of rows, by prompt. False if the batch has no room for it."""
        if len(self.cells) == self.shape.cells:
            return False
        added = []
        for prompt, n in enumerate(n_rows):
            if not n:
                continue
            block = self._block_with_room(prompt // self.shape.grouped, n)
            if block is None:
                return False
            added.append((len(self.cells), prompt, block, self._sequences[block], self.shape.block - self._rows[block]))
            self._rows[block] -= n
            self._sequences[block] += 1
        self.cells.append(cell)
        self.placed += added
        return True

    def _block_with_room(self, group: int, n: int) -> int | None:
        of_group, most = self._blocks.setdefault(group, []), self.shape.sequences or self.shape.block
        found = next((i for i in of_group if self._rows[i] >= n and self._sequences[i] < most), None)
        if found is None and len(self._rows) < self.shape.blocks:
            found = len(self._rows)
            self._rows.append(self.shape.block)
            self._sequences.append(0)
            of_group.append(found)
        return found


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Cells that run together, and their rows. Unused rows and cells have layer -1.

    Row r of block i is slot `slots[i, r]` of sequence `groups[i, r]`, which is sequence `numbers[i, r]` of the block;
    `starts` is the slot of the sequence's first row. `rows` is the reverse map, with -1 in slots without a row.
    `prompts` are those of a block, and `sequences` its sequences. The first `running[l]` blocks run in layer l. Rows
    that join in this layer are in those from `settled[l]` on.
    """

    cells: Int[np.ndarray, "c"]
    n_cells: int
    cell_layers: Int[np.ndarray, "c"]
    groups: Int[np.ndarray, "i r"]
    numbers: Int[np.ndarray, "i r"]
    slots: Int[np.ndarray, "i r"]
    starts: Int[np.ndarray, "i r"]
    row_layers: Int[np.ndarray, "i r"]
    prompts: Int[np.ndarray, "i q"]
    sequences: Int[np.ndarray, "i g"]
    rows: Int[np.ndarray, "g t"]
    running: Int[np.ndarray, "l"]
    settled: Int[np.ndarray, "l"]

    @classmethod
    def of(
        cls, filler: Filler, layers: np.ndarray, first: Int[np.ndarray, "c b"], n_positions: int, depth: int
    ) -> "Batch":
        """The batch of these cells, which differ from the baseline from slot `first` to slot `n_positions` - 1."""
        shape, n_cells = filler.shape, len(filler.cells)
        cells = np.array(filler.cells + [0] * (shape.cells - n_cells), np.int32)
        cell_layers = np.where(np.arange(shape.cells) < n_cells, layers[cells], -1).astype(np.int32)
        cell, prompt, block, number, start_row = np.array(filler.placed, np.int32).T
        start = first[cells[cell], prompt]
        n_rows = n_positions - start
        within = np.arange(n_rows.sum()) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
        at = np.repeat(block, n_rows), np.repeat(start_row, n_rows) + within  # the rows of all sequences
        group = cell * shape.prompts + prompt

        def by_row(values: np.ndarray, unused: int) -> np.ndarray:
            filled = np.full((shape.blocks, shape.block), unused, np.int32)
            filled[at] = np.repeat(values, n_rows)
            return filled

        slots = by_row(start, 0)
        slots[at] += within.astype(np.int32)
        rows = np.full((shape.cells * shape.prompts, shape.slots), -1, np.int32)
        rows[np.repeat(group, n_rows), slots[at]] = np.ravel_multi_index(at, slots.shape)
        row_layers = by_row(cell_layers[cell], -1)
        sequences = np.zeros((shape.blocks, shape.sequences or 0), np.int32)
        if shape.sequences:
            sequences[block, number] = group
        prompts = np.zeros((shape.blocks, shape.grouped), np.int32)
        prompts[block] = (prompt // shape.grouped * shape.grouped)[:, None] + np.arange(shape.grouped)
        earliest, latest = (np.full(shape.blocks, depth), np.full(shape.blocks, -1))
        np.minimum.at(earliest, block, cell_layers[cell])
        np.maximum.at(latest, block, cell_layers[cell])
        layer = np.arange(depth)[:, None]
        running = (earliest <= layer).sum(1)
        settled = np.where((latest >= layer).any(1), (latest >= layer).argmax(1), running)
        return cls(
            cells, n_cells, cell_layers, by_row(group, 0), by_row(number, shape.block), slots, by_row(start, 0),
            row_layers, np.minimum(prompts, shape.prompts - 1), sequences, rows, running.astype(np.int32),
            np.minimum(settled, running).astype(np.int32),
        )  # fmt: skip


def _power_of_two(n: int) -> int:
    """The largest power of two that is at most n, or 1."""
    return 1 << max(n, 1).bit_length() - 1


def _memory(device: jax.Device) -> int:
    """The bytes that a batch may use: a third of an accelerator's free memory, or one gigabyte.

    They are rounded down to a power of two: free memory differs between calls, and batches of equal shapes share
    compiled programs. It also differs between processes, which must run the same batches.
    """
    stats = (device.memory_stats() if jax.process_count() == 1 else None) or {}
    return _power_of_two((stats["bytes_limit"] - stats["bytes_in_use"]) // 3 if "bytes_limit" in stats else 2**30)
