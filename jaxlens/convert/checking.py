"""Whether a checkpoint is what its config announces: every tensor is used once, every parameter filled once."""

import fnmatch
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from jaxlens.config import Config
from jaxlens.convert.rules import FLOATS, Family, Move, Tensors, moves, repeats, stored_type
from jaxlens.errors import CheckpointError
from jaxlens.nn.part import sizes
from jaxlens.parameters import parameter_shapes

Spelling = Callable[[str], str]
UNMAPPED = "not part of this architecture"
ROTARY_FREQUENCIES = "*.rotary_emb.inv_freq"
"""Tensors that older checkpoints of many families have; config.json says what they would."""


def checked_moves(family: Family, cfg: Config, tensors: Tensors) -> tuple[list[Move], Spelling]:
    """Where every tensor of a checkpoint goes, once they are known to be those of `cfg`; and how it spells their names.

    Raises:
        CheckpointError: it names every tensor in which the checkpoint differs from what its config announces.
    """
    plan, spell = all_moves(family, cfg, tensors)
    if problems := differences(family, cfg, plan, tensors, spell):
        found = [f"{_tensors(len(listed))} {what}: {some(listed)}" for what, listed in problems.items()]
        raise CheckpointError("the tensors do not fit config.json. " + ". ".join(found))
    check_filled(plan, shapes(cfg), sizes(cfg))
    for copy, original in _copies(family, cfg, spell).items():
        if copy in tensors.names() and not _same_bits(tensors.read(copy), tensors.read(original)):
            raise CheckpointError(
                f"config.json ties the unembedding to the embedding (tie_word_embeddings), but {copy} differs from "
                f"{original}; set tie_word_embeddings to false to use both, or remove {copy} to use one"
            )
    for name, value in _constants(family, cfg, spell).items():
        if name in tensors.names() and not _is_near(found := tensors.read(name), value):
            raise CheckpointError(f"{name} is {found}, where {value} is wanted: this architecture has it as a constant")
    return plan, spell


def all_moves(family: Family, cfg: Config, tensors: Tensors) -> tuple[list[Move], Spelling]:
    """Every tensor that a checkpoint of `cfg` should have and where it goes; and how this one spells their names.

    Raises:
        CheckpointError: there are far fewer tensors; listing those that should be there would take time and memory
            that the size of the files does not account for.
    """
    rules, present = list(family.rules(cfg)), len(set(tensors.names()))
    announced = sum(math.prod(map(len, repeats(rule, cfg))) for rule in rules)
    if announced > 100 * (present + 10):
        raise CheckpointError(f"config.json announces {announced:,} tensors, and there are {present:,}")
    spell = family.spelling(rules, tensors.names())
    return list(moves(rules, cfg, spell)), spell


def differences(
    family: Family, cfg: Config, plan: Sequence[Move], tensors: Tensors, spell: Spelling
) -> dict[str, list[str]]:
    """The tensors in which a checkpoint differs from what its config announces, by what is wrong with them."""
    lengths, names = sizes(cfg), set(tensors.names())
    wanted = {move.theirs: move.rule for move in plan}
    present = [name for name in wanted if name in names]
    shapes = {name: (tuple(tensors.shape(name)), wanted[name].their_shape(lengths)) for name in present}
    types = {name: stored_type(tensors, name) for name in present}
    problems = {
        "missing": [name for name in wanted if name not in names],
        UNMAPPED: sorted(
            name
            for name in names - wanted.keys() - {*_copies(family, cfg, spell), *_constants(family, cfg, spell)}
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in (ROTARY_FREQUENCIES, *family.ignored))
        ),
        "of the wrong shape": [
            f"{name} is {have}, wanted {want} = ({wanted[name].sides[0]})"
            for name, (have, want) in shapes.items()
            if have != want
        ],
        "not of floating-point numbers": [f"{name} is {kind}" for name, kind in types.items() if kind not in FLOATS],
    }
    return {what: listed for what, listed in problems.items() if listed}


def check_filled(plan: Iterable[Move], shapes: Mapping[str, tuple[int, ...]], lengths: Mapping[str, int]) -> None:
    """Raises a CheckpointError unless the rules of a family fill every parameter exactly once, with its own shape."""
    parts = [
        (name, move.index, part)
        for move in plan
        for name, part in zip(move.ours, move.rule.our_shapes(lengths), strict=True)
    ]
    times = Counter((name, index) for name, index, _ in parts)
    ranks = {name: len(index) for name, index in times}
    wanted = {
        (name, index): shape[len(index) :]
        for name, shape in shapes.items()
        for index in np.ndindex(shape[: ranks.get(name, 0)])
    }
    problems = [
        f"{name}{list(index)} is filled {times[name, index]} times, wanted {int((name, index) in wanted)}"
        for name, index in {**wanted, **times}
        if times[name, index] != ((name, index) in wanted)
    ]
    problems += [
        f"{name}{list(index)} is given {part}, wanted {wanted[name, index]}"
        for name, index, part in parts
        if part != wanted.get((name, index), part)
    ]
    if problems:
        raise CheckpointError(f"the rules of this family do not make up the model: {some(problems)}")


def is_finite(array: np.ndarray, step: int = 2**18) -> bool:
    """Whether no number is NaN or infinite; a piece at a time, which takes no memory to speak of."""
    flat = array.reshape(-1)
    return all(np.isfinite(flat[start : start + step]).all() for start in range(0, flat.size, step))


def warn_of(strange: Sequence[str]) -> None:
    """Says which weights hold NaN or infinity: a model that diverged may be looked at, but by nobody unawares."""
    if strange:
        warnings.warn(f"there are NaN or infinite numbers in {some(strange)}", stacklevel=4)


def shapes(cfg: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter."""
    return {name: shape.shape for name, shape in parameter_shapes(cfg.replace(dtype="float32")).items()}


def some(listed: Sequence[str], most: int = 8) -> str:
    """The first few of a list, and how many more there are."""
    more = f", … and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def _copies(family: Family, cfg: Config, spell: Spelling) -> dict[str, str]:
    """Tensors that may be there and repeat another, and that other."""
    return {spell(copy): spell(original) for copy, original in family.copies if cfg.tie_word_embeddings}


def _constants(family: Family, cfg: Config, spell: Spelling) -> dict[str, float]:
    """Tensors that may be there and hold one number, which the architecture says."""
    return {spell(name): value for name, value in family.constants(cfg).items()}


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a.view(np.uint8), b.view(np.uint8))


def _is_near(found: np.ndarray, value: float) -> bool:
    """Whether a tensor is one number, up to how few digits a 16-bit number has."""
    return found.shape == () and math.isclose(float(found), value, rel_tol=0.05)


def _tensors(count: int) -> str:
    return "1 tensor is" if count == 1 else f"{count} tensors are"
