"""The activations of one run, by name.

What all layers have in common is kept stacked, as the compiled loop made it: `cache["blocks.*.attn.hook_z"]` is that
array [layer, ...], and `cache["blocks.3.attn.hook_z"]` its fourth row, taken when asked for.
"""

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.analysis.components import layer_count
from jaxlens.analysis.decomposition import Decomposition
from jaxlens.analysis.terms import write_heads
from jaxlens.devices import as_device
from jaxlens.engine import Caught
from jaxlens.errors import ActivationNotFound
from jaxlens.hook_table import ALIASES, sites, split_name
from jaxlens.names import get_act_name
from jaxlens.slices import Slice


@jax.tree_util.register_pytree_node_class
class ActivationCache(Decomposition, Mapping):
    """A mapping from names of activations to their values.

    Keys may be full names, short ones, or tuples of short name, layer and sublayer:
    `cache["blocks.5.hook_resid_post"]`, `cache["resid_post", 5]`, `cache["scale", 3, "ln1"]`, `cache["k6"]`; negative
    layers count from the end. It is a pytree, so a jitted function may return it.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> _, cache = model.run_with_cache([[1, 2, 3]])
        >>> cache["resid_post", -1].shape, cache["q1"].shape, cache.stack_activation("z").shape
        ((1, 3, 8), (1, 3, 2, 4), (2, 1, 3, 2, 4))
    """

    def __init__(self, cache_dict: Mapping[str, jax.Array], model: Any, has_batch_dim: bool = True):
        self.model, self.cfg = model, model.cfg
        self.has_batch_dim = has_batch_dim
        self._rows: dict[str, tuple[str, int | None]] = {name: (name, None) for name in cache_dict}
        self._arrays: dict[str, jax.Array] = dict(cache_dict)
        self._ranks = {name: array.ndim for name, array in cache_dict.items()}

    @classmethod
    def of(cls, caught: list[Caught], model: Any) -> "ActivationCache":
        """The cache of what a run caught, in the order in which the hook points fire."""
        cache = cls({}, model)
        rows = {}
        for entry in caught:
            if entry.layers is None:
                key, found = entry.name, {entry.name: None}
            else:
                stack = "*" if len(entry.layers) == model.cfg.n_layers else ",".join(map(str, entry.layers))
                key = f"blocks.{stack}.{entry.name}"
                found = {f"blocks.{layer}.{entry.name}": row for row, layer in enumerate(entry.layers)}
            cache._arrays[key], cache._ranks[key] = entry.value, entry.value.ndim
            rows |= {name: (key, row) for name, row in found.items()}
        order = [f"{name}{suffix}" for suffix in ("", "_grad") for name in sites(model.cfg)]
        cache._rows = {name: rows[name] for name in order if name in rows}
        return cache

    # --- a mapping

    def __getitem__(self, key: str | tuple) -> jax.Array:
        """
        Raises:
            ActivationNotFound: the cache does not hold it; the message offers the nearest names it does hold.
        """
        name = self._full_name(key)
        if name.startswith("blocks.*."):
            return self._stacked(name)
        where, row = self._place(name)
        return self._arrays[where] if row is None else self._layers_first(where)[row]

    def _place(self, name: str) -> tuple[str, int | None]:
        """Under which key an activation is stored, and as which row if with those of other layers."""
        if name not in self._rows:
            near = difflib.get_close_matches(name, self._rows, n=3, cutoff=0.6)
            offered = " or ".join(f'"{one}"' for one in near)
            held = f"did you mean {offered}?" if near else f"it holds {len(self)} others, listed by cache.keys()"
            raise ActivationNotFound(f'the cache holds no "{name}"; {held}')
        return self._rows[name]

    def _with_layers(self) -> set[str]:
        """The arrays that hold an activation of several layers."""
        return {where for where, row in self._rows.values() if row is not None}

    def _batched(self, where: str) -> int:
        """How many axes a vmap that this cache came out of has put in front of an array."""
        return self._arrays[where].ndim - self._ranks[where]

    def _layers_first(self, where: str) -> jax.Array:
        """A stacked array with its layer axis in front, where it is but for a vmap."""
        array, n_batched = self._arrays[where], self._batched(where)
        return jnp.moveaxis(array, n_batched, 0) if n_batched else array

    def _full_name(self, key: str | tuple) -> str:
        if isinstance(key, str):
            if key in self._rows or key in self._arrays:
                return key
            key = (key,)
        if not isinstance(key, tuple) or not 1 <= len(key) <= 3 or not isinstance(key[0], str):
            raise TypeError(f'an activation is named "name" or ("name", layer, "sublayer"); got {key!r}')
        name, layer, layer_type = (*key, None, None)[:3]
        if layer is not None and not isinstance(layer, int | np.integer | str):
            raise TypeError(f"a layer is a number; got {layer!r} in {key!r}")
        if isinstance(layer, int | np.integer) and layer < 0:
            layer = int(layer) + self.cfg.n_layers
        name = get_act_name(name, layer, layer_type)
        head, _, tail = name.rpartition(".")
        return f"{head}.{ALIASES[tail]}" if tail in ALIASES and head.count(".") == 1 else name

    def _stacked(self, name: str) -> jax.Array:
        """A site in all layers: [layer, ...], as it was stored or stacked now."""
        if name in self._arrays:
            return self._layers_first(name)
        site = name.removeprefix("blocks.*.")
        if not (layers := self._held_in(site)):
            raise ActivationNotFound(f'the cache holds no "{name}" in any layer')
        return self.of_layers(site, layers)

    def of_layers(self, site: str, layers: Sequence[int]) -> jax.Array:
        """A site in some layers: [layer, ...], as it lies where it was stored so.

        Raises:
            ActivationNotFound: the cache does not hold it in all of them.
            ValueError: its shape is not the same in all of them.
        """
        places = [self._place(f"blocks.{layer}.{site}") for layer in layers]
        stored = {
            where: self._arrays[where][None] if row is None else self._layers_first(where) for where, row in places
        }
        if len(shapes := {array.shape[1:] for array in stored.values()}) > 1:
            raise ValueError(f"{site} differs in shape from layer to layer, {sorted(shapes)}; read it layer by layer")
        first = dict(zip(stored, np.cumsum([0, *map(len, stored.values())]), strict=False))
        rows = np.array([first[where] + (row or 0) for where, row in places])
        joined = jnp.concatenate(list(stored.values())) if len(stored) > 1 else stored[places[0][0]]
        if not np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            return joined[rows]
        return joined if len(rows) == len(joined) else joined[rows[0] : rows[-1] + 1]

    def __contains__(self, key: object) -> bool:
        try:
            name = self._full_name(key)  # type: ignore[arg-type]
        except TypeError:
            return False
        if name.startswith("blocks.*."):
            return name in self._arrays or bool(self._held_in(name.removeprefix("blocks.*.")))
        return name in self._rows

    def _held_in(self, site: str) -> list[int]:
        """The layers that a site is held of, in order."""
        return sorted(layer for found, layer in map(split_name, self._rows) if found == site and layer is not None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        """Every site once, with its shape and the layers it is held of."""
        layers: dict[str, list[int]] = {}
        lines = []
        for name in self._rows:
            site, layer = split_name(name)
            layers.setdefault(site, []).extend([] if layer is None else [layer])
        for site, held in layers.items():
            first = self[f"blocks.{held[0]}.{site}" if held else site]
            where = f"blocks.{_span(held)}." if held else ""
            lines.append(f"  {where}{site} {tuple(first.shape)} {first.dtype}")
        batch = "" if self.has_batch_dim else ", no batch axis"
        return "\n".join([f"ActivationCache({len(self)} activations{batch})", *lines])

    @property
    def cache_dict(self) -> Mapping[str, jax.Array]:
        """The activations by full name, to be read."""
        return types.MappingProxyType(self)

    @property
    def has_embed(self) -> bool:
        """Whether it holds the token embedding."""
        return "hook_embed" in self._rows

    @property
    def has_pos_embed(self) -> bool:
        """Whether it holds the position embedding."""
        return "hook_pos_embed" in self._rows

    # --- the same activations in another form

    def _map(self, change, has_batch_dim: bool) -> "ActivationCache":
        """Every stored array changed by `change(array, batch axis)`."""
        cache = object.__new__(type(self))
        cache.__dict__.update(self.__dict__, has_batch_dim=has_batch_dim)
        stacked = self._with_layers()
        axes = {where: self._batched(where) + (where in stacked) for where in self._arrays}
        cache._arrays = {where: change(array, axes[where]) for where, array in self._arrays.items()}
        cache._ranks = {where: array.ndim - self._batched(where) for where, array in cache._arrays.items()}
        return cache

    def remove_batch_dim(self) -> "ActivationCache":
        """Takes the batch axis off the cache of a single prompt, in place as in TransformerLens, and returns it.

        `apply_slice_to_batch_dim(0)` gives a new cache without the axis and leaves this one.

        Raises:
            ValueError: there is more than one prompt.
        """
        if not self.has_batch_dim:
            return self

        def squeeze(array, axis):
            if array.shape[axis] != 1:
                raise ValueError(f"the batch has {array.shape[axis]} prompts; only a batch of one needs no axis")
            return array.squeeze(axis)

        self.__dict__.update(self._map(squeeze, has_batch_dim=False).__dict__)
        return self

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> "ActivationCache":
        """A new cache of some prompts of the batch: a number (the axis goes away), a slice, a tuple or a list.

        Raises:
            ValueError: the cache has no batch axis.
        """
        if not self.has_batch_dim:
            raise ValueError("the cache has no batch axis any more, so there is nothing to slice")
        chosen = Slice(batch_slice)
        return self._map(chosen.apply, has_batch_dim=chosen.mode != "int")

    def to_numpy(self) -> dict[str, np.ndarray]:
        """Every activation as a numpy array in host memory."""
        on_host = {where: np.asarray(array) for where, array in self._arrays.items()}
        for where in self._with_layers():
            on_host[where] = np.moveaxis(on_host[where], self._batched(where), 0)
        rows = self._rows.items()
        return {name: on_host[where] if row is None else on_host[where][row] for name, (where, row) in rows}

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> jax.Array:
        """One activation of the layers before `layer` (all of them by default), stacked: [layer, ...]."""
        layers = range(layer_count(self.cfg, layer, least=1))
        return self.of_layers(split_name(self._full_name((activation_name, 0, sublayer_type)))[0], layers)

    def compute_head_results(self) -> None:
        """Adds what every head writes, `blocks.*.attn.hook_result`, to the cache, in the layers whose hook_z it holds.

        Raises:
            ActivationNotFound: it holds no hook_z.
        """
        held, done = self._held_in("attn.hook_z"), self._held_in("attn.hook_result")
        if not held and not done:
            raise ActivationNotFound('the cache holds no "blocks.*.attn.hook_z" to compute the results of heads from')
        for block, layers in zip(self.needs_model().parts.stacks, self.cfg.stacks, strict=True):
            if some := [layer for layer in layers if layer in held and layer not in done]:
                W_O = block.attn.W_O[np.array([layers.index(layer) for layer in some])]
                self._add_results(some, write_heads(self.of_layers("attn.hook_z", some), W_O))

    def _add_results(self, layers: list[int], result: jax.Array) -> None:
        """Keeps hook_result [layer, ...] of some layers; it has as many axes as hook_z."""
        key = f"blocks.{'*' if len(layers) == self.cfg.n_layers else ','.join(map(str, layers))}.attn.hook_result"
        rank = 1 + self.rank(f"blocks.{layers[0]}.attn.hook_z")
        self._arrays = {**self._arrays, key: jnp.moveaxis(result, 0, result.ndim - rank)}
        self._ranks = {**self._ranks, key: rank}
        rows = {f"blocks.{layer}.attn.hook_result": (key, row) for row, layer in enumerate(layers)}
        self._rows = {**self._rows, **rows}

    def rank(self, name: str) -> int:
        """How many axes an activation has, those that a vmap put in front of it apart."""
        where, row = self._rows[name]
        return self._ranks[where] - (row is not None)

    # --- its model, and where it lies

    def needs_model(self) -> Any:
        """The model of the run.

        Raises:
            ValueError: the cache has none.
        """
        if self.model is None:
            raise ValueError(
                "this needs the model's weights, and the cache came out of a transformation without its model; give it "
                "with cache.with_model(model)"
            )
        return self.model

    def with_model(self, model: Any) -> "ActivationCache":
        """The same activations with a model: the one of the run, for a cache that came out of a transformation.

        Raises:
            ValueError: the model has another config.
        """
        if model.cfg != self.cfg:
            raise ValueError(f"the cache is of a model with {self.cfg}; this one has {model.cfg}")
        cache = object.__new__(type(self))
        cache.__dict__.update(self.__dict__, model=model)
        return cache

    def to(self, device: Any) -> "ActivationCache":
        """Moves the activations, in place as in TransformerLens, and returns the cache.

        `device` is "cpu", "gpu", "cuda:1", a `jax.Device` or a sharding. Methods that read weights need the model on
        the same device.

        Raises:
            ValueError: there is no such device.
        """
        self._arrays = jax.device_put(self._arrays, as_device(device))
        return self

    def toggle_autodiff(self, mode: bool = False) -> None:
        """Does nothing: JAX differentiates what it is asked to, and keeps nothing for it otherwise."""

    # --- a pytree

    def tree_flatten(self):
        static = (self.cfg, self.has_batch_dim, tuple(self._ranks.items()), tuple(self._rows.items()))
        return tuple(self._arrays.values()), static

    @classmethod
    def tree_unflatten(cls, static, arrays):
        """Out of a transformation comes a cache without its model: the model there was made of tracers."""
        cache = object.__new__(cls)
        cache.cfg, cache.has_batch_dim, ranks, rows = static
        cache.model, cache._ranks, cache._rows = None, dict(ranks), dict(rows)
        cache._arrays = dict(zip(cache._ranks, arrays, strict=True))
        return cache


def _span(layers: list[int]) -> str:
    """[0, 1, 2] as "0-2"."""
    consecutive = layers == list(range(layers[0], layers[-1] + 1))
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}" if consecutive else str(layers)
