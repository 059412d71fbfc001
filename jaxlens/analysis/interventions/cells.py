"""The cells of a sweep: the site of the patched activation, the axes that can be swept, and one cell per index.

Axes: c cell, i index of a cell.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from jaxlens.config import Config
from jaxlens.hooks.names import get_act_name, matching, split_name
from jaxlens.hooks.table import sites


@dataclasses.dataclass(frozen=True, eq=False)
class Cells:
    """The cells of a sweep over one site: the layer of each, and the index that the setter receives."""

    site: str
    layers: Int[np.ndarray, "c"]
    indices: Int[np.ndarray, "c i"]

    @classmethod
    def at(cls, cfg: Config, activation_name: str, indices: np.ndarray) -> "Cells":
        """The cells that patch an activation at these indices, whose first entry is the layer."""
        layers = indices[:, 0]
        if layers.min() < 0 or layers.max() >= cfg.n_layers:
            outside = int(layers.min() if layers.min() < 0 else layers.max())
            raise ValueError(f"there is no layer {outside} to patch; the model has layers 0 to {cfg.n_layers - 1}")
        return cls(site_of(cfg, activation_name)[0], layers, indices)


def site_of(cfg: Config, activation_name: str) -> tuple[str, str]:
    """The site of an activation, by any of its names, and the letters of its axes."""
    table = sites(cfg)
    name = activation_name.removeprefix("blocks.*.")
    if not any(full.endswith(f".{name}") and split_name(full)[0] == name for full in table):
        if split_name(name)[1] is not None:
            raise ValueError(f'"{activation_name}" is in one layer; leave out "blocks.N." to sweep over layers')
        if {name, f"hook_{name}"} & table.keys():
            raise ValueError(f'"{activation_name}" is outside the layers; a sweep patches activations of layers')
        name = split_name(get_act_name(activation_name, 0))[0]
    first = matching(cfg, f"blocks.*.{name}")[0]
    return split_name(first)[0], table[first].axes


def index_axes(cfg: Config, n_positions: int, activation_name: str, names: Sequence[str]) -> dict[str, list[str]]:
    """The axes of a sweep, with a label for every index along each. Layers without the activation are left out."""
    lengths = axis_lengths_of_sweep(cfg, n_positions, activation_name)
    if isinstance(names, str):
        raise ValueError(f'index_axis_names is the string {names!r}; expected a tuple, such as ("layer", "pos")')
    existing = [name for name, length in lengths.items() if length is not None]
    if unknown := [name for name in names if name not in existing]:
        raise ValueError(f"there is no axis {unknown[0]!r} to sweep; the axes are {existing}")
    if not names or names[0] != "layer":
        raise ValueError(f'the first axis of a sweep must be "layer"; got {list(names)}')
    labels = {name: [str(index) for index in range(lengths[name])] for name in names}
    return labels | {"layer": [str(layer) for layer in layers_with(cfg, site_of(cfg, activation_name)[0])]}


def combinations(labels: Mapping[str, Sequence[str]]) -> Int[np.ndarray, "c i"]:
    """The indices of all cells along these axes."""
    return np.array(list(itertools.product(*labels.values())), np.int32)


def layers_with(cfg: Config, site: str) -> list[int]:
    """The layers that have a site."""
    return [split_name(name)[1] for name in matching(cfg, f"blocks.*.{site}")]


def axis_lengths_of_sweep(cfg: Config, n_positions: int, activation_name: str) -> dict[str, int | None]:
    """The length of each axis of a sweep; None for an axis that this model does not have."""
    letters = site_of(cfg, activation_name)[1].split()
    n_heads = cfg.n_key_value_heads if "k" in letters else cfg.n_heads
    n_neurons = {"f": cfg.d_expert, "x": cfg.d_shared_expert}.get(letters[-1], cfg.d_mlp)
    lengths = {"layer": cfg.n_layers, "neuron": n_neurons, "expert": cfg.num_experts}
    lengths |= dict.fromkeys(("pos", "src_pos", "dest_pos"), n_positions)
    return lengths | dict.fromkeys(("head", "head_index"), n_heads)
