"""The chosen experts of each token: only the arithmetic that the router asks for.

Axes: r row, a token with one of its chosen experts; t token, c choice, d d_model, e expert, f d_expert.

    tokens ─ rows, sorted by expert ─ blocks of rows of one expert ─ × W ─ × choice ─ sums for each token

Two orders of the same sums. `_by_block` loops over as many blocks as there are: an expert without rows is not read, and
one with few rows has a small block. It cannot be differentiated backward, so derivatives are those of `_by_expert`, a
scan over all experts.
"""

import bisect
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlens._jax import inlined, jvp_of_changing, wide_dtype
from jaxlens.nn.in_stack import InStack, as_array, one_token
from jaxlens.nn.mlp import gate

SIZES, MOST_SIZES = (1, 8, 16, 32, 64, 128, 256), 6
"""How many rows a block may have, and how many of these sizes a program has: each is a loop of its own."""


@functools.partial(inlined, static_argnames=("act_fn",))
def run_chosen(
    x: Float[Array, "*t d"], indices: Int[Array, "*t c"], values: Float[Array, "*t c"],
    weights: Mapping[str, Float[Array, "..."] | InStack], act_fn: str,
) -> Float[Array, "*t d"]:  # fmt: skip
    """The sum of the outputs of each token's experts `indices`, times `values`.

    `weights` has W_gate, W_in [e d f] and W_out [e f d], and may have b_gate, b_in [e f], b_out [e d].
    """
    tokens = x.reshape(-1, x.shape[-1])
    choices = indices.reshape(-1, indices.shape[-1]), values.reshape(-1, values.shape[-1])
    return _run(act_fn, tokens, *choices, dict(weights)).reshape(x.shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _run(act_fn: str, x: Float[Array, "t d"], indices, values, weights) -> Float[Array, "t d"]:
    return _by_block(act_fn, x, indices, values, weights)


@functools.partial(_run.defjvp, symbolic_zeros=True)
def _run_jvp(act_fn: str, primals, tangents):
    return jvp_of_changing(functools.partial(_by_expert, act_fn), primals, tangents)


class _Rows:
    """The rows of all tokens, sorted by expert: `order` [r] of the rows, `counts` and `starts` [e] of the experts."""

    def __init__(self, indices: Int[Array, "t c"], n_experts: int):
        of_row = indices.reshape(-1)
        self.order = jnp.argsort(of_row, stable=True)
        self.counts = jnp.bincount(of_row, length=n_experts)
        self.starts = jnp.cumsum(self.counts) - self.counts
        self.tokens = self.order // indices.shape[1]


def _sizes(n_tokens: int, n_rows: int, n_experts: int) -> tuple[int, ...]:
    """The sizes of blocks, up to eight times the rows that an expert has on average: routers prefer some experts."""
    n = bisect.bisect_left(SIZES, min(n_tokens, 8 * n_rows / n_experts)) + 1
    return SIZES[:n][-MOST_SIZES:]


def _by_block(act_fn: str, x, indices, values, weights) -> Float[Array, "t d"]:
    """An expert has as many blocks of the largest size as it fills. One block of the next size has the rest."""
    n_experts, n_rows = _n_experts(weights), indices.size
    rows, sizes = _Rows(indices, n_experts), _sizes(len(x), n_rows, n_experts)
    full, rest = jnp.divmod(rows.counts, sizes[-1])
    given = jnp.pad(x[rows.tokens], ((0, sizes[-1]), (0, 0)))

    def add_blocks(out, smaller: int, size: int):
        n_blocks = ((smaller < rest) & (rest <= size)) + (full if size == sizes[-1] else 0)
        ends = jnp.cumsum(n_blocks)  # of the blocks of each expert

        def add_block(j, out):
            expert = jnp.sum(ends <= j)
            first = size * (j - (ends - n_blocks)[expert]) if size == sizes[-1] else sizes[-1] * full[expert]
            start, is_own = rows.starts[expert] + first, jnp.arange(size) < rows.counts[expert] - first
            result = _expert(
                act_fn, jax.lax.dynamic_slice_in_dim(given, start, size), _weights_of(weights, expert, size)
            )
            here = jax.lax.dynamic_slice_in_dim(out, start, size)
            return jax.lax.dynamic_update_slice_in_dim(out, jnp.where(is_own[:, None], result, here), start, 0)

        return jax.lax.fori_loop(0, ends[-1], add_block, out)

    out = jnp.zeros(given.shape, wide_dtype(x.dtype))
    for smaller, size in itertools.pairwise((0, *sizes)):
        out = add_blocks(out, smaller, size)
    place = jnp.argsort(rows.order).reshape(indices.shape)
    return jnp.sum(out[place] * values[..., None].astype(out.dtype), axis=1).astype(x.dtype)


def _by_expert(act_fn: str, x, indices, values, weights) -> Float[Array, "t d"]:
    """The number of rows of an expert is rounded up to one of few sizes, each of which is a branch."""
    n_experts, n_rows = _n_experts(weights), indices.size
    weights = {name: as_array(w) for name, w in weights.items()}
    rows = _Rows(indices, n_experts)
    sizes = [0, max(SIZES[1], -(-3 * n_rows // (2 * n_experts)))]  # most experts have at most the second
    while sizes[-1] < n_rows:
        sizes.append(4 * sizes[-1])
    given = jnp.pad(x[rows.tokens], ((0, sizes[-1]), (0, 0)))

    def branch(n: int):
        def run(out, weights, start, count):
            result = _expert(act_fn, jax.lax.dynamic_slice_in_dim(given, start, n), weights)
            result = jnp.where(jnp.arange(n)[:, None] < count, result, 0)  # the rest belongs to the next expert
            here = jax.lax.dynamic_slice_in_dim(out, start, n)
            return jax.lax.dynamic_update_slice_in_dim(out, here + result, start, 0)

        return run if n else lambda out, *others: out

    @jax.checkpoint
    def add_expert(out, expert):
        *_, count = expert
        return jax.lax.switch(jnp.searchsorted(jnp.array(sizes), count), list(map(branch, sizes)), out, *expert), None

    out = jnp.zeros(given.shape, wide_dtype(x.dtype))
    out, _ = jax.lax.scan(add_expert, out, (weights, rows.starts, rows.counts))
    out = out[:n_rows] * values.reshape(-1)[rows.order].astype(out.dtype)[:, None]
    return jnp.zeros(x.shape, out.dtype).at[rows.tokens].add(out).astype(x.dtype)


def _n_experts(weights: Mapping[str, Any]) -> int:
    return weights["W_in"].shape[-3]


def _weights_of(weights: Mapping[str, Array | InStack], expert, size: int) -> dict[str, Array | InStack]:
    """The weights of one expert. A block of one row is multiplied with them where they lie, but for biases."""

    def at(name: str, w: Array | InStack):
        w = (w if isinstance(w, InStack) else InStack(w, ())).at(expert)
        return w if size == 1 and name.startswith("W_") and not w.is_divided else w.array()

    return {name: at(name, w) for name, w in weights.items()}


def _expert(act_fn: str, x: Float[Array, "r d"], weights: Mapping[str, Array | InStack]) -> Float[Array, "r d"]:
    """The gated MLP of an expert, before it is multiplied by the token's choice."""

    def linear(x, W, b, dtype=None):
        W = weights[W]
        in_place = isinstance(W, InStack)
        y = one_token(x[0], W)[None] if in_place else jnp.einsum("rd,df->rf", x, W, preferred_element_type=dtype)
        return y + weights[b] if b in weights else y

    post = gate(linear(x, "W_gate", "b_gate"), linear(x, "W_in", "b_in"), act_fn)
    return linear(post, "W_out", "b_out", wide_dtype(x.dtype)).astype(wide_dtype(x.dtype))
