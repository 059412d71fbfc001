"""What a checkpoint holds, from its headers alone: nothing is refused that can be listed instead."""

import dataclasses
import math
import os

import numpy as np

from jaxlens.config import DTYPES, Rotary
from jaxlens.convert.checking import all_moves, differences, shapes
from jaxlens.convert.opening import Checkpoint, naming, open_checkpoint


@dataclasses.dataclass(frozen=True)
class Look:
    """A checkpoint, and in what it differs from what can be loaded.

    `problems` are tensors, by what is wrong with them; `checkpoint.unread` are config fields that nothing reads.
    """

    checkpoint: Checkpoint
    problems: dict[str, list[str]]

    @property
    def loads(self) -> bool:
        """Whether nothing speaks against loading it."""
        return not self.problems and not self.checkpoint.unread

    @property
    def parameters(self) -> int:
        """How many numbers the model is made of."""
        return sum(map(math.prod, shapes(self.checkpoint.cfg).values()))

    def memory(self) -> dict[str, int]:
        """The bytes that the weights take in each number type."""
        return {dtype: self.parameters * np.dtype(dtype).itemsize for dtype in DTYPES}

    def attention(self) -> list[tuple[int | None, Rotary | None]]:
        """The window of each layer (None: the whole past) and how it turns queries and keys (None: not)."""
        cfg = self.checkpoint.cfg
        return list(zip(cfg.windows, cfg.rotary or [None] * cfg.n_layers, strict=True))


def look(name_or_path: str | os.PathLike[str], revision: str | None = None) -> Look:
    """Opens a checkpoint of any kind (see `jaxlens.convert.load`) to look at it; no weight is read.

    Raises:
        CheckpointError: the checkpoint cannot be found or opened, or its architecture is unknown.
    """
    checkpoint = open_checkpoint(name_or_path, revision, strict=False)
    family, cfg, tensors = checkpoint.family, checkpoint.cfg, checkpoint.tensors
    with naming(checkpoint.name):
        plan, spell = all_moves(family, cfg, tensors)
    return Look(checkpoint, differences(family, cfg, plan, tensors, spell))
