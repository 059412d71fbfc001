"""What a sweep runs on: the known run, and batches of cells that all have the same shapes.

Axes: c cell, b batch, p position, l layer, s row of a site, r row, g = c b sequence, t slot of a sequence, d d_model,
k key/value head, h d_head, v vocabulary.
"""

import dataclasses
import math

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens.config import Config
from jaxlens.nn.context import Context

ROWS_ON_CPU = 512  # enough rows for matrix products at full speed, few enough that little is computed in vain
SLOTS_PER_ROW = 4  # how many slots of sequences there is room for: a sequence changes in a part of its slots only


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Known:
    """The known run: what its layers read, attended to and gave at the site of the sweep, and where it ended."""

    context: Context
    residuals: Float[Array, "l b t d"]
    keys: Float[Array, "l b t k h"]
    values: Float[Array, "l b t k h"]
    activations: Float[Array, "s b ..."]
    logits: Float[Array, "b p v"]


@dataclasses.dataclass(frozen=True)
class Room:
    """The shapes of a batch of cells, which a sweep's program is compiled for."""

    cells: int
    rows: int
    prompts: int
    slots: int

    @classmethod
    def for_sweep(cls, cfg: Config, known: Known, n_read: int, batch_size: int | None) -> "Room":
        """Room for `batch_size` cells, or for as many as the device has memory for."""
        b, t = known.context.real.shape
        if batch_size is None:
            of_prompt = 3 * n_read * cfg.d_vocab_out + 2 * math.prod(known.activations.shape[2:])
            of_slot = cfg.n_heads * (3 * cfg.d_head + 3 * t) + of_prompt // t
            of_row = 6 * cfg.d_model + 3 * (cfg.d_mlp or 0) + SLOTS_PER_ROW * of_slot
            fits = _memory() // (known.logits.dtype.itemsize * of_row)
            batch_size = max(2, SLOTS_PER_ROW * min(fits, ROWS_ON_CPU if _on_cpu() else 32 * ROWS_ON_CPU) // (b * t))
        rows = max(b * t, batch_size * b * t // SLOTS_PER_ROW)
        return cls(batch_size, rows, b, t)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Cells that run together: which, and where their rows stand (`Packing`). Rows and cells too many have layer -1."""

    cells: Int[np.ndarray, "c"]
    n_cells: int
    cell_layers: Int[np.ndarray, "c"]
    groups: Int[np.ndarray, "r"]
    slots: Int[np.ndarray, "r"]
    row_layers: Int[np.ndarray, "r"]
    rows: Int[np.ndarray, "g t"]
    row_layer_runs: int  # how many layers all its rows go through, counted once per row

    @classmethod
    def of(cls, room: Room, cells: list[int], layers: np.ndarray, first: Int[np.ndarray, "c b"], depth: int) -> "Batch":
        """The batch of these cells, which differ from the known run from slot `first` on."""
        chosen = np.zeros(room.cells, np.int32)
        chosen[: len(cells)] = cells
        of_cells = np.full(room.cells, -1, np.int32)
        of_cells[: len(cells)] = layers[cells]
        starts = np.full((room.cells, room.prompts), room.slots)
        starts[: len(cells)] = first[cells]
        sequence, slot = np.nonzero(np.arange(room.slots) >= starts.reshape(-1, 1))
        groups, slots, row_layers = (np.full(room.rows, fill, np.int32) for fill in (0, 0, -1))
        groups[: len(sequence)], slots[: len(slot)] = sequence, slot
        row_layers[: len(sequence)] = of_cells[sequence // room.prompts]
        rows = np.full((room.cells * room.prompts, room.slots), -1, np.int32)
        rows[sequence, slot] = np.arange(len(sequence))
        runs = int((depth - row_layers[: len(sequence)]).sum())
        return cls(chosen, len(cells), of_cells, groups, slots, row_layers, rows, runs)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _memory() -> int:
    """Bytes that a batch may take: a third of what an accelerator has left, or a gigabyte."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return (stats["bytes_limit"] - stats["bytes_in_use"]) // 3 if "bytes_limit" in stats else 2**30
