"""Checks that the tensors of a checkpoint match its config.json and fill every parameter exactly once."""

import fnmatch
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxlens.checkpoints.rules.rule import FLOATS, Family, Move, Renaming, Tensors, moves, repetitions, stored_dtype
from jaxlens.config import Config
from jaxlens.errors import CheckpointError
from jaxlens.nn.module import axis_lengths
from jaxlens.nn.parameters import parameter_shapes

UNKNOWN_TENSORS = "not part of this architecture"
ROTARY_FREQUENCIES = "*.rotary_emb.inv_freq"
"""Tensors in older checkpoints of many families. config.json contains the same information."""


def checked_moves(family: Family, cfg: Config, tensors: Tensors) -> tuple[list[Move], Renaming]:
    """The results of `all_moves`. Raises a CheckpointError that lists every tensor that does not match `cfg`."""
    plan, rename = all_moves(family, cfg, tensors)
    if problems := find_problems(family, cfg, plan, tensors, rename):
        listed = [f"{_are(len(entries))} {problem}: {shortened(entries)}" for problem, entries in problems.items()]
        raise CheckpointError("the tensors do not match config.json. " + ". ".join(listed))
    check_coverage(plan, expected_shapes(cfg), axis_lengths(cfg))
    for copy, original in _copies(family, cfg, rename).items():
        if copy in tensors.names() and not same_bits(tensors.read(copy), tensors.read(original)):
            problem = "config.json ties the unembedding to the embedding (tie_word_embeddings)"
            remedy = f"set tie_word_embeddings to false to use both, or remove {copy}"
            raise CheckpointError(f"{problem}, but {copy} differs from {original}; {remedy}")
    for name, constant in _constants(family, cfg, rename).items():
        if name in tensors.names() and not _is_close(value := tensors.read(name), constant):
            raise CheckpointError(f"{name} is {value}; expected {constant}, a constant of this architecture")
    for name in getattr(tensors, "optional_zeros", set()) - {move.theirs for move in plan}:
        if not matches(name, family.ignored) and tensors.read(name).any():
            raise CheckpointError(f"{name} is not zero; expected no bias in this layer, according to config.json")
    return plan, rename


def all_moves(family: Family, cfg: Config, tensors: Tensors) -> tuple[list[Move], Renaming]:
    """Every tensor that a checkpoint of `cfg` should contain, and the conversion of names to those of this checkpoint.

    Raises a CheckpointError if the checkpoint has far fewer tensors, because a list of them could exhaust the memory.
    """
    rules, count = list(family.rules(cfg)), len(set(tensors.names()))
    expected = sum(math.prod(map(len, repetitions(rule, cfg))) for rule in rules)
    if expected > 100 * (count + 10):
        raise CheckpointError(f"config.json describes a model of {expected:,} tensors; the checkpoint has {count:,}")
    rename = family.spelling(rules, tensors.names())
    return list(moves(rules, cfg, rename)), rename


def find_problems(
    family: Family, cfg: Config, plan: Sequence[Move], tensors: Tensors, rename: Renaming
) -> dict[str, list[str]]:
    """The tensors that do not match `cfg`, grouped by the kind of problem."""
    lengths, names = axis_lengths(cfg), set(tensors.names())
    rules = {move.theirs: move.rule for move in plan}
    present = [name for name in rules if name in names]
    shapes = {name: (tuple(tensors.shape(name)), rules[name].their_shape(lengths)) for name in present}
    dtypes = {name: stored_dtype(tensors, name) for name in present}
    problems = {
        "missing": [name for name in rules if name not in names],
        UNKNOWN_TENSORS: sorted(
            name
            for name in names - rules.keys() - _optional(family, cfg, tensors, rename)
            if not matches(name, (ROTARY_FREQUENCIES, *family.ignored))
        ),
        "of the wrong shape": [
            f"{name} is {shape}, expected {expected} = [{rules[name].sides[0]}]"
            for name, (shape, expected) in shapes.items()
            if shape != expected
        ],
        "not floating point": [f"{name} is {dtype}" for name, dtype in dtypes.items() if dtype not in FLOATS],
    }
    return {problem: entries for problem, entries in problems.items() if entries}


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether the name of a tensor matches any of the glob patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check_coverage(plan: Iterable[Move], shapes: Mapping[str, tuple[int, ...]], lengths: Mapping[str, int]) -> None:
    """Raises a CheckpointError unless a family's rules fill every parameter exactly once, with values of its shape."""
    filled = [
        (name, move.index, shape)
        for move in plan
        for name, shape in zip(move.ours, move.rule.our_shapes(lengths), strict=True)
    ]
    times = Counter((name, index) for name, index, _ in filled)
    n_indices = {name: len(index) for name, index in times}
    expected = {
        (name, index): shape[len(index) :]
        for name, shape in shapes.items()
        for index in np.ndindex(shape[: n_indices.get(name, 0)])
    }
    problems = [
        f"{name}{list(index)} is filled {times[name, index]} times, expected {int((name, index) in expected)}"
        for name, index in {**expected, **times}
        if times[name, index] != ((name, index) in expected)
    ]
    problems += [
        f"{name}{list(index)} gets shape {shape}, expected {expected[name, index]}"
        for name, index, shape in filled
        if shape != expected.get((name, index), shape)
    ]
    if problems:
        raise CheckpointError(f"the rules of this family do not match the model: {shortened(problems)}")


def warn_not_finite(names: Sequence[str]) -> None:
    """Warns about weights that contain NaN or infinity. It is no error, because a diverged model can be studied too."""
    if names:
        warnings.warn(f"weights contain NaN or infinity: {shortened(names)}", stacklevel=4)


def expected_shapes(cfg: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter."""
    return {name: shape.shape for name, shape in parameter_shapes(cfg.replace(dtype="float32")).items()}


def shortened(entries: Sequence[str], length: int = 8) -> str:
    """The first entries of a list, and the number of entries that are left out."""
    more = f", … and {len(entries) - length} more" if len(entries) > length else ""
    return ", ".join(entries[:length]) + more


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays have the same shape and the same bits."""
    return a.shape == b.shape and np.array_equal(a.view(np.uint8), b.view(np.uint8))


def _copies(family: Family, cfg: Config, rename: Renaming) -> dict[str, str]:
    """The names of optional tensors that repeat another tensor, and the name of that tensor."""
    return {rename(copy): rename(original) for copy, original in family.copies if cfg.tie_word_embeddings}


def _constants(family: Family, cfg: Config, rename: Renaming) -> dict[str, float]:
    """The names of optional scalar tensors, and the value that the architecture gives them."""
    return {rename(name): value for name, value in family.constants(cfg).items()}


def _optional(family: Family, cfg: Config, tensors: Tensors, rename: Renaming) -> set[str]:
    """The names of tensors that a checkpoint may contain although no parameter needs them."""
    zeros = getattr(tensors, "optional_zeros", set())
    return {*_copies(family, cfg, rename), *_constants(family, cfg, rename), *zeros}


def _is_close(tensor: np.ndarray, constant: float) -> bool:
    """Whether a tensor is a scalar equal to `constant`, within the precision of 16-bit dtypes."""
    return tensor.shape == () and math.isclose(float(tensor), constant, rel_tol=0.05)


def _are(count: int) -> str:
    return "1 tensor is" if count == 1 else f"{count} tensors are"
