"""Models on many devices: which mesh axis divides each axis of the parameters.

A `Sharding` is a mesh and a table of rules, from the axis letters of parameters (`jaxlens.nn.module`) to mesh axes. The
letter b stands for the batch. A mesh axis divides at most one axis of a parameter: that of the first rule whose letter
the parameter has, with a length that is a multiple of the number of devices. A parameter without such an axis is
replicated.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlens._jax import as_device, is_traced
from jaxlens.config import Config
from jaxlens.nn.module import axis_lengths
from jaxlens.nn.parameters import Params, parameter_axes, parameter_shapes
from jaxlens.weights.processing import Processing

Rules = Mapping[str, str | None]
"""The mesh axis of each axis letter, in the order of priority. A letter without one is not divided."""

DEFAULT_RULES: Rules = {"b": "data", **dict.fromkeys("nkmfxevo", "model")}
"""Tensor parallelism: heads (n, k), neurons (m; f and x of experts), experts (e) and vocabulary (v, o) are divided.

The neurons of experts come before the experts. Each device then has a part of the experts that a token chooses, so all
work equally, and no expert is moved.
"""


def default_mesh(n_data: int = 1, n_model: int | None = None, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh [data, model] of `devices`, by default of all devices of all processes. Its axes are Auto.

    Without `n_model`, the axis "model" has the devices that the axis "data" leaves.

    Raises:
        ValueError: `n_data` times `n_model` is not the number of devices.

    Example:
        >>> dict(default_mesh(1, 1, devices=jax.devices()[:1]).shape)
        {'data': 1, 'model': 1}
    """
    devices = jax.devices() if devices is None else devices
    n_model = max(1, len(devices) // max(1, n_data)) if n_model is None else n_model
    if n_data < 1 or n_model < 1 or n_data * n_model != len(devices):
        asked = f"{n_data} × {n_model} (data × model) are {n_data * n_model} devices"
        raise ValueError(f"{asked}, but there are {len(devices)}; choose another product, or pass devices=")
    return Mesh(np.array(devices).reshape(n_data, n_model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def parameter_shardings(cfg: Config, mesh: Mesh, rules: Rules | None = None) -> dict[str, NamedSharding]:
    """The sharding of every parameter of a model. `rules` replace `DEFAULT_RULES`.

    Raises:
        ValueError: A rule has a letter that no parameter has, or a mesh axis that `mesh` does not have.

    Example:
        >>> cfg = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8)
        >>> shardings = parameter_shardings(cfg, default_mesh(devices=jax.devices()[:1]))
        >>> tuple(shardings["blocks.*.attn.W_Q"].spec)
        (None, 'model')
    """
    return Sharding.of(mesh, rules).parameters(cfg)


def shard(model: Any, mesh: Mesh, rules: Rules | None = None) -> Any:
    """A copy of a HookedTransformer with its weights on a mesh. `rules` replace `DEFAULT_RULES`.

    `model.processing` of the copy lists the parameters that are replicated, and why. To load a checkpoint that one
    device cannot hold, use `HookedTransformer.from_pretrained(name, mesh=mesh)`.

    Raises:
        ValueError: The errors of `parameter_shardings`.

    Example:
        >>> from jaxlens import HookedTransformer
        >>> model = HookedTransformer(Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> shard(model, default_mesh(devices=jax.devices()[:1]))([[1, 2, 3]]).shape
        (1, 3, 10)
    """
    twin = model.with_params(model.params)
    twin.set_sharding(Sharding.of(mesh, rules))
    return twin


def sharding_of(mesh: Mesh | None, rules: Rules | None, device: Any, n_devices: int) -> "Sharding | None":
    """The sharding that the arguments of a call ask for. `n_devices` is TransformerLens's: devices like `device`.

    Raises:
        ValueError: Two arguments say where the weights belong, or there are not so many devices.
    """
    if mesh is not None:
        others = {"device": (device, None), "n_devices": (n_devices, 1)}
        if given := [name for name, (value, default) in others.items() if value != default]:
            raise ValueError(f"mesh and {given[0]} are given; pass only the mesh, which says where the weights belong")
        return Sharding.of(mesh, rules)
    if n_devices == 1:
        if rules is not None:
            raise ValueError("rules are given without a mesh; pass mesh=jaxlens.sharding.default_mesh()")
        return None
    first = jax.devices()[0] if device is None else as_device(device)
    if not isinstance(first, jax.Device):
        raise ValueError(f'n_devices={n_devices!r} and device={device!r}; expected a kind of device, such as "cuda"')
    same = [other for other in jax.devices(first.platform) if other.id >= first.id]
    if not 1 <= n_devices <= len(same):
        raise ValueError(f"n_devices is {n_devices}; there are {len(same)} devices from {first} on")
    return Sharding.of(default_mesh(1, n_devices, devices=same[:n_devices]), rules)


@dataclasses.dataclass(frozen=True)
class Sharding:
    """A mesh, and the mesh axis that divides each axis letter. `model.sharding` is that of a model."""

    mesh: Mesh
    rules: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, mesh: Mesh, rules: Rules | None = None) -> "Sharding":
        """The sharding, with `DEFAULT_RULES` if there are no rules. Raises the errors of `parameter_shardings`."""
        if not isinstance(mesh, Mesh):
            raise ValueError(f"mesh is {mesh!r}; expected a jax.sharding.Mesh, such as jaxlens.sharding.default_mesh()")
        if not (rules is None or isinstance(rules, Mapping)):
            raise ValueError(f"rules are {rules!r}; expected a dict from letters to mesh axes, like DEFAULT_RULES")
        rules = {letter: axis for letter, axis in (DEFAULT_RULES if rules is None else rules).items() if axis}
        known = axis_lengths(Config(n_layers=1, d_model=1, n_heads=1, d_head=1, d_vocab=1, n_ctx=1)).keys() - {"one"}
        for letter, axis in rules.items():
            if letter == "l":
                raise ValueError("rules divide l, the layers, which run one after another; divide another letter")
            if letter not in {"b", *known}:
                letters = ", ".join(sorted({"b", *known} - {"l"}))
                raise ValueError(f"rules have the letter {letter!r}; expected one of {letters} (jaxlens.nn.module)")
            if axis not in mesh.axis_names:
                has = f"but the mesh has the axes {', '.join(map(repr, mesh.axis_names))}"
                raise ValueError(f"rules divide {letter} over {axis!r}, {has}; pass rules= with these, or another mesh")
        return cls(mesh, tuple(rules.items()))

    def parameters(self, cfg: Config) -> dict[str, NamedSharding]:
        """The sharding of every parameter, by name."""
        return {name: self._on_mesh(letters) for name, letters in self._divided(cfg).items()}

    def place(self, params: Mapping[str, jax.Array], cfg: Config) -> Params:
        """Parameters, of any names of the model, on the devices of the mesh. Traced ones are unchanged."""
        shardings = self.parameters(cfg)
        return {name: array if is_traced(array) else _placed(array, shardings[name]) for name, array in params.items()}

    def place_batch(self, array: Any) -> Any:
        """An array [b ...] that is not yet on the devices of a mesh, divided by its rows if their number allows it.

        Every process passes the whole array. An array that the caller has placed, or that is traced, is unchanged.
        """
        if array is None or is_traced(array) or (isinstance(array, jax.Array) and array.committed):
            return array
        values, axis = np.asarray(array), dict(self.rules).get("b")
        divides = axis is not None and len(values) % self.mesh.shape[axis] == 0
        mesh, active = self.mesh, jax.sharding.get_abstract_mesh()
        if active.axis_names == mesh.axis_names:
            mesh = mesh.update(axis_types=active.axis_types)  # within a run, its axes are Auto
        return _from_host(values, NamedSharding(mesh, PartitionSpec(axis if divides else None)))

    def report(self, cfg: Config) -> Processing:
        """An entry for `model.processing`: the mesh, and which weights are replicated, and why."""
        rules, lengths = dict(self.rules), axis_lengths(cfg)
        reasons: dict[str, list[str]] = {}
        for (name, divided), letters in zip(self._divided(cfg).items(), parameter_axes(cfg).values(), strict=True):
            wanted = [letter for letter in letters.split() if letter in rules]
            for axis in dict.fromkeys(rules[letter] for letter in wanted):
                if axis not in divided and self.mesh.shape[axis] > 1:
                    sizes = " and ".join(f"{letter} = {lengths[letter]}" for letter in wanted if rules[letter] == axis)
                    reason = f"{sizes} is not a multiple of the {self.mesh.shape[axis]} devices of {axis!r}"
                    reasons.setdefault(reason, []).append(name)
            if not wanted and len(letters.removeprefix("l ").split()) > 1:
                reasons.setdefault(f"there is no rule for {letters.removeprefix('l ')}", []).append(name)
        mesh = " × ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items())
        notes = [f"{', '.join(names)} replicated, because {reason}" for reason, names in reasons.items()]
        if gathered := self._experts_apart(cfg):
            notes.append(f"{', '.join(gathered)} divided along e, so a run that reads single experts gathers them")
        return Processing("sharding", True, "; ".join((mesh, *notes)))

    def _experts_apart(self, cfg: Config) -> list[str]:
        """The weights of experts of which each device has some experts, and not a part of every expert."""
        divided, apart = self._divided(cfg), []
        for name, letters in parameter_axes(cfg).items():
            axes = dict(zip(letters.split(), divided[name], strict=True))
            if "f" in axes and (axis := axes.get("e")) is not None and self.mesh.shape[axis] > 1:
                apart.append(name)
        return apart

    def _divided(self, cfg: Config) -> dict[str, list[str | None]]:
        """The mesh axis that divides each axis of each parameter."""
        shapes = parameter_shapes(cfg)
        return {name: self._axes(letters, shapes[name].shape) for name, letters in parameter_axes(cfg).items()}

    def _axes(self, letters: str, shape: tuple[int, ...]) -> list[str | None]:
        letters, axes = letters.split(), [None] * len(shape)
        for letter, axis in self.rules:
            if letter in letters and axis not in axes and shape[letters.index(letter)] % self.mesh.shape[axis] == 0:
                axes[letters.index(letter)] = axis
        return axes

    def _on_mesh(self, axes: list[str | None]) -> NamedSharding:
        n_trailing = len([*itertools.takewhile(lambda axis: axis is None, reversed(axes))])
        return NamedSharding(self.mesh, PartitionSpec(*axes[: len(axes) - n_trailing]))

    def __deepcopy__(self, memo: Any) -> "Sharding":
        return self  # devices cannot be copied

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a pickle has no devices: its weights are loaded to the default device


def _placed(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    ours = array.sharding
    if isinstance(ours, NamedSharding) and ours.mesh == sharding.mesh and ours.is_equivalent_to(sharding, array.ndim):
        return array
    if array.is_fully_addressable and not sharding.is_fully_addressable:
        return _from_host(np.asarray(array), sharding)
    return jax.device_put(array, sharding)


def _from_host(values: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array that every process has, on the devices of all processes. Each device gets only its part."""
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
