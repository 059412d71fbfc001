"""The parameters of a checkpoint: all of them in memory, or each read when it is asked for."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxlens.config import Config
from jaxlens.convert.checking import checked_moves, is_finite, shapes, warn_of
from jaxlens.convert.rules import Family, Move, Tensors, moves
from jaxlens.nn.part import sizes
from jaxlens.parameters import Params


def load_parameters(
    family: Family, cfg: Config, tensors: Tensors, dtype: str = "float32", *, kept: Config | None = None
) -> Params:
    """The parameters of a checkpoint whose config is `cfg`, cast to `dtype`; of its first layers and positions only,
    where `kept` is `cfg` with fewer.

    One stacked parameter at a time is filled layer by layer and handed to JAX, so at most one tensor and one parameter
    are in memory beside what has been loaded. Weights that are NaN or infinite are told of by a warning.

    Raises:
        CheckpointError: a tensor is missing, unknown, of the wrong shape or no floating-point number, or a tied tensor
            differs from its original; every one of them is named, and nothing was loaded.
    """
    plan, spell = checked_moves(family, cfg, tensors)
    if kept not in (None, cfg):
        plan = list(moves(family.rules(cfg), kept, spell))
    lengths, wanted = sizes(cfg), shapes(kept or cfg)
    params, strange = {}, []
    with tqdm(total=len(plan), desc="loading", unit=" tensors", disable=None, leave=False) as progress:
        for names, group in _groups(plan, lengths):
            buffers = [_aligned(wanted[name], jnp.dtype(dtype)) for name in names]
            for move in group:
                for buffer, part in zip(buffers, move.rule.load(tensors.read(move.theirs), lengths), strict=True):
                    cut = tuple(slice(length) for length in buffer.shape[len(move.index) :])
                    with np.errstate(over="ignore"):  # too large for dtype is infinite, which is told below
                        buffer[move.index] = part[cut]
                progress.update()
            strange += [name for name, buffer in zip(names, buffers, strict=True) if not is_finite(buffer)]
            params |= {name: jax.device_put(buffer) for name, buffer in zip(names, buffers, strict=True)}
            del buffers, buffer, part
    warn_of(strange)
    return {name: params[name] for name in wanted}


def _groups(plan: Sequence[Move], lengths: Mapping[str, int]) -> list[tuple[tuple[str, ...], list[Move]]]:
    """The moves that fill the same parameters, the largest tensors first: while they are read, little else is held."""
    groups: dict[tuple[str, ...], list[Move]] = {}
    for move in plan:
        groups.setdefault(move.ours, []).append(move)
    return sorted(groups.items(), key=lambda group: -math.prod(group[1][0].rule.their_shape(lengths)))


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that JAX's CPU backend takes over as it is: it copies what does not start at a multiple of 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


# ---- read when asked for --------------------------------------------------------------------------------------------


class StoredParameters(Mapping[str, "StoredParameter"]):
    """The parameters of a checkpoint, none of them in memory: `params[name][index]` reads what lies there.

    A tensor stays in memory until another is read, for what is asked for next is often in it too: a fused tensor is
    three parameters, a stack of experts is many tensors of a checkpoint that keeps them apart.

    Raises:
        CheckpointError: as `load_parameters`, when it is made.
    """

    def __init__(self, family: Family, cfg: Config, tensors: Tensors):
        plan, _ = checked_moves(family, cfg, tensors)
        self._tensors, self._lengths, self._shapes, self._dtype = tensors, sizes(cfg), shapes(cfg), jnp.dtype(cfg.dtype)
        self._places = {(name, move.index): (move, at) for move in plan for at, name in enumerate(move.ours)}
        self._last: tuple[str, np.ndarray | None] = ("", None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, name: str) -> "StoredParameter":
        return StoredParameter(self, name, self._shapes[name], self._dtype)

    def read(self, name: str, index: tuple[int, ...]) -> np.ndarray:
        """The parameter at an index of its leading axes, maybe a view, in the number type it is stored in."""
        if (name, index) in self._places:
            move, at = self._places[name, index]
            return move.rule.load(self._tensor(move.theirs), self._lengths)[at]
        if (name, index[:-1]) in self._places:  # all experts are in one tensor, and one is wanted
            return self.read(name, index[:-1])[index[-1]]
        experts = [self.read(name, (*index, expert)) for expert in range(self._shapes[name][len(index)])]
        return np.stack(experts)

    def _tensor(self, name: str) -> np.ndarray:
        if self._last[0] != name:
            self._last = ("", None)  # let go before the next is read
            self._last = (name, self._tensors.read(name))
        return self._last[1]


@dataclasses.dataclass(frozen=True)
class StoredParameter:
    """One of the parameters of a checkpoint. `dtype` is what it is to be cast to, by whoever reads it."""

    owner: StoredParameters
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, index: tuple[int, ...]) -> np.ndarray:
        return self.owner.read(self.name, index)
