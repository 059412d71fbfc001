"""Reads parameters from a checkpoint: all of them into memory, or each on demand."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from tqdm import tqdm

from jaxlens.checkpoints import arrays
from jaxlens.checkpoints.rules.rule import Family, Move, Tensors, moves, opened
from jaxlens.checkpoints.shards import Entry, Shards, hull, slices, within
from jaxlens.checkpoints.validate import checked_moves, expected_shapes, warn_not_finite
from jaxlens.config import Config
from jaxlens.nn.module import axis_lengths
from jaxlens.nn.parameters import Params


def load_parameters(
    family: Family, cfg: Config, tensors: Tensors, dtype: str = "float32", *, kept: Config | None = None,
    shardings: Mapping[str, NamedSharding] | None = None,
) -> Params:  # fmt: skip
    """The parameters of a checkpoint of `cfg`, cast to `dtype`.

    `kept` is `cfg` with fewer layers or positions, to load only its parameters. `checked_moves` checks all tensors
    before the first is read. Parameters are filled layer by layer and handed to JAX, so that at most one tensor and one
    parameter are in memory besides those already loaded. A warning lists weights that contain NaN or infinity.

    With `shardings`, by the names of parameters, each device receives its part of a parameter. A process reads and
    keeps only the parts of its own devices.
    """
    plan, rename = checked_moves(family, cfg, tensors)
    if kept not in (None, cfg):
        plan = list(moves(family.rules(cfg), kept, rename))
    lengths, shapes = axis_lengths(cfg), expected_shapes(kept or cfg)
    params, not_finite = {}, []
    with tqdm(total=len(plan), desc="loading", unit=" tensors", disable=None, leave=False) as progress:
        for names, group in _groups(plan, lengths):
            shards = {name: Shards(shapes[name], jnp.dtype(dtype), (shardings or {}).get(name)) for name in names}
            for move in group:
                entries = [of_name.entries(move.index) for of_name in shards.values()]
                if any(entries):  # another process may hold this layer's or this expert's
                    _fill(entries, move, tensors, lengths)
                progress.update()
            not_finite += [name for name, of_name in shards.items() if not of_name.is_finite()]
            params |= {name: of_name.array() for name, of_name in shards.items()}
            del shards, entries
    warn_not_finite(not_finite)
    return {name: params[name] for name in shapes}


def _fill(targets: Sequence[Sequence[Entry]], move: Move, tensors: Tensors, lengths: Mapping[str, int]) -> None:
    """Fills entries of each parameter of a tensor. Values may become infinite; the caller warns about them."""
    if _fill_from_parts(targets, move, tensors, lengths):
        return
    rule, tensor = move.rule, opened(tensors, move.theirs)
    division = rule.division(int(tensor.transposed), lengths) if isinstance(tensor, arrays.Rows) else None
    if division is None:
        for entries, value in zip(targets, rule.load(arrays.whole(tensor), lengths), strict=True):
            for entry in entries:
                arrays.copy(entry.buffer, value[slices(entry.ranges)])
        return
    (entries,), position, size = targets, division.position, division.size

    def part(rows: slice) -> None:
        start, stop = rows.start // size, rows.stop // size
        value = division.load(tensor.part(rows))
        for entry in entries:
            buffer, chosen = entry.along(position, start, stop)
            arrays.copy_part(buffer, value[chosen])

    arrays.in_parts(part, tensor.shape[0], tensor.step(size))


def _fill_from_parts(
    targets: Sequence[Sequence[Entry]], move: Move, tensors: Tensors, lengths: Mapping[str, int]
) -> bool:
    """`_fill`, if less than the whole tensor is needed and only this can be read. Returns whether this is so."""
    needed, shapes = [hull(entries) for entries in targets], move.rule.our_shapes(lengths)
    is_whole = all(ranges == tuple((0, n) for n in shape) for ranges, shape in zip(needed, shapes, strict=True))
    if is_whole or not hasattr(tensors, "part"):
        return False
    for target, (entries, ranges) in enumerate(zip(targets, needed, strict=True)):
        value = move.rule.load_part(target, ranges, lengths, functools.partial(tensors.part, move.theirs))
        if value is None:
            return False
        for entry in within(entries, ranges):
            arrays.copy(entry.buffer, value[slices(entry.ranges)])
    return True


def _groups(plan: Sequence[Move], lengths: Mapping[str, int]) -> list[tuple[tuple[str, ...], list[Move]]]:
    """The moves grouped by the parameters they fill. The largest tensors come first, while memory is mostly free."""
    groups: dict[tuple[str, ...], list[Move]] = {}
    for move in plan:
        groups.setdefault(move.ours, []).append(move)
    return sorted(groups.items(), key=lambda group: -math.prod(group[1][0].rule.their_shape(lengths)))


# ---- on demand ------------------------------------------------------------------------------------------------------


class StoredParameters(Mapping[str, "StoredParameter"]):
    """The parameters of a checkpoint, not in memory. `params[name][index]` reads an entry from its file.

    The last tensor is kept in memory, because the next read often needs it again: a fused tensor contains several
    parameters, and a tensor with all experts may be read expert by expert.
    """

    def __init__(self, family: Family, cfg: Config, tensors: Tensors):
        plan, _ = checked_moves(family, cfg, tensors)
        self._tensors, self._lengths, self._dtype = tensors, axis_lengths(cfg), jnp.dtype(cfg.dtype)
        self._shapes = expected_shapes(cfg)
        self._moves = {(name, move.index): (move, i) for move in plan for i, name in enumerate(move.ours)}
        self._last: tuple[str, np.ndarray | None] = ("", None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, name: str) -> "StoredParameter":
        return StoredParameter(self, name, self._shapes[name], self._dtype)

    def read(self, name: str, index: tuple[int, ...]) -> np.ndarray:
        """The entry of a parameter at `index` of its leading axes, in its stored dtype. The result may be a view."""
        if (name, index) in self._moves:
            move, i = self._moves[name, index]
            return move.rule.load(self._tensor(move.theirs), self._lengths)[i]
        if (name, index[:-1]) in self._moves:  # one tensor contains all experts
            return self.read(name, index[:-1])[index[-1]]
        return np.stack([self.read(name, (*index, expert)) for expert in range(self._shapes[name][len(index)])])

    def _tensor(self, name: str) -> np.ndarray:
        if self._last[0] != name:
            self._last = ("", None)  # frees the last tensor before the next one is read
            self._last = (name, self._tensors.read(name))
        return self._last[1]


@dataclasses.dataclass(frozen=True)
class StoredParameter:
    """A parameter that is read on demand. Entries have the stored dtype; the caller casts them to `dtype`."""

    owner: StoredParameters
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, index: tuple[int, ...]) -> np.ndarray:
        return self.owner.read(self.name, index)
