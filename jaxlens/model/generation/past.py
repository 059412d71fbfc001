"""The KV cache of TransformerLens's interface: a list of entries that a run with `past_kv_cache=` extends.

Axes: b batch, s token, n key/value head, h d_head.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens._jax import as_device, is_traced
from jaxlens.config import Config
from jaxlens.hooks.names import split_name
from jaxlens.hooks.positions import shortened
from jaxlens.hooks.table import LENGTH_AXES, POSITION_AXES
from jaxlens.model.automatic_axes import with_automatic_axes
from jaxlens.model.engine import Captured
from jaxlens.model.generation.decode import decode
from jaxlens.model.lengths import program_length
from jaxlens.model.request import ModelInput, RunRequest
from jaxlens.nn.kv_cache import PADDING, KVCache


@dataclasses.dataclass
class TransformerLensKeyValueCache:
    """A KV cache that runs with `past_kv_cache=` extend in place, unless it is frozen. It grows as it is needed.

    `kv_cache` is the KVCache of fixed size that holds the keys and values, which are stored after rotation. An item is
    the entry of a layer, with `past_keys` and `past_values`.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(
        ...     jaxlens.Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8, attn_only=True))
        >>> past = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu")
        >>> logits = model([[1, 2, 3]], past_kv_cache=past)
        >>> past.freeze()
        >>> model([[4, 5]], past_kv_cache=past).shape, past[0].past_keys.shape
        ((1, 2, 10), (1, 3, 2, 4))
    """

    cfg: Config
    kv_cache: KVCache
    frozen: bool = False

    @classmethod
    def init_cache(cls, cfg: Config, device: Any = None, batch_size: int = 1) -> "TransformerLensKeyValueCache":
        """An empty cache for this many rows."""
        kv_cache = KVCache.new(cfg, batch_size, program_length(1, cfg.n_ctx))
        return cls(cfg, kv_cache if device is None else jax.device_put(kv_cache, as_device(device)))

    def freeze(self) -> None:
        """Runs no longer extend the cache, so that many prompts can follow one prefix."""
        self.frozen = True

    def unfreeze(self) -> None:
        """Runs extend the cache again."""
        self.frozen = False

    def with_room(self, n_new: int, is_kept: bool = False) -> KVCache:
        """A KVCache with room for this many more tokens, which a run may use up.

        This one stays as it is if `is_kept`, or if it is frozen.
        """
        needed = self.kv_cache.length + n_new
        longer = self.kv_cache.with_room(min(program_length(needed, self.cfg.n_ctx), self.cfg.n_ctx))
        return longer.copy() if (is_kept or self.frozen) and longer is self.kv_cache else longer

    def extend(self, longer: KVCache) -> None:
        """Keeps the cache after a run, unless it is frozen."""
        if not self.frozen:
            self.kv_cache = longer

    @property
    def entries(self) -> list["TransformerLensKeyValueCacheEntry"]:
        """The entry of each layer."""
        return [TransformerLensKeyValueCacheEntry(self, layer) for layer in range(self.cfg.n_layers)]

    def __getitem__(self, layer: int) -> "TransformerLensKeyValueCacheEntry":
        return self.entries[layer]

    @property
    def previous_attention_mask(self) -> Int[Array, "b s"]:
        """1 for tokens and 0 for padding."""
        sources = self.kv_cache.slots.sources[:, : self.kv_cache.length]
        return jnp.asarray(np.asarray(sources) != PADDING, jnp.int32)


@dataclasses.dataclass(frozen=True)
class TransformerLensKeyValueCacheEntry:
    """The keys and values of one layer."""

    cache: TransformerLensKeyValueCache
    layer: int

    def _of_layer(self, rows: Float[Array, "l b n s h"]) -> Float[Array, "b s n h"]:
        return jnp.moveaxis(rows[self.layer, :, :, : self.cache.kv_cache.length], 2, 1)

    frozen = property(lambda self: self.cache.frozen, doc="Whether runs leave the cache as it is.")
    past_keys = property(lambda self: self._of_layer(self.cache.kv_cache.keys), doc="Keys after rotation, [b s n h].")
    past_values = property(lambda self: self._of_layer(self.cache.kv_cache.values), doc="Values, [b s n h].")


HookedTransformerKeyValueCache = TransformerLensKeyValueCache
HookedTransformerKeyValueCacheEntry = TransformerLensKeyValueCacheEntry


def kv_cache_of(past: Any) -> KVCache | None:
    """The KVCache of an argument `past_kv_cache` of `generate`. Raises TypeError for something else."""
    if not isinstance(past, TransformerLensKeyValueCache | KVCache | None):
        expected = "expected a KVCache, as model.init_kv_cache and model.decode return it"
        raise TypeError(f"past_kv_cache is a {type(past).__name__}; {expected}")
    return past.kv_cache if isinstance(past, TransformerLensKeyValueCache) else past


def run_after(past: Any, model: Any, model_input: ModelInput, request: RunRequest, hooks: Any, run: Any):
    """The output of a run that follows the tokens in `past`, the captured activations, and None: they are cut already.

    Raises:
        TypeError: `past` is no TransformerLensKeyValueCache.
        ValueError: The run skips layers, or computes gradients at captured activations.
    """
    if not isinstance(past, TransformerLensKeyValueCache):
        use = "make one with TransformerLensKeyValueCache.init_cache, or pass a KVCache to model.decode"
        raise TypeError(f"past_kv_cache is a {type(past).__name__}; {use}")
    layers = request.layers
    if (layers.start, layers.stop) != (0, model.cfg.n_layers):
        raise ValueError("a run with past_kv_cache must cover all layers; drop start_at_layer and stop_at_layer")
    if run not in (None, type(model).run):
        raise ValueError("incl_bwd cannot be combined with past_kv_cache; differentiate model.decode instead")
    if is_traced(model_input, model, hooks, past.kv_cache):
        raise ValueError("past_kv_cache is changed in place, which a compiled function cannot do; use model.decode")

    def run_on_cache(model, model_input, request, hooks, cache):
        output, [(captured, _)], longer = decode(model, cache, model_input, request, hooks)
        n_new = None if request.positions is not None else model_input.mask.shape[1]
        return output, [_cut(entry, n_new, longer.length) for entry in captured], longer

    may_fail = any(hook.is_plain for hook in hooks)  # then `past` must stay as it is
    cache = past.with_room(model_input.mask.shape[1], is_kept=may_fail)
    output, captured, longer = with_automatic_axes(run_on_cache, model, model_input, request, hooks, cache)
    past.extend(longer)
    return output, captured, None


def _cut(entry: Captured, n_new: int | None, n_sources: int) -> Captured:
    """A captured activation of `n_new` new tokens (None: of some of them), with the sources that are in use."""
    site, value = split_name(entry.name)[0], entry.value
    for axis in LENGTH_AXES[site]:
        length = n_new if axis == POSITION_AXES[site] else n_sources
        if length is not None:
            value = shortened(value, (axis + (entry.layers is not None),), length)
    return dataclasses.replace(entry, value=value)
