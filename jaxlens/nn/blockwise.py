"""Attention for long sequences: a block of queries at a time, exact, so that no array has two context-sized axes.

Axes: b batch, n query head, k key/value head, p query position, s source position, h d_head, t d_v_head.

A layer with a window reads only the keys that the block's queries can see: at most one block and one window of them.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens.config import Config
from jaxlens.nn.context import LayerContext
from jaxlens.nn.grouped import raw_scores, weigh_values
from jaxlens.nn.masks import masked_softmax


@functools.partial(jax.jit, static_argnames=("cfg",), inline=True)
def attend_blockwise(
    cfg: Config,
    q: Float[Array, "b p n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k t"],
    at: LayerContext,
    sink: Float[Array, "k g 1 1"] | None = None,
) -> Float[Array, "b p n t"]:
    """What explicit attention gives, to rounding, in memory that grows with the sequence and not with its square."""
    local_windows = [window for window in cfg.windows if window is not None]
    reach = max(local_windows, default=0) + cfg.attn_block
    whole = functools.partial(_attend, cfg, k.shape[1])
    near = functools.partial(_attend, cfg, reach)
    given = (q, k, v, at, sink)
    if not local_windows or reach >= k.shape[1]:
        return whole(*given)
    if len(local_windows) == cfg.n_layers:
        return near(*given)
    return jax.lax.cond(at.window < k.shape[1], near, whole, *given)


def _attend(cfg: Config, reach: int, q, k, v, at: LayerContext, sink):
    """Every block of queries against the `reach` keys that end with the block's own."""
    block, length = cfg.attn_block, q.shape[1]
    n_blocks = -(-length // block)
    padding = n_blocks * block - length
    queries = jnp.pad(q, ((0, 0), (0, padding), (0, 0), (0, 0)))
    low, high = (jnp.pad(bound, (0, padding), constant_values=-1) for bound in (at.low, at.high))
    places = None if at.places is None else jnp.pad(at.places, ((0, 0), (0, padding)))

    @jax.checkpoint
    def attend_one(i):
        start = i * block
        first_key = jnp.clip(start + block - reach, 0, k.shape[1] - reach)
        rows = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=block)
        keys = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=first_key, slice_size=reach, axis=1)
        at_places = () if places is None else (rows(places, axis=1), keys(at.places))
        distances = () if places is None else (cfg.slopes, *at_places, cfg.alibi_in_bfloat16)
        scores = raw_scores(rows(queries, axis=1), keys(k), at.scale, cfg.attn_scores_soft_cap, *distances)
        real = at.real if reach == k.shape[1] else keys(at.real)  # a slice would be kept for every block's gradient
        pattern = masked_softmax(scores, rows(low) - first_key, rows(high) - first_key, real, sink)
        return weigh_values(pattern, keys(v))

    blocks = jax.lax.map(attend_one, jnp.arange(n_blocks))
    return jnp.moveaxis(blocks, 0, 1).reshape(q.shape[0], -1, q.shape[2], v.shape[3])[:, :length]
