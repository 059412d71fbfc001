"""Attention of long sequences: blocks of queries and of keys, so that no array has two context-sized axes.

Axes: b batch, i block of queries, j block of keys, p query position, s source position, n query head, k key/value head,
g query heads per key/value head, h d_head, t d_v_head.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxlens._jax import inlined, wide, wide_dtype
from jaxlens.config import Config
from jaxlens.nn.packing import PADDING
from jaxlens.nn.position_bias import position_bias
from jaxlens.nn.scores import by_group_first, by_position, raw_scores, visible
from jaxlens.nn.sequence import LayerInfo

MAX_GROUPS = 8
"""Blocks of queries are computed in as many groups, with keys up to the end of the group: a program of fixed size."""


@functools.partial(inlined, static_argnames=("cfg",))
def attend_blockwise(
    cfg: Config, q: Float[Array, "b p n h"], k: Float[Array, "b k s h"], v: Float[Array, "b k s t"], info: LayerInfo,
    sink=None,
) -> Float[Array, "b p n t"]:  # fmt: skip
    """Computes `Attention.attend`, up to rounding, in memory proportional to the length of the sequence.

    A block of queries uses the keys up to its own end only, and in a layer with a window those of the window. If keys
    are in the slots of a KV cache, it uses all of them.
    """
    if info.high.shape != info.sources.shape:
        return _attend_by_block(cfg, None, q, k, v, info, sink)
    n_blocks = -(-k.shape[2] // cfg.attn_block)
    local_windows = [window for window in cfg.windows if window is not None]
    reach = 1 + -(-(max(local_windows, default=1) - 1) // cfg.attn_block)  # blocks of keys for a block of queries
    globally = functools.partial(_attend_by_block, cfg, None)
    locally = functools.partial(_attend_locally, cfg, reach)
    if not local_windows or reach >= n_blocks:
        return globally(q, k, v, info, sink)
    if len(local_windows) == cfg.n_layers:
        return locally(q, k, v, info, sink)
    return jax.lax.cond(info.window < k.shape[2], locally, globally, q, k, v, info, sink)


def _attend_locally(cfg: Config, reach: int, q, k, v, info: LayerInfo, sink):
    """Attention of every block of queries to the last `reach` blocks of keys. Padding between tokens is moved to the
    end first, because a window counts tokens.
    """
    is_token = info.sources != PADDING
    starts = jnp.sum(is_token[:, 1:] & ~is_token[:, :-1], axis=-1) + is_token[:, 0]

    def in_place(q, k, v, info: LayerInfo):
        return _attend_by_block(cfg, reach, q, k, v, info, sink)

    return jax.lax.cond(jnp.all(starts <= 1), in_place, functools.partial(tokens_first, in_place), q, k, v, info)


def tokens_first(attend: Callable[..., Array], q, k, v, info: LayerInfo) -> Float[Array, "b p n t"]:
    """Calls `attend(q, k, v, info)` with the padding of each row moved to its end, and moves the results back."""
    order = jnp.argsort(info.sources == PADDING, axis=-1, stable=True)
    bounds = (jnp.take_along_axis(bound, order, axis=-1) for bound in (info.low, info.high, info.sources))
    low, high, sources = bounds
    q = jnp.take_along_axis(q, order[..., None, None], axis=1)
    k, v = (jnp.take_along_axis(x, order[:, None, :, None], axis=2) for x in (k, v))
    z = attend(q, k, v, dataclasses.replace(info, low=low, high=high, sources=sources))
    return jnp.take_along_axis(z, jnp.argsort(order, axis=-1)[..., None, None], axis=1)


def _attend_by_block(cfg: Config, reach: int | None, q, k, v, info: LayerInfo, sink):
    """Attention of every block of queries to the last `reach` blocks of keys up to its own, or to all of them."""
    in_blocks = functools.partial(_in_blocks, size=cfg.attn_block)
    queries = (
        in_blocks(by_group_first(q, k.shape[1]), axis=3),
        in_blocks(info.low, fill=-1),
        in_blocks(info.high, fill=-1),
    )
    keys = in_blocks(k, axis=2), in_blocks(v, axis=2), in_blocks(info.sources, fill=PADDING)
    n_blocks, aligned = len(queries[0]), info.high.shape == info.sources.shape
    n_groups = min(MAX_GROUPS, n_blocks) if aligned and not reach else 1
    bounds = [n_blocks * group // n_groups for group in range(n_groups + 1)]

    def attend_group(first: int, last: int):
        last_key = last if aligned else len(keys[0])
        n_keys = reach or last_key
        until_last = jax.tree.map(lambda x: x[:last_key], keys)

        @jax.checkpoint  # of the slices too: those of all blocks would be as many numbers as T×T
        def attend(block):
            i, queries = block
            start = jnp.maximum(i + 1 - n_keys, 0)
            of_keys = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=n_keys)
            return _attend_block(cfg, queries, jax.tree.map(of_keys, until_last), info.scale, sink)

        return jax.lax.map(attend, (jnp.arange(first, last), jax.tree.map(lambda x: x[first:last], queries)))

    z = jnp.concatenate([attend_group(*ends) for ends in itertools.pairwise(bounds)])
    z = jnp.moveaxis(z, 0, 3)  # [i b k g p t] to [b k g i p t]
    return by_position(z.reshape(*z.shape[:3], -1, z.shape[-1]))[:, : q.shape[1]]


def _in_blocks(x: Shaped[Array, "..."], size: int, axis: int = 1, fill: int = 0) -> Shaped[Array, "..."]:
    """The array in blocks along an axis, which is filled up to a multiple of the size. Blocks are the first axis."""
    widths = [(0, -x.shape[axis] % size if i == axis else 0) for i in range(x.ndim)]
    x = jnp.pad(x, widths, constant_values=fill)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :]), axis, 0)


def _attend_block(cfg: Config, queries, keys, scale, sink) -> Float[Array, "b k g p t"]:
    """Attention of a block of queries to blocks of keys, one after the other.

    `highest` is the highest score so far, and `total` and `z` are the sums of exp(score - highest) and of the values
    with these weights (Milakov & Gimelshein 2018, arXiv 1805.02867; Rabe & Staats 2021, arXiv 2112.05682).
    """
    q, low, high = queries
    dtype, d_v_head = wide_dtype(q.dtype), keys[1].shape[-1]
    cap, bias = cfg.attn_scores_soft_cap, position_bias(cfg)

    def add_block(sums, block):
        highest, total, z = sums
        k, v, sources = block
        scores = wide(raw_scores(q, k, scale, cap, bias, (high, sources)))
        scores = jnp.where(visible(low, high, sources, scores.ndim), scores, -jnp.inf)
        new = jnp.maximum(highest, jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
        weights, shrink = jnp.exp(scores - new), jnp.exp(highest - new)
        values = jnp.einsum("bkgps,bkst->bkgpt", weights.astype(v.dtype), v, preferred_element_type=dtype)
        return (new, total * shrink + jnp.sum(weights, axis=-1, keepdims=True), z * shrink + values), None

    rows = (*q.shape[:-1], 1)
    total, highest = jnp.zeros(rows, dtype), jnp.full(rows, jnp.finfo(dtype).min, dtype)
    if sink is not None:
        highest = jax.lax.stop_gradient(jnp.broadcast_to(sink.astype(dtype), rows))
        total = jnp.exp(sink.astype(dtype) - highest)
    (_, total, z), _ = jax.lax.scan(add_block, (highest, total, jnp.zeros((*rows[:-1], d_v_head), dtype)), keys)
    return (z / jnp.where(total > 0, total, 1)).astype(q.dtype)
