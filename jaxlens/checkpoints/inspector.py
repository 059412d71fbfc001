"""Inspects a checkpoint without reading its weights. Problems are listed instead of raised."""

import dataclasses
import math
import os

import numpy as np

from jaxlens.checkpoints.open import Checkpoint, open_checkpoint, path_in_errors
from jaxlens.checkpoints.rules.wrappers import WRAPPERS
from jaxlens.checkpoints.validate import all_moves, expected_shapes, find_problems, matches
from jaxlens.config import DTYPES, Rotary


@dataclasses.dataclass(frozen=True)
class Look:
    """An inspected checkpoint.

    `problems` lists the tensors that do not match config.json, grouped by the kind of problem ("missing", ...). They
    prevent loading, and so do the fields of config.json that jaxlens does not read, `checkpoint.unread`.
    """

    checkpoint: Checkpoint
    problems: dict[str, list[str]]

    @property
    def loads(self) -> bool:
        """Whether the checkpoint can be loaded, as far as its headers show."""
        return not self.problems and not self.checkpoint.unread

    @property
    def parameters(self) -> int:
        """The number of parameters of the model, as scalars."""
        return sum(map(math.prod, expected_shapes(self.checkpoint.cfg).values()))

    @property
    def other_parts(self) -> dict[str, int]:
        """The parts of a multimodal model that are not read, and the number of tensors of each."""
        if self.checkpoint.part_of is None:
            return {}
        names = self.checkpoint.tensors.names()
        parts = WRAPPERS[self.checkpoint.part_of].unread_tensors
        return {part: sum(matches(name, patterns) for name in names) for part, patterns in parts.items()}

    def memory(self) -> dict[str, int]:
        """The size of the weights in each dtype, in bytes."""
        return {dtype: self.parameters * np.dtype(dtype).itemsize for dtype in DTYPES}

    def attention(self) -> list[tuple[int | None, Rotary | None]]:
        """The attention window and the rotary embedding of each layer. None: no window, no rotary embedding."""
        cfg = self.checkpoint.cfg
        return list(zip(cfg.windows, cfg.rotary or [None] * cfg.n_layers, strict=True))


def look(
    name_or_path: str | os.PathLike[str], revision: str | None = None, adapter: str | os.PathLike[str] | None = None
) -> Look:
    """Opens a checkpoint of any format (see `jaxlens.checkpoints.load`) and inspects its headers.

    Raises:
        CheckpointError: The checkpoint cannot be found or opened, or its architecture is unknown.
    """
    checkpoint = open_checkpoint(name_or_path, revision, strict=False, adapter=adapter)
    family, cfg, tensors = checkpoint.family, checkpoint.cfg, checkpoint.tensors
    with path_in_errors(checkpoint.name):
        plan, rename = all_moves(family, cfg, tensors)
    return Look(checkpoint, find_problems(family, cfg, plan, tensors, rename))
