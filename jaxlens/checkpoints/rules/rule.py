"""Rules that map the tensors of a checkpoint to parameters. Each rule works in both directions: loading and export.

A rule contains the name of a tensor, the name of the parameter that it becomes, and an einops pattern from the tensor
to the parameter. The axes of a pattern are the letters of `jaxlens.nn.module` (d d_model, n query head, k key/value
head, h d_head, m d_mlp, v vocabulary, ...). Their lengths follow from the Config, so all shapes are checked against the
headers of the checkpoint before any weight is read. An export applies the pattern from right to left.

In names, `theirs` refers to the checkpoint and `ours` to jaxlens.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import einops
import numpy as np

from jaxlens.checkpoints.arrays import Rows
from jaxlens.checkpoints.rules.hf_config import Reader
from jaxlens.config import Config

FLOATS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""The dtypes in which a weight may be stored: the name in safetensors, and the name in NumPy."""

GROUPS = r"\(([^)]*)\)|(\S+)"
"""An axis of a side of a pattern: several letters in parentheses, or one."""

Renaming = Callable[[str], str]
"""Converts the name of a tensor in a rule to its name in a checkpoint, which may have another prefix."""


class Tensors(Protocol):
    """The tensors of a checkpoint. Names and shapes come from its headers; `read` loads one tensor.

    The optional method `dtype(name)` returns the dtype as safetensors spells it. Without it, all tensors are float32.
    The optional method `open(name)` may return Rows, to compute the tensor in parts. The optional method
    `by_rows(name)` returns Rows also for a tensor that is only read, for callers that change the rows.
    The optional method `part(name, shape, index)` reads only a part of the tensor, reshaped to `shape`.
    The optional attribute `optional_zeros` has the names of tensors that a model may do without if they are zero.
    """

    def names(self) -> Iterable[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def read(self, name: str) -> np.ndarray: ...


def stored_dtype(tensors: Tensors, name: str) -> str:
    """The dtype of a stored tensor, as safetensors spells it."""
    return getattr(tensors, "dtype", lambda _: "F32")(name)


def opened(tensors: Tensors, name: str) -> np.ndarray | Rows:
    """A stored tensor, perhaps to be computed in parts."""
    return getattr(tensors, "open", tensors.read)(name)


def by_rows(tensors: Tensors, name: str) -> np.ndarray | Rows:
    """A stored tensor, perhaps to be read or computed a few rows at a time."""
    return getattr(tensors, "by_rows", functools.partial(opened, tensors))(name)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Maps one tensor of a checkpoint to one parameter, or a fused tensor to several parameters.

    `{l}` in a name stands for the layer. In `theirs`, `{e}` stands for the expert, `{n}` for the query head and `{k}`
    for the key/value head. Tensors that differ in these indices are stacked on leading axes, which the pattern omits.

    A fused tensor is divided along the first axis on the right side of the pattern. By default that axis has one entry
    per parameter. With `split`, it is the concatenation of the axes in `split`, one per parameter. The optional pattern
    `each` then rearranges every parameter.

    Example:
        >>> rule = Rule("h.{l}.attn.c_attn.bias", ("attn.b_Q", "attn.b_K", "attn.b_V"), "(three n h) -> three n h")
        >>> lengths = {"n": 2, "h": 2}
        >>> rule.their_shape(lengths)
        (12,)
        >>> [value.tolist() for value in rule.load(np.arange(12), lengths)]
        [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]
        >>> rule.export(rule.load(np.arange(12), lengths), lengths).tolist()
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    """

    theirs: str  # the tensor
    ours: str | tuple[str, ...]  # the parameter or parameters
    pattern: str  # "axes of the tensor -> axes of the parameter"; without an arrow, both have the same axes
    split: tuple[str, ...] = ()
    each: str = ""
    layers: tuple[int, ...] | None = None  # the layers that have such a tensor; None: all layers
    own: Mapping[str, int] = dataclasses.field(default_factory=dict)  # lengths of axes that no other tensor has

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @functools.cached_property
    def sides(self) -> tuple[str, str]:
        left, _, right = self.pattern.partition("->")
        return left.strip(), right.strip() or left.strip()

    @property
    def fused_axis(self) -> str:
        """The axis along which a fused tensor is divided."""
        return self.sides[1].split()[0]

    def their_shape(self, lengths: Mapping[str, int]) -> tuple[int, ...]:
        return _shape(self.sides[0], self._lengths(lengths))

    def our_shapes(self, lengths: Mapping[str, int]) -> list[tuple[int, ...]]:
        """The shape of each parameter, without its layer and expert axes."""
        lengths, ours = self._lengths(lengths), self.each.partition("->")[2] or self.sides[1]
        if len(self.targets) == 1:
            return [_shape(ours, lengths)]
        if not self.split:
            return [_shape(ours, lengths)[1:] for _ in self.targets]
        return [_shape(ours, {**lengths, self.fused_axis: lengths[letter]}) for letter in self.split]

    def load(self, tensor: np.ndarray, lengths: Mapping[str, int]) -> list[np.ndarray]:
        """The value of each parameter, as a view of `tensor` if its layout allows that."""
        whole, lengths = self._rearrange(tensor, *self.sides, lengths), self._lengths(lengths)
        if len(self.targets) == 1:
            return [whole]
        if not self.split:
            return list(whole)
        values = np.split(whole, np.cumsum([lengths[letter] for letter in self.split])[:-1])
        return [einops.rearrange(value, self.each) for value in values] if self.each else values

    def load_part(
        self, target: int, ranges: Sequence[tuple[int, int]], lengths: Mapping[str, int],
        read: Callable[[tuple[int, ...], tuple[slice, ...]], np.ndarray],
    ) -> np.ndarray | None:  # fmt: skip
        """Some entries of the parameter number `target`: along each of its axes, those from a first to before a last.

        `read(shape, index)` reads a part of the tensor, reshaped to one axis per letter. None if a part of the
        parameter is no such part of the tensor.

        Example:
            >>> rule, tensor = Rule("q.weight", "W_Q", "(n h) d -> n d h"), np.arange(12)
            >>> part = rule.load_part(0, [(1, 2), (0, 3), (0, 2)], {"n": 2, "h": 2, "d": 3},
            ...                       lambda shape, index: tensor.reshape(shape)[index])
            >>> part.tolist()
            [[[6, 9], [7, 10], [8, 11]]]
        """
        left, right = self.sides
        if self.each or "(" in right:
            return None
        lengths = self._lengths(lengths)
        before = sum(lengths[letter] for letter in self.split[:target])
        stacked = len(self.targets) > 1 and not self.split
        ranges = [(target, target + 1), *ranges] if stacked else list(ranges)
        if self.split:
            ranges[0] = (ranges[0][0] + before, ranges[0][1] + before)
        chosen = dict(zip(right.split(), ranges, strict=True))
        letters = re.findall(r"\w+", left)
        part = read(tuple(lengths[letter] for letter in letters), tuple(slice(*chosen[letter]) for letter in letters))
        value = einops.rearrange(part, f"{' '.join(letters)} -> {right}")
        return value[0] if stacked else value

    def division(self, axis: int, lengths: Mapping[str, int]) -> "Division | None":
        """How to divide the tensor along an axis of two: by the entries of an axis of the parameter.

        None if the tensor cannot be divided so.

        Example:
            >>> Rule("q.weight", "W_Q", "(n h) d -> n d h").division(0, {"n": 2, "h": 3, "d": 5})
            Division(position=0, size=3, split=(-1, 3, 5), order=(0, 2, 1))
        """
        left, right = self.sides
        groups = [(group or single).split() for group, single in re.findall(GROUPS, left)]
        letters, axes, lengths = [letter for group in groups for letter in group], right.split(), self._lengths(lengths)
        if len(self.targets) > 1 or len(groups) != 2 or sorted(letters) != sorted(axes):
            return None
        divided, *inner = groups[axis]
        split = tuple(-1 if letter == divided else lengths[letter] for letter in letters)
        size = math.prod(lengths[letter] for letter in inner)
        return Division(axes.index(divided), size, split, tuple(map(letters.index, axes)))

    def export(self, values: Sequence[np.ndarray], lengths: Mapping[str, int]) -> np.ndarray:
        """The tensor from which `load` returns `values`."""
        if self.each:
            before, after = self.each.split("->")
            sizes = {axis: self._lengths(lengths)[axis] for axis in before.split() if axis != self.fused_axis}
            values = [einops.rearrange(value, f"{after} -> {before}", **sizes) for value in values]
        whole = values[0]
        if len(values) > 1:
            whole = np.concatenate(values) if self.split else np.stack(values)
        return self._rearrange(whole, *reversed(self.sides), lengths)

    def _rearrange(self, array: np.ndarray, before: str, after: str, lengths: Mapping[str, int]) -> np.ndarray:
        if before == after:
            return array
        lengths = self._lengths(lengths)
        letters = set(re.findall(r"\w+", before))
        return einops.rearrange(array, f"{before} -> {after}", **{letter: lengths[letter] for letter in letters})

    def _lengths(self, lengths: Mapping[str, int]) -> Mapping[str, int]:
        """The lengths of all axes of the pattern, including `fused_axis`."""
        lengths = {**lengths, **self.own}
        if len(self.targets) == 1:
            return lengths
        fused = sum(lengths[letter] for letter in self.split) if self.split else len(self.targets)
        return {**lengths, self.fused_axis: fused}


@dataclasses.dataclass(frozen=True)
class Division:
    """How a part of a tensor becomes a part of its parameter: some entries of one axis of the parameter.

    `position` is that of the axis, and `size` is how many rows or columns of the tensor one entry has. The part is
    reshaped to `split` and transposed to `order`.
    """

    position: int
    size: int
    split: tuple[int, ...]
    order: tuple[int, ...]

    def load(self, part: np.ndarray) -> np.ndarray:
        """A part of the parameter, as a view of `part` if its layout allows that."""
        return part.reshape(self.split).transpose(self.order)


@dataclasses.dataclass(frozen=True)
class Family:
    """How the checkpoints of an architecture are read. Every file in `families/` defines one family.

    In rules, tensor names have the first of `prefixes`. A checkpoint may use any of them, and an export uses `written`.
    `renamed` are pairs of a name's beginning in rules and another one that checkpoints use. `copies` lists the tensors
    that a model with tied embeddings may contain, each with the tensor that it repeats.
    """

    model_types: tuple[str, ...]
    config: Callable[[Reader], Config]
    rules: Callable[[Config], Iterable[Rule]]
    unused: tuple[str, ...] = ()  # config.json fields without effect on a forward pass, beyond IGNORED_FIELDS
    ignored: tuple[str, ...] = ()  # tensors that are not weights, as glob patterns
    copies: tuple[tuple[str, str], ...] = (("lm_head.weight", "model.embed_tokens.weight"),)
    constants: Callable[[Config], Mapping[str, float]] = lambda cfg: {}  # scalar tensors with fixed values
    prefixes: tuple[str, ...] = ("model.", "")
    written: str | None = None  # the prefix in exports; None: the first of prefixes
    renamed: tuple[tuple[str, str], ...] = ()
    layouts: tuple[tuple[str, str | None], ...] = ()  # of multimodal checkpoints, see `LAYOUTS` in wrappers.py
    input_first: tuple[str, ...] = ()  # linear weights stored as [in, out] unless quantized, as glob patterns
    context: str = "max_position_embeddings"  # the config.json field of the context length
    reference: str = "eager"  # the attention implementation of transformers to compare with
    source: Callable[[dict[str, Any]], dict[str, Any] | None] = dict  # config.json -> config.json of an export

    def spelling(self, rules: Iterable[Rule], names: Iterable[str]) -> Renaming:
        """Converts tensor names in `rules` to those of a checkpoint whose tensors are called `names`."""
        default, names = self.prefixes[0], set(names)
        if self.layouts:
            return self._in_layout(rules, names)
        written = [rule.theirs for rule in rules if "{" not in rule.theirs]
        samples = [name for name in written if name.startswith(default)]
        prefixes = [p for p in self.prefixes if any(p + name.removeprefix(default) in names for name in samples)]
        others = self._others(written, names)
        return self._renaming([*others, (default, prefixes[0] if prefixes else default)])

    def _others(self, written: Iterable[str], names: set[str], before: str = "") -> list[tuple[str, str]]:
        """The pairs of `renamed` that a checkpoint uses, after the prefix `before`."""
        return [
            (ours, theirs)
            for ours, theirs in self.renamed
            if any(name.startswith(ours) and before + theirs + name.removeprefix(ours) in names for name in written)
        ]

    def _in_layout(self, rules: Iterable[Rule], names: set[str]) -> Renaming:
        """`spelling` for a language model within a multimodal checkpoint."""
        default = self.prefixes[0]

        def rename(name: str, before: str, prefix: str | None) -> str:
            if prefix is None or not name.startswith(default):
                return before + name
            return before + prefix + name.removeprefix(default)

        written = [rule.theirs for rule in rules if "{" not in rule.theirs]
        samples = [name for name in written if name.startswith(default)]
        matching = (layout for layout in self.layouts if any(rename(sample, *layout) in names for sample in samples))
        before, prefix = next(matching, self.layouts[0])
        as_written = self._renaming(self._others(written, names, before))
        return lambda name: rename(as_written(name), before, prefix)

    def exported(self) -> Renaming:
        """Converts tensor names in `rules` to those of an export."""
        return self._renaming([(self.prefixes[0], self.prefixes[0] if self.written is None else self.written)])

    @staticmethod
    def _renaming(pairs: Sequence[tuple[str, str]]) -> Renaming:
        def rename(name: str) -> str:
            before, after = next((pair for pair in pairs if name.startswith(pair[0])), ("", ""))
            return after + name.removeprefix(before)

        return rename


@dataclasses.dataclass(frozen=True)
class Move:
    """A rule for one layer and one expert or head: one tensor, and the entries of the parameters that it fills."""

    theirs: str
    rule: Rule
    ours: tuple[str, ...]
    index: tuple[int, ...]  # of the leading axes of the parameters
    layer: int | None


def moves(rules: Iterable[Rule], cfg: Config, rename: Renaming = str) -> Iterator[Move]:
    """Every tensor of a checkpoint of `cfg`, with the parameters that it fills."""
    stacks = zip(cfg.stack_names, cfg.stacks, strict=True)
    rows = {layer: (name, row) for name, layers in stacks for row, layer in enumerate(layers)}
    for rule in rules:
        layers, members = repetitions(rule, cfg)
        for layer in layers:
            stack, *row = rows.get(layer, ("",))
            ours = tuple(name.format(l=stack) for name in rule.targets)
            for member in members:
                index = (*row, *([] if member is None else [member]))
                theirs = rename(rule.theirs.format(l=layer, **dict.fromkeys("enk", member)))
                yield Move(theirs, rule, ours, index, layer)


def repetitions(rule: Rule, cfg: Config) -> tuple[Sequence[int | None], Sequence[int | None]]:
    """The layers, and the experts or heads, that have a tensor of `rule`.

    Each is `(None,)` if the name of the tensor contains no such index.
    """
    layers = range(cfg.n_layers) if rule.layers is None else [layer for layer in rule.layers if layer < cfg.n_layers]
    counts = {"{e}": cfg.num_experts or 0, "{n}": cfg.n_heads, "{k}": cfg.n_key_value_heads}
    members = next((range(count) for letter, count in counts.items() if letter in rule.theirs), (None,))
    return layers if "{l}" in rule.theirs else (None,), members


def _shape(side: str, lengths: Mapping[str, int]) -> tuple[int, ...]:
    """(6, 5) for "(n h) d" with n = 3, h = 2, d = 5."""
    axes = re.findall(GROUPS, side)
    return tuple(math.prod(lengths[letter] for letter in (group or single).split()) for group, single in axes)
