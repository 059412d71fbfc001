"""The activations of one run, by name.

What all layers have in common is kept stacked, as the compiled loop made it: `cache["blocks.*.attn.hook_z"]` is that
array [layer, ...], and `cache["blocks.3.attn.hook_z"]` its fourth row, taken when asked for.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.engine import Caught
from jaxlens.errors import ActivationNotFound
from jaxlens.hook_table import ALIASES, sites, split_name
from jaxlens.names import get_act_name
from jaxlens.slices import Slice


@jax.tree_util.register_pytree_node_class
class ActivationCache(Mapping):
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
        if name not in self._rows:
            near = difflib.get_close_matches(name, self._rows, n=3, cutoff=0.6)
            offered = " or ".join(f'"{one}"' for one in near)
            held = f"did you mean {offered}?" if near else f"it holds {len(self)} others, listed by cache.keys()"
            raise ActivationNotFound(f'the cache holds no "{name}"; {held}')
        where, row = self._rows[name]
        return self._arrays[where] if row is None else self._layers_first(where)[row]

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
        values = [self[full] for full in self._rows if full.startswith("blocks.") and split_name(full)[0] == site]
        if not values:
            raise ActivationNotFound(f'the cache holds no "{name}" in any layer')
        return jnp.stack(values)

    def __contains__(self, key: object) -> bool:
        try:
            self[key]  # type: ignore[index]
        except (ActivationNotFound, TypeError):
            return False
        return True

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
        """The cache of a single prompt, without the batch axis.

        Raises:
            ValueError: there is more than one prompt.
        """
        if not self.has_batch_dim:
            return self

        def squeeze(array, axis):
            if array.shape[axis] != 1:
                raise ValueError(f"the batch has {array.shape[axis]} prompts; only a batch of one needs no axis")
            return array.squeeze(axis)

        return self._map(squeeze, has_batch_dim=False)

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> "ActivationCache":
        """Some prompts of the batch: a number (the axis goes away), a slice, a tuple or a list.

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
        n_layers = self.cfg.n_layers if layer in (None, -1) else layer
        if not 1 <= n_layers <= self.cfg.n_layers:
            raise ValueError(f"layer is {layer}; wanted 1 to {self.cfg.n_layers}, or -1 for all layers")
        stacked = get_act_name(activation_name, "*", sublayer_type)
        if stacked in self._arrays:
            return self._layers_first(stacked)[:n_layers]
        return jnp.stack([self[activation_name, one, sublayer_type] for one in range(n_layers)])

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
