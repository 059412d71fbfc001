"""Experts that transformers has stacked in one tensor per layer, under the names of the published checkpoints.

transformers 5 writes them with `save_pretrained(save_original_format=False)`: `mlp.experts.gate_up_proj
[expert, 2 * d_expert, d_model]`, the gate first, and `mlp.experts.down_proj [expert, d_model, d_expert]`.
"""

import re
from collections.abc import Iterable

import numpy as np

from jaxlens.checkpoints.arrays import Rows
from jaxlens.checkpoints.rules.rule import Rule, Tensors, opened, stored_dtype

STACKED = re.compile(r"(?P<layer>(.*\.)?layers\.\d+\.)mlp\.experts\.(?P<part>gate_up_proj|down_proj)")
PARTS = {"W_gate": ("gate_up_proj", 0), "W_in": ("gate_up_proj", 1), "W_out": ("down_proj", None)}
"""The stacked tensor of each parameter of an expert, and the half of its rows."""


def unstacked(tensors: Tensors, rules: Iterable[Rule]) -> Tensors:
    """The tensors with a name per expert, if `rules` need one and the checkpoint has stacked experts."""
    tails = {
        PARTS[rule.targets[0].rpartition(".")[2]]: rule.theirs.partition("layers.{l}.")[2]
        for rule in rules
        if "experts.{e}." in rule.theirs
    }
    found = [match for match in map(STACKED.fullmatch, tensors.names()) if match]
    return UnstackedExperts(tensors, found, tails) if tails and found else tensors


class UnstackedExperts:
    """Tensors in which each expert has its own, a part of a stacked tensor. The last stacked tensor stays in memory."""

    def __init__(self, tensors: Tensors, found: list[re.Match], tails: dict[tuple[str, int | None], str]):
        self._tensors, self._last = tensors, ("", np.empty(0))
        self._experts: dict[str, tuple[str, int, int | None]] = {}  # the stacked tensor, the expert, and the half
        stacked, layers = {match[0] for match in found}, {match["layer"] for match in found}
        for match in found:
            for (part, half), tail in tails.items():
                for expert in range(tensors.shape(match[0])[0] if part == match["part"] else 0):
                    self._experts[match["layer"] + tail.format(e=expert)] = (match[0], expert, half)
        module = next(iter(tails.values())).partition(".experts.")[0]
        self._others: dict[str, str] = {}  # the stored name of each other tensor: the router may have another module
        for name in tensors.names():
            if name not in stacked:
                layer, mlp, rest = name.rpartition("mlp.")
                rest = re.sub("^router[.]", "gate.", rest)  # of Phi 3.5 MoE
                self._others[f"{layer}{module}.{rest}" if mlp and layer in layers else name] = name

    @property
    def optional_zeros(self) -> set[str]:
        return getattr(self._tensors, "optional_zeros", set())

    def names(self) -> list[str]:
        return [*self._others, *self._experts]

    def dtype(self, name: str) -> str:
        return stored_dtype(self._tensors, self._experts[name][0] if name in self._experts else self._others[name])

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._experts:
            return tuple(self._tensors.shape(self._others[name]))
        stacked, _, half = self._experts[name]
        _, *shape = self._tensors.shape(stacked)
        return tuple(shape) if half is None else (shape[0] // 2, *shape[1:])

    def open(self, name: str) -> np.ndarray | Rows:
        """A tensor, perhaps to be computed in parts."""
        return self.read(name) if name in self._experts else opened(self._tensors, self._others[name])

    def read(self, name: str) -> np.ndarray:
        if name not in self._experts:
            return self._tensors.read(self._others[name])
        stacked, expert, half = self._experts[name]
        if self._last[0] != stacked:
            self._last = ("", np.empty(0))  # frees the last tensor before the next one is read
            self._last = (stacked, self._tensors.read(stacked))
        value = self._last[1][expert]
        return value if half is None else np.split(value, 2)[half]
