"""One table of rules per family, read in both directions: their tensors become our parameters, and back.

A rule names a tensor, the parameter it becomes, and the einops pattern between the two. The pattern's axes are the
letters of `jaxlens.nn.part` (d d_model, n query head, k key/value head, h d_head, m d_mlp, v vocabulary, ...), whose
lengths follow from the Config: so every shape is known, and compared with the checkpoint's headers, before a weight is
read, and turning the arrow round is the export.
"""

import dataclasses
import fnmatch
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import einops
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxlens.config import Config
from jaxlens.convert.reader import Reader
from jaxlens.errors import CheckpointError
from jaxlens.nn.part import sizes
from jaxlens.parameters import Params, parameter_shapes

FLOATS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""The number types a weight may be stored in, by their safetensors names."""


class Tensors(Protocol):
    """The tensors of a checkpoint by their own names: shapes from its headers, values when they are asked for.

    It may have `dtype(name)` too, one of FLOATS or another name of safetensors; without it, all are float32.
    """

    def names(self) -> Iterable[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def read(self, name: str) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one tensor of theirs becomes one parameter of ours, or several where they fuse what we keep apart.

    `{l}` in the names is the layer and `{e}` the expert: tensors that differ in them are stacked on leading axes that
    the pattern does not mention. Without an arrow the pattern says the axes of both sides. A fused tensor has several
    targets: the first axis on our side counts them, or is cut into the axes that `split` names. `layers` are the
    layers that have such a tensor; None: all.

    Example:
        >>> rule = Rule("h.{l}.attn.c_attn.bias", ("attn.b_Q", "attn.b_K", "attn.b_V"), "(three n h) -> three n h")
        >>> lengths = {"n": 2, "h": 2}
        >>> rule.their_shape(lengths)
        (12,)
        >>> [part.tolist() for part in rule.load(np.arange(12), lengths)]
        [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]
        >>> rule.export(rule.load(np.arange(12), lengths), lengths).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    """

    theirs: str
    ours: str | tuple[str, ...]
    pattern: str
    split: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @functools.cached_property
    def sides(self) -> tuple[str, str]:
        left, _, right = self.pattern.partition("->")
        return left.strip(), right.strip() or left.strip()

    def their_shape(self, lengths: Mapping[str, int]) -> tuple[int, ...]:
        return _shape(self.sides[0], self._lengths(lengths))

    def our_shapes(self, lengths: Mapping[str, int]) -> list[tuple[int, ...]]:
        """The shape of each target, without its layer and expert axes."""
        whole = _shape(self.sides[1], self._lengths(lengths))
        if len(self.targets) == 1:
            return [whole]
        return [((lengths[letter],) if letter else ()) + whole[1:] for letter in self.split or [""] * whole[0]]

    def load(self, tensor: np.ndarray, lengths: Mapping[str, int]) -> list[np.ndarray]:
        """The part of each target, as views of `tensor` where its layout allows."""
        whole = self._rearrange(tensor, *self.sides, lengths)
        if len(self.targets) == 1:
            return [whole]
        if not self.split:
            return list(whole)
        return np.split(whole, np.cumsum([lengths[letter] for letter in self.split])[:-1])

    def export(self, parts: Sequence[np.ndarray], lengths: Mapping[str, int]) -> np.ndarray:
        """The tensor that `load` took apart."""
        whole, *others = parts
        if others:
            whole = np.concatenate(parts) if self.split else np.stack(parts)
        return self._rearrange(whole, *reversed(self.sides), lengths)

    def _rearrange(self, array: np.ndarray, before: str, after: str, lengths: Mapping[str, int]) -> np.ndarray:
        if before == after:
            return array
        lengths = self._lengths(lengths)
        letters = set(re.findall(r"\w+", before))
        return einops.rearrange(array, f"{before} -> {after}", **{letter: lengths[letter] for letter in letters})

    def _lengths(self, lengths: Mapping[str, int]) -> Mapping[str, int]:
        """The letters' lengths, and that of the axis that counts the targets of a fused tensor."""
        if len(self.targets) == 1:
            return lengths
        joined = sum(lengths[letter] for letter in self.split) if self.split else len(self.targets)
        return {**lengths, self.sides[1].split()[0]: joined}


@dataclasses.dataclass(frozen=True)
class Family:
    """What one file of `families/` declares: how a kind of checkpoint is read, and what in it may be passed over.

    `rules` write their tensor names with the first of `prefixes`; a checkpoint may use another of them instead.
    """

    model_types: tuple[str, ...]
    config: Callable[[Reader], Config]
    rules: Callable[[Config], Iterable[Rule]]
    unused: tuple[str, ...] = ()  # config fields that no forward pass depends on, beyond those of reader.NEUTRAL
    ignored: tuple[str, ...] = ()  # tensors that are not weights, as file name patterns
    copies: tuple[tuple[str, str], ...] = ()  # in a tied model: a tensor that repeats another, and that other
    prefixes: tuple[str, ...] = ("",)
    source: Callable[[dict[str, Any]], dict[str, Any] | None] = dict  # config.json -> the one to export with

    def spelling(self, rules: Iterable[Rule], names: Iterable[str]) -> Callable[[str], str]:
        """How this checkpoint, whose tensors are `names`, spells a name of `rules`."""
        prefix, names = self.prefixes[0], set(names)

        def spell(name: str, other: str) -> str:
            return other + name.removeprefix(prefix) if name.startswith(prefix) else name

        samples = [rule.theirs for rule in rules if rule.theirs.startswith(prefix) and "{" not in rule.theirs]
        fits = [other for other in self.prefixes if any(spell(sample, other) in names for sample in samples)]
        return functools.partial(spell, other=fits[0] if fits else prefix)


@dataclasses.dataclass(frozen=True)
class Move:
    """One tensor of theirs and where it goes: a rule at one layer and one expert."""

    theirs: str
    rule: Rule
    ours: tuple[str, ...]  # parameters
    index: tuple[int, ...]  # on their leading axes


def moves(rules: Iterable[Rule], cfg: Config, spell: Callable[[str], str] = str) -> Iterator[Move]:
    """Every tensor that `rules` name for a model of `cfg`."""
    stacks = zip(cfg.stack_names, cfg.stacks, strict=True)
    places = {layer: (name, row) for name, layers in stacks for row, layer in enumerate(layers)}
    for rule in rules:
        layers = range(cfg.n_layers) if rule.layers is None else [layer for layer in rule.layers if layer in places]
        for layer in layers if "{l}" in rule.theirs else [None]:
            stack, *row = places.get(layer, ("",))
            ours = tuple(name.format(l=stack) for name in rule.targets)
            for expert in range(cfg.num_experts or 0) if "{e}" in rule.theirs else [None]:
                index = (*row, *([] if expert is None else [expert]))
                yield Move(spell(rule.theirs.format(l=layer, e=expert)), rule, ours, index)


# ---- loading --------------------------------------------------------------------------------------------------------


def load_parameters(
    family: Family, cfg: Config, tensors: Tensors, dtype: str = "float32", *, kept: Config | None = None
) -> Params:
    """The parameters of a checkpoint whose config is `cfg`, cast to `dtype`; of its first layers and positions only,
    where `kept` is `cfg` with fewer.

    One stacked parameter at a time is filled layer by layer and handed to JAX, so at most one tensor and one parameter
    are in memory beside what has been loaded.

    Raises:
        CheckpointError: a tensor is missing, unknown, of the wrong shape or no floating-point number, or a tied tensor
            differs from its original; every one of them is named, and nothing was loaded.
    """
    kept, lengths, rules = kept or cfg, sizes(cfg), list(family.rules(cfg))
    spell = family.spelling(rules, tensors.names())
    plan = list(moves(rules, cfg, spell))
    check_tensors(family, cfg, plan, tensors, spell)
    check_filled(plan, _shapes(cfg), lengths)
    params, shapes, plan = {}, _shapes(kept), list(moves(rules, kept, spell))
    with tqdm(total=len(plan), desc="loading", unit=" tensors", disable=None, leave=False) as progress:
        for names, group in _groups(plan, lengths):
            buffers = [_aligned(shapes[name], jnp.dtype(dtype)) for name in names]
            for move in group:
                for buffer, part in zip(buffers, move.rule.load(tensors.read(move.theirs), lengths), strict=True):
                    cut = tuple(slice(length) for length in buffer.shape[len(move.index) :])
                    buffer[move.index] = part[cut]
                progress.update()
            params |= {name: jax.device_put(buffer) for name, buffer in zip(names, buffers, strict=True)}
            del buffers, buffer, part
    return {name: params[name] for name in shapes}


def check_tensors(
    family: Family, cfg: Config, plan: Sequence[Move], tensors: Tensors, spell: Callable[[str], str]
) -> None:
    """Raises a CheckpointError that names every tensor in which a checkpoint differs from what its config announces."""
    lengths, names = sizes(cfg), set(tensors.names())
    wanted = {move.theirs: move.rule for move in plan}
    present = [name for name in wanted if name in names]
    copies = {spell(copy): spell(original) for copy, original in family.copies if cfg.tie_word_embeddings}
    unknown = sorted(
        name
        for name in names - wanted.keys() - copies.keys()
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in family.ignored)
    )
    shapes = {name: (tuple(tensors.shape(name)), wanted[name].their_shape(lengths)) for name in present}
    types = {name: stored_type(tensors, name) for name in present}
    problems = {
        "missing": [name for name in wanted if name not in names],
        "not part of this architecture": unknown,
        "of the wrong shape": [
            f"{name} is {have}, wanted {want} = ({wanted[name].sides[0]})"
            for name, (have, want) in shapes.items()
            if have != want
        ],
        "not of floating-point numbers": [f"{name} is {kind}" for name, kind in types.items() if kind not in FLOATS],
    }
    if any(problems.values()):
        found = [f"{_tensors(len(listed))} {what}: {_some(listed)}" for what, listed in problems.items() if listed]
        raise CheckpointError("the tensors do not fit config.json. " + ". ".join(found))
    for copy, original in copies.items():
        if copy in names and not _same_bits(tensors.read(copy), tensors.read(original)):
            raise CheckpointError(
                f"config.json ties the unembedding to the embedding (tie_word_embeddings), but {copy} differs from "
                f"{original}; set tie_word_embeddings to false to use both, or remove {copy} to use one"
            )


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
        raise CheckpointError(f"the rules of this family do not make up the model: {_some(problems)}")


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


def stored_type(tensors: Tensors, name: str) -> str:
    """The number type a tensor is stored in, by its safetensors name."""
    return getattr(tensors, "dtype", lambda _: "F32")(name)


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a.view(np.uint8), b.view(np.uint8))


def _shapes(cfg: Config) -> dict[str, tuple[int, ...]]:
    return {name: shape.shape for name, shape in parameter_shapes(cfg).items()}


def _shape(side: str, lengths: Mapping[str, int]) -> tuple[int, ...]:
    """(6, 5) for "(n h) d" with n = 3, h = 2, d = 5."""
    axes = re.findall(r"\(([^)]*)\)|(\S+)", side)
    return tuple(math.prod(lengths[letter] for letter in (group or single).split()) for group, single in axes)


def _tensors(count: int) -> str:
    return "1 tensor is" if count == 1 else f"{count} tensors are"


def _some(listed: Sequence[str], most: int = 8) -> str:
    """The first few of a list, and how many more there are."""
    more = f", … and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


# ---- export ---------------------------------------------------------------------------------------------------------


def export_tensors(family: Family, cfg: Config, params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Their tensors, one at a time, from our parameters: bit for bit what `load_parameters` read in the same dtype."""
    lengths, plan = sizes(cfg), list(moves(family.rules(cfg), cfg))
    check_filled(plan, {name: np.shape(value) for name, value in params.items()}, lengths)
    for names, group in _groups(plan, lengths):
        wholes = [np.asarray(params[name]) for name in names]
        for move in group:
            parts = [whole[move.index] for whole in wholes]
            yield move.theirs, np.ascontiguousarray(move.rule.export(parts, lengths))
