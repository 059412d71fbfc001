"""TransformerLens's `cache`: KV caches for the argument `past_kv_cache` of a run.

It is a package there. The table in `names.py` maps its modules to this module.
"""

from typing import Any

from jaxlens.model.generation.past import (
    HookedTransformerKeyValueCache,
    HookedTransformerKeyValueCacheEntry,
    TransformerLensKeyValueCache,
    TransformerLensKeyValueCacheEntry,
)
from jaxlens.transformer_lens.absent import no_attribute

__all__ = [
    "HookedTransformerKeyValueCache", "HookedTransformerKeyValueCacheEntry", "TransformerLensKeyValueCache",
    "TransformerLensKeyValueCacheEntry", "get_pos_offset",
]  # fmt: skip

__path__: list[str] = []  # makes it a package, whose submodules the finder of `names.py` finds


def get_pos_offset(past_kv_cache: TransformerLensKeyValueCache | None, batch_size: int) -> int:
    """The number of columns, padding included, before those of a run of this many rows.

    Raises:
        ValueError: The cache has another number of rows.
    """
    if past_kv_cache is None:
        return 0
    if batch_size != (rows := past_kv_cache.kv_cache.batch_size):
        raise ValueError(f"the cache has {rows} rows; expected {batch_size}")
    return past_kv_cache.kv_cache.length


def __getattr__(name: str) -> Any:
    raise no_attribute(f"cache.{name}")
