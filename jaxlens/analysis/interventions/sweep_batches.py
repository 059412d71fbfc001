"""The arrays of a sweep: the baseline run, and batches of cells that all have the same shapes.

Axes: c cell, b batch, p position, l layer, s layer in which the site is swept, r row, g = c b sequence, t slot of a
sequence, d d_model, k key/value head, h d_head, v vocabulary.
"""

import dataclasses
import math

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens.config import Config
from jaxlens.nn.sequence import SequenceInfo

ROWS_ON_CPU = 512  # enough rows for matrix products at full speed, with little padding
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
    keys: Float[Array, "l b t k h"]
    values: Float[Array, "l b t k h"]
    activations: Float[Array, "s b ..."]
    logits: Float[Array, "b p v"]


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """The shape of a batch of cells, for which the programs of a sweep are compiled."""

    cells: int
    rows: int
    prompts: int
    slots: int

    @classmethod
    def for_sweep(cls, cfg: Config, baseline: Baseline, n_read: int, batch_size: int | None) -> "BatchShape":
        """Batches of `batch_size` cells, or of as many as fit in the memory of the model's device."""
        b, t = baseline.info.mask.shape
        if batch_size is None:
            per_prompt = 3 * n_read * cfg.d_vocab_out + 2 * math.prod(baseline.activations.shape[2:])
            per_slot = cfg.n_heads * (3 * cfg.d_head + 3 * t) + per_prompt // t
            per_row = 6 * cfg.d_model + 3 * (cfg.d_mlp or 0) + SLOTS_PER_ROW * per_slot
            devices = baseline.logits.devices()
            rows = min(map(_memory, devices)) // (baseline.logits.dtype.itemsize * per_row)
            on_cpu = any(device.platform == "cpu" for device in devices)
            rows = min(rows, ROWS_ON_CPU if on_cpu else 32 * ROWS_ON_CPU)
            batch_size = max(2, SLOTS_PER_ROW * rows // (b * t))
        rows = max(b * t, batch_size * b * t // SLOTS_PER_ROW)
        return cls(batch_size, rows, b, t)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Cells that run together, and the packing of their rows (see `Packing`). Unused rows and cells have layer -1."""

    cells: Int[np.ndarray, "c"]
    n_cells: int
    cell_layers: Int[np.ndarray, "c"]
    groups: Int[np.ndarray, "r"]
    slots: Int[np.ndarray, "r"]
    row_layers: Int[np.ndarray, "r"]
    rows: Int[np.ndarray, "g t"]
    row_layer_runs: int  # the number of layers that each row runs through, summed over rows

    @classmethod
    def of(
        cls, shape: BatchShape, cells: list[int], layers: np.ndarray, first: Int[np.ndarray, "c b"], n_positions: int,
        depth: int,
    ) -> "Batch":  # fmt: skip
        """The batch of these cells, which differ from the baseline from slot `first` to slot `n_positions` - 1."""
        padded = np.zeros(shape.cells, np.int32)
        padded[: len(cells)] = cells
        cell_layers = np.full(shape.cells, -1, np.int32)
        cell_layers[: len(cells)] = layers[cells]
        starts = np.full((shape.cells, shape.prompts), shape.slots)
        starts[: len(cells)] = first[cells]
        slot = np.arange(shape.slots)
        sequence, slot = np.nonzero((slot >= starts.reshape(-1, 1)) & (slot < n_positions))
        groups, slots, row_layers = (np.full(shape.rows, fill, np.int32) for fill in (0, 0, -1))
        groups[: len(sequence)], slots[: len(slot)] = sequence, slot
        row_layers[: len(sequence)] = cell_layers[sequence // shape.prompts]
        rows = np.full((shape.cells * shape.prompts, shape.slots), -1, np.int32)
        rows[sequence, slot] = np.arange(len(sequence))
        runs = int((depth - row_layers[: len(sequence)]).sum())
        return cls(padded, len(cells), cell_layers, groups, slots, row_layers, rows, runs)


def _memory(device: jax.Device) -> int:
    """The bytes that a batch may use: a third of an accelerator's free memory, or one gigabyte.

    They are rounded down to a power of two: free memory differs between calls, and batches of equal shapes share
    compiled programs.
    """
    stats = device.memory_stats() or {}
    n_bytes = (stats["bytes_limit"] - stats["bytes_in_use"]) // 3 if "bytes_limit" in stats else 2**30
    return 1 << max(n_bytes, 1).bit_length() - 1
