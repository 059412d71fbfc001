"""One table of rules per family, read in both directions: their tensors become our parameters, and back.

A rule names a tensor, the parameter it becomes, and the einops pattern between the two. The pattern's axes are the
letters of `jaxlens.nn.part` (d d_model, n query head, k key/value head, h d_head, m d_mlp, v vocabulary, ...), whose
lengths follow from the Config: so every shape is known, and compared with the checkpoint's headers, before a weight is
read, and turning the arrow round is the export.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import einops
import numpy as np

from jaxlens.config import Config
from jaxlens.convert.reader import Reader

FLOATS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""The number types a weight may be stored in, by their safetensors names."""


class Tensors(Protocol):
    """The tensors of a checkpoint by their own names: shapes from its headers, values when they are asked for.

    It may have `dtype(name)` too, one of FLOATS or another name of safetensors; without it, all are float32.
    """

    def names(self) -> Iterable[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def read(self, name: str) -> np.ndarray: ...


def stored_type(tensors: Tensors, name: str) -> str:
    """The number type a tensor is stored in, by its safetensors name."""
    return getattr(tensors, "dtype", lambda _: "F32")(name)


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one tensor of theirs becomes one parameter of ours, or several where they fuse what we keep apart.

    `{l}` in the names is the layer, and `{e}` the expert, `{n}` the query head or `{k}` the key head: tensors that
    differ in them are stacked on leading axes that the pattern does not mention. Without an arrow the pattern says the
    axes of both sides. A fused tensor has several targets: the first axis on our side counts them, or is cut into the
    axes that `split` names; `each` rearranges what was cut. `layers` are the layers that have such a tensor; None: all.
    `own` are the lengths of axes that this tensor alone has.

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
    each: str = ""
    layers: tuple[int, ...] | None = None
    own: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @functools.cached_property
    def sides(self) -> tuple[str, str]:
        left, _, right = self.pattern.partition("->")
        return left.strip(), right.strip() or left.strip()

    @property
    def counting(self) -> str:
        """The axis that counts the targets of a fused tensor."""
        return self.sides[1].split()[0]

    def their_shape(self, lengths: Mapping[str, int]) -> tuple[int, ...]:
        return _shape(self.sides[0], self._lengths(lengths))

    def our_shapes(self, lengths: Mapping[str, int]) -> list[tuple[int, ...]]:
        """The shape of each target, without its layer and expert axes."""
        lengths, ours = self._lengths(lengths), self.each.partition("->")[2] or self.sides[1]
        if len(self.targets) == 1:
            return [_shape(ours, lengths)]
        if not self.split:
            return [_shape(ours, lengths)[1:] for _ in self.targets]
        return [_shape(ours, {**lengths, self.counting: lengths[letter]}) for letter in self.split]

    def load(self, tensor: np.ndarray, lengths: Mapping[str, int]) -> list[np.ndarray]:
        """The part of each target, as views of `tensor` where its layout allows."""
        whole, lengths = self._rearrange(tensor, *self.sides, lengths), self._lengths(lengths)
        if len(self.targets) == 1:
            return [whole]
        if not self.split:
            return list(whole)
        parts = np.split(whole, np.cumsum([lengths[letter] for letter in self.split])[:-1])
        return [einops.rearrange(part, self.each) for part in parts] if self.each else parts

    def export(self, parts: Sequence[np.ndarray], lengths: Mapping[str, int]) -> np.ndarray:
        """The tensor that `load` took apart."""
        if self.each:
            cut, ours = self.each.split("->")
            known = {axis: self._lengths(lengths)[axis] for axis in cut.split() if axis != self.counting}
            parts = [einops.rearrange(part, f"{ours} -> {cut}", **known) for part in parts]
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
        lengths = {**lengths, **self.own}
        if len(self.targets) == 1:
            return lengths
        joined = sum(lengths[letter] for letter in self.split) if self.split else len(self.targets)
        return {**lengths, self.counting: joined}


@dataclasses.dataclass(frozen=True)
class Family:
    """What one file of `families/` declares: how a kind of checkpoint is read, and what in it may be passed over.

    `copies` are the tensors of a tied model that repeat another, each with that other. `rules` write their tensor
    names with the first of `prefixes`; a checkpoint may use another of them instead.
    """

    model_types: tuple[str, ...]
    config: Callable[[Reader], Config]
    rules: Callable[[Config], Iterable[Rule]]
    unused: tuple[str, ...] = ()  # config fields that no forward pass depends on, beyond those of reader.NEUTRAL
    ignored: tuple[str, ...] = ()  # tensors that are not weights, as file name patterns
    copies: tuple[tuple[str, str], ...] = (("lm_head.weight", "model.embed_tokens.weight"),)
    constants: Callable[[Config], Mapping[str, float]] = lambda cfg: {}  # tensors of one number, always the same
    prefixes: tuple[str, ...] = ("model.", "")
    context: str = "max_position_embeddings"  # the field that says how long a sequence may be
    reference: str = "eager"  # the attention of transformers that is right, to compare with
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
    """One tensor of theirs and where it goes: a rule at one layer and one expert or head."""

    theirs: str
    rule: Rule
    ours: tuple[str, ...]  # parameters
    index: tuple[int, ...]  # on their leading axes
    layer: int | None


def moves(rules: Iterable[Rule], cfg: Config, spell: Callable[[str], str] = str) -> Iterator[Move]:
    """Every tensor that `rules` name for a model of `cfg`."""
    stacks = zip(cfg.stack_names, cfg.stacks, strict=True)
    places = {layer: (name, row) for name, layers in stacks for row, layer in enumerate(layers)}
    for rule in rules:
        layers, members = repeats(rule, cfg)
        for layer in layers:
            stack, *row = places.get(layer, ("",))
            ours = tuple(name.format(l=stack) for name in rule.targets)
            for member in members:
                index = (*row, *([] if member is None else [member]))
                yield Move(spell(rule.theirs.format(l=layer, **dict.fromkeys("enk", member))), rule, ours, index, layer)


def repeats(rule: Rule, cfg: Config) -> tuple[Sequence[int | None], Sequence[int | None]]:
    """The layers, and the experts or heads, that have a tensor of `rule`; None for one that is of no layer, or of no
    expert or head."""
    layers = range(cfg.n_layers) if rule.layers is None else [layer for layer in rule.layers if layer < cfg.n_layers]
    counts = {"{e}": cfg.num_experts or 0, "{n}": cfg.n_heads, "{k}": cfg.n_key_value_heads}
    members = next((range(count) for letter, count in counts.items() if letter in rule.theirs), (None,))
    return layers if "{l}" in rule.theirs else (None,), members


def _shape(side: str, lengths: Mapping[str, int]) -> tuple[int, ...]:
    """(6, 5) for "(n h) d" with n = 3, h = 2, d = 5."""
    axes = re.findall(r"\(([^)]*)\)|(\S+)", side)
    return tuple(math.prod(lengths[letter] for letter in (group or single).split()) for group, single in axes)
