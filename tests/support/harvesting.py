"""A harvest that is run in a process of its own, to be killed."""

import jax

from jaxlens import Config, HookedTransformer, batch

NAMES = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"]


def small_model(seed: int = 0) -> HookedTransformer:
    return HookedTransformer(
        Config(n_layers=3, d_model=24, n_heads=3, n_key_value_heads=1, d_head=6, d_vocab=50, n_ctx=40), seed=seed
    )


def rows_of_tokens(n: int = 150) -> list[list[int]]:
    """Rows of 1 to 60 tokens: some are longer than n_ctx."""
    return [[(7 * row + 3 * i) % 50 for i in range(1 + 13 * row % 60)] for row in range(n)]


def harvest_all(folder: str, cache: str | None = None, **options) -> batch.Harvest:
    """The harvest of all rows, in shards of few rows."""
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    options = {"shard_tokens": 100, "batch_tokens": 160, **options}
    return batch.harvest(small_model(), rows_of_tokens(), NAMES, folder, **options)
