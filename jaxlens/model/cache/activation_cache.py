"""The activations of one run, by name.

The layers of a site are stored stacked, as the compiled loop returns them: `cache["blocks.*.attn.hook_z"]` is an array
[layer, ...], and `cache["blocks.3.attn.hook_z"]` is its fourth row.
"""

import difflib
import functools
import types
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens._jax import as_device, full_precision, is_traced, on_host
from jaxlens.config import Config
from jaxlens.errors import ActivationNotFound
from jaxlens.hooks.names import get_act_name, split_name, why_not_cached, without_alias
from jaxlens.hooks.positions import Positions
from jaxlens.hooks.slice import Slice
from jaxlens.hooks.table import sites
from jaxlens.model.cache.decomposition import Decomposition
from jaxlens.model.cache.stored_arrays import StoredArrays, row_of
from jaxlens.model.cache.terms import head_results
from jaxlens.model.cache.writers import layer_count
from jaxlens.model.engine import Captured
from jaxlens.nn.module import arrays


@jax.tree_util.register_pytree_node_class
class ActivationCache(Decomposition, Mapping):
    """A mapping from names of activations to their values.

    Keys are full names, short names, or tuples of short name, layer and sublayer: `cache["blocks.5.hook_resid_post"]`,
    `cache["resid_post", 5]`, `cache["scale", 3, "ln1"]`, `cache["k6"]`. Negative layers count from the end. A missing
    name raises ActivationNotFound, with the nearest names. A cache is a pytree, so a jitted function may return it.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> _, cache = model.run_with_cache([[1, 2, 3]])
        >>> cache["resid_post", -1].shape, cache["q1"].shape, cache.stack_activation("z").shape
        ((1, 3, 8), (1, 3, 2, 4), (2, 1, 3, 2, 4))
    """

    mask: np.ndarray | None = None
    """False on padding, [batch pos]. None if it is unknown or the positions were selected already."""

    def __init__(self, cache_dict: Mapping[str, jax.Array], model: Any, has_batch_dim: bool = True):
        self.model, self.cfg = model, model.cfg
        self.has_batch_dim = has_batch_dim
        self._rows: dict[str, tuple[str, int | None]] = {name: (name, None) for name in cache_dict}
        self._arrays: MutableMapping[str, jax.Array] = dict(cache_dict)
        self._ranks = {name: array.ndim for name, array in cache_dict.items()}

    @classmethod
    def of(
        cls, captured: list[Captured], model: Any, length: int | None = None, positions: Positions | None = None,
        mask: jax.Array | None = None,
    ) -> "ActivationCache":  # fmt: skip
        """The cache of captured activations, in firing order. Those of a padded run are cut to `length` when read."""
        cache = cls({}, model)
        if mask is not None and positions is None and not is_traced(mask):
            cache.mask = on_host(mask)
        keys, cache._rows = _layout(model.cfg, tuple([(entry.name, entry.layers) for entry in captured]))
        cache._arrays = {} if length is None else StoredArrays()
        for key, entry in zip(keys, captured, strict=True):
            cache._ranks[key] = entry.value.ndim
            if length is None:
                cache._arrays[key] = entry.value
            else:
                site, n_leading = split_name(entry.name)[0].removesuffix("_grad"), int(entry.layers is not None)
                cache._arrays.store_padded(key, entry.value, site, n_leading, length, positions)
        return cache

    # --- a mapping

    def __getitem__(self, key: str | tuple) -> jax.Array:
        name = self._full_name(key)
        if name.startswith("blocks.*."):
            return self._stacked(name)
        stored, row = self._key_and_row(name)
        return self._arrays[stored] if row is None else row_of(self._layers_first(stored), row)

    def _key_and_row(self, name: str) -> tuple[str, int | None]:
        """The key under which an activation is stored, and its row if it is stacked with other layers."""
        if name not in self._rows:
            why = why_not_cached(self.cfg, name)
            near = difflib.get_close_matches(name, self._rows, n=3, cutoff=0.6)
            nearest = " or ".join(f'"{other}"' for other in near)
            hint = f"did you mean {nearest}?" if near else f"cache.keys() lists the {len(self)} that it holds"
            raise ActivationNotFound(f'the cache holds no "{name}"; {why or hint}')
        return self._rows[name]

    def _stacked_keys(self) -> set[str]:
        """The keys of arrays with an axis of layers."""
        return {key for key, row in self._rows.values() if row is not None}

    def _n_vmapped(self, key: str) -> int:
        """The number of leading axes that a vmap added to an array."""
        return self._arrays[key].ndim - self._ranks[key]

    def _layers_first(self, key: str) -> jax.Array:
        """A stacked array with its layer axis before the axes of a vmap."""
        array, n_vmapped = self._arrays[key], self._n_vmapped(key)
        return jnp.moveaxis(array, n_vmapped, 0) if n_vmapped else array

    def _full_name(self, key: str | tuple) -> str:
        if isinstance(key, str):
            if key in self._rows or key in self._arrays:
                return key
            key = (key,)
        if not isinstance(key, tuple) or not 1 <= len(key) <= 3 or not isinstance(key[0], str):
            raise TypeError(f'the name of an activation is "name" or ("name", layer, "sublayer"); got {key!r}')
        name, layer, layer_type = (*key, None, None)[:3]
        if layer is not None and not isinstance(layer, int | np.integer | str):
            raise TypeError(f"a layer is a number; got {layer!r} in {key!r}")
        if isinstance(layer, int | np.integer) and layer < 0:
            layer = int(layer) + self.cfg.n_layers
        return without_alias(self.cfg, get_act_name(name, layer, layer_type))

    def _stacked(self, name: str) -> jax.Array:
        """A site in all layers, [layer, ...]."""
        if name in self._arrays:
            return self._layers_first(name)
        site = name.removeprefix("blocks.*.")
        if not (layers := self._held_in(site)):
            why = why_not_cached(self.cfg, name)
            raise ActivationNotFound(f'the cache holds no "{name}" in any layer{why and f"; {why}"}')
        return self.of_layers(site, layers)

    def of_layers(self, site: str, layers: Sequence[int]) -> jax.Array:
        """A site in some layers, [layer, ...]. A stored array of exactly these layers is returned without a copy."""
        found = [self._key_and_row(f"blocks.{layer}.{site}") for layer in layers]
        stored = {key: self._arrays[key][None] if row is None else self._layers_first(key) for key, row in found}
        if len(shapes := {array.shape[1:] for array in stored.values()}) > 1:
            raise ValueError(f"{site} differs in shape between layers, {sorted(shapes)}; read it layer by layer")
        first = dict(zip(stored, np.cumsum([0, *map(len, stored.values())]), strict=False))
        rows = np.array([first[key] + (row or 0) for key, row in found])
        joined = jnp.concatenate(list(stored.values())) if len(stored) > 1 else stored[found[0][0]]
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
        """The layers in which the cache holds a site, in order."""
        return sorted(layer for found, layer in map(split_name, self._rows) if found == site and layer is not None)

    __eq__, __hash__ = object.__eq__, object.__hash__  # those of a Mapping would compare arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        """Every site once, with its shape and its layers."""
        layers, lines = {}, []
        for name in self._rows:
            site, layer = split_name(name)
            layers.setdefault(site, []).extend([] if layer is None else [layer])
        for site, held in layers.items():
            first = self[f"blocks.{held[0]}.{site}" if held else site]
            prefix = f"blocks.{_layer_range(held)}." if held else ""
            lines.append(f"  {prefix}{site} {tuple(first.shape)} {first.dtype}")
        batch = "" if self.has_batch_dim else ", no batch axis"
        return "\n".join([f"ActivationCache({len(self)} activations{batch})", *lines])

    @property
    def cache_dict(self) -> Mapping[str, jax.Array]:
        """The activations by full name, read-only."""
        return types.MappingProxyType(self)

    @property
    def has_embed(self) -> bool:
        """Whether the cache holds the token embedding."""
        return "hook_embed" in self._rows

    @property
    def has_pos_embed(self) -> bool:
        """Whether the cache holds the position embedding."""
        return "hook_pos_embed" in self._rows

    # --- other forms of the same activations

    def _map(self, change, has_batch_dim: bool) -> "ActivationCache":
        """A copy of the cache with every stored array replaced by `change(array, batch axis)`."""
        cache = object.__new__(type(self))
        cache.__dict__.update(self.__dict__, has_batch_dim=has_batch_dim)
        stacked = self._stacked_keys()
        axes = {key: self._n_vmapped(key) + (key in stacked) for key in self._arrays}
        cache._arrays = {key: change(array, axes[key]) for key, array in self._arrays.items()}
        cache._ranks = {key: array.ndim - self._n_vmapped(key) for key, array in cache._arrays.items()}
        return cache

    def remove_batch_dim(self) -> "ActivationCache":
        """Removes the batch axis from the cache of a single prompt, in place as in TransformerLens. Returns the cache.

        `apply_slice_to_batch_dim(0)` returns a new cache instead.

        Raises:
            ValueError: There is more than one prompt.
        """
        if not self.has_batch_dim:
            return self

        def squeeze(array, axis):
            if (n := array.shape[axis]) != 1:
                raise ValueError(f"the batch has {n} prompts; only a batch of one can lose its axis; slice it first")
            return array.squeeze(axis)

        self.__dict__.update(self._map(squeeze, has_batch_dim=False).__dict__)
        return self

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> "ActivationCache":
        """A new cache of the selected prompts: an integer (which removes the axis), a slice, a tuple or a list.

        Raises:
            ValueError: The cache has no batch axis.
        """
        if not self.has_batch_dim:
            raise ValueError("the cache has no batch axis, so there is nothing to slice")
        selection = Slice(batch_slice)
        cache = self._map(selection.apply, has_batch_dim=selection.mode != "int")
        if self.mask is not None:
            cache.mask = np.atleast_2d(selection.apply(self.mask))
        return cache

    def to_numpy(self) -> dict[str, np.ndarray]:
        """Every activation as a numpy array in host memory."""
        arrays = {key: on_host(array) for key, array in self._arrays.items()}
        for key in self._stacked_keys():
            arrays[key] = np.moveaxis(arrays[key], self._n_vmapped(key), 0)
        rows = self._rows.items()
        return {name: arrays[key] if row is None else arrays[key][row] for name, (key, row) in rows}

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> jax.Array:
        """An activation of the layers before `layer` (by default of all layers), stacked: [layer, ...]."""
        layers = range(layer_count(self.cfg, layer, least=1))
        return self.of_layers(split_name(self._full_name((activation_name, 0, sublayer_type)))[0], layers)

    @full_precision()
    def compute_head_results(self) -> None:
        """Adds what every head writes, `blocks.*.attn.hook_result`, in the layers whose hook_z the cache holds.

        Raises:
            ActivationNotFound: The cache holds no hook_z.
        """
        held, done = self._held_in("attn.hook_z"), self._held_in("attn.hook_result")
        if not held and not done:
            raise ActivationNotFound('the cache holds no "blocks.*.attn.hook_z", which head results are computed from')
        for block, layers in zip(self.require_model().modules.stacks, self.cfg.stacks, strict=True):
            if missing := [layer for layer in layers if layer in held and layer not in done]:
                W_O = arrays(block.attn).updated("W_O")[np.array([layers.index(layer) for layer in missing])]
                self._add_results(missing, head_results(self.of_layers("attn.hook_z", missing), W_O))

    def _add_results(self, layers: list[int], result: jax.Array) -> None:
        """Stores hook_result [layer, ...] of some layers. It has as many axes as hook_z."""
        key = _stacked_key("attn.hook_result", layers, self.cfg.n_layers)
        rank = 1 + self.rank(f"blocks.{layers[0]}.attn.hook_z")
        self._arrays = {**self._arrays, key: jnp.moveaxis(result, 0, result.ndim - rank)}
        self._ranks = self._ranks | {key: rank}
        self._rows = self._rows | _rows_of("attn.hook_result", layers, key)

    def rank(self, name: str) -> int:
        """The number of axes of an activation, without those of a vmap."""
        key, row = self._rows[name]
        return self._ranks[key] - (row is not None)

    # --- model and device

    def require_model(self) -> Any:
        """The model of the run, or a ValueError if the cache has none, because a jitted function returned the cache."""
        if self.model is None:
            raise ValueError("this needs the model's weights, but this cache has no model; use cache.with_model(model)")
        return self.model

    def with_model(self, model: Any) -> "ActivationCache":
        """The same activations with the model of the run, for a cache that a transformed (jitted) function returned.

        Raises:
            ValueError: The model has another config.
        """
        if model.cfg != self.cfg:
            raise ValueError(f"the cache belongs to a model with {self.cfg}; this model has {model.cfg}")
        cache = object.__new__(type(self))
        cache.__dict__.update(self.__dict__, model=model)
        return cache

    def to(self, device: Any) -> "ActivationCache":
        """Moves the activations, in place as in TransformerLens, and returns the cache.

        `device` is "cpu", "gpu", "cuda:1", a `jax.Device` or a sharding. Methods that read weights need the model on
        the same device.

        Raises:
            ValueError: There is no such device.
        """
        self._arrays = jax.device_put(dict(self._arrays), as_device(device))
        return self

    def toggle_autodiff(self, mode: bool = False) -> None:
        """Does nothing: `jax.grad` decides what is differentiated."""

    # --- a pytree

    def tree_flatten(self):
        static = (self.cfg, self.has_batch_dim, tuple(self._ranks.items()), tuple(self._rows.items()))
        return tuple(self._arrays.values()), static

    @classmethod
    def tree_unflatten(cls, static, arrays):
        """Makes a cache without a model: under a transformation, the weights of the model were tracers."""
        cache = object.__new__(cls)
        cache.cfg, cache.has_batch_dim, ranks, rows = static
        cache.model, cache._ranks, cache._rows = None, dict(ranks), dict(rows)
        cache._arrays = dict(zip(cache._ranks, arrays, strict=True))
        return cache


@functools.lru_cache(maxsize=64)
def _layout(
    cfg: Config, captured: tuple[tuple[str, tuple[int, ...] | None], ...]
) -> tuple[tuple[str, ...], dict[str, tuple[str, int | None]]]:
    """The keys of captured values, of which the name and the layers are given, and the key and row of each activation.

    Activations are in firing order, then their gradients. Caches share the result: nothing may change it.
    """
    keys, rows = [], {}
    for name, layers in captured:
        keys.append(name if layers is None else _stacked_key(name, layers, cfg.n_layers))
        rows |= {name: (name, None)} if layers is None else _rows_of(name, layers, keys[-1])
    in_order = (f"{name}{suffix}" for suffix in ("", "_grad") for name in sites(cfg))
    return tuple(keys), {name: rows[name] for name in in_order if name in rows}


def _stacked_key(site: str, layers: Sequence[int], n_layers: int) -> str:
    return f"blocks.{'*' if len(layers) == n_layers else ','.join(map(str, layers))}.{site}"


def _rows_of(site: str, layers: Sequence[int], key: str) -> dict[str, tuple[str, int]]:
    return {f"blocks.{layer}.{site}": (key, row) for row, layer in enumerate(layers)}


def _layer_range(layers: list[int]) -> str:
    """[0, 1, 2] as "0-2"."""
    consecutive = layers == list(range(layers[0], layers[-1] + 1))
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}" if consecutive else str(layers)
