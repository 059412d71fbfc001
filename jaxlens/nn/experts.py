"""The chosen experts of each token: only the arithmetic that the router asks for.

Axes: r row, a token with one of its chosen experts; t token, c choice, d d_model, e expert, f d_expert.

    tokens ─ rows, sorted by expert ─ blocks of rows of one expert ─ × W ─ × choice ─ added to their tokens

Two orders of the same sums. `_by_block` loops over as many blocks as there are: an expert without rows is not read. It
cannot be differentiated backward, so derivatives are those of `_by_expert`, a scan over all experts.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

from jaxlens._jax import inlined, wide_dtype
from jaxlens.nn.in_stack import InStack, as_array
from jaxlens.nn.mlp import gate

LEAST_ROWS, MOST_ROWS = 4, 256
"""The fewest and the most rows of a block. A token alone has blocks of one row."""

AT_ONCE = 4
"""How many blocks run at once: their products do not wait for each other. Those of a token alone run one by one."""


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
    """Only what is differentiated is computed: gradients of the weights need as many products as the values."""
    leaves, structure = jax.tree.flatten(primals)
    changes = jax.tree.leaves(tangents, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))
    changing = [i for i, change in enumerate(changes) if not isinstance(change, SymbolicZero)]

    def run(*changed):
        values = list(leaves)
        for i, value in zip(changing, changed, strict=True):
            values[i] = value
        return _by_expert(act_fn, *structure.unflatten(values))

    return jax.jvp(run, [leaves[i] for i in changing], [changes[i] for i in changing])


class _Rows:
    """The rows of all tokens, sorted by expert: `order` [r] of the rows, `counts` and `starts` [e] of the experts."""

    def __init__(self, indices: Int[Array, "t c"], n_experts: int):
        of_row = indices.reshape(-1)
        self.order = jnp.argsort(of_row, stable=True)
        self.counts = jnp.bincount(of_row, length=n_experts)
        self.starts = jnp.cumsum(self.counts) - self.counts
        self.tokens = self.order // indices.shape[1]


def _block_size(n_tokens: int, n_rows: int, n_experts: int) -> int:
    """Half as many rows again as an expert has on average, so that most experts have one block."""
    if n_tokens == 1:
        return 1
    size = -(-3 * n_rows // (2 * n_experts))
    return min(max(-(-size // LEAST_ROWS) * LEAST_ROWS, LEAST_ROWS), n_tokens, MOST_ROWS)


def _by_block(act_fn: str, x, indices, values, weights) -> Float[Array, "t d"]:
    n_experts, n_rows = _n_experts(weights), indices.size
    rows, size = _Rows(indices, n_experts), _block_size(len(x), n_rows, n_experts)
    n = 1 if len(x) == 1 else AT_ONCE
    ends = jnp.cumsum(-(-rows.counts // size))  # of the blocks of each expert
    block = jnp.arange(-(-min(n_rows, n_rows // size + n_experts) // n) * n)
    expert = jnp.minimum(jnp.searchsorted(ends, block, side="right"), n_experts - 1)
    of_expert = (block - (ends - -(-rows.counts // size))[expert])[:, None] * size + jnp.arange(size)
    missing = of_expert >= rows.counts[expert][:, None]
    row = jnp.where(missing, n_rows, rows.starts[expert][:, None] + of_expert)
    token = jnp.where(missing, len(x), rows.tokens.at[row].get(mode="clip")).reshape(-1, n, size)
    value = values.reshape(-1)[rows.order.at[row].get(mode="clip")].astype(wide_dtype(x.dtype)).reshape(-1, n, size)
    expert = expert.reshape(-1, n)

    def add_blocks(j, out):
        given = x.at[token[j]].get(mode="fill", fill_value=0)
        results = [_expert(act_fn, given[i], _weights_of(weights, expert[j, i])) for i in range(n)]
        results = jnp.stack(results) * value[j][..., None]
        return out.at[token[j]].add(results, mode="drop")

    out = jnp.zeros(x.shape, wide_dtype(x.dtype))
    return jax.lax.fori_loop(0, -(-ends[-1] // n), add_blocks, out).astype(x.dtype)


def _by_expert(act_fn: str, x, indices, values, weights) -> Float[Array, "t d"]:
    """The number of rows of an expert is rounded up to one of few sizes, each of which is a branch."""
    n_experts, n_rows = _n_experts(weights), indices.size
    weights = {name: as_array(w) for name, w in weights.items()}
    rows, size = _Rows(indices, n_experts), _block_size(len(x), n_rows, n_experts)
    sizes = [0, size]
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


def _weights_of(weights: Mapping[str, Array | InStack], expert) -> dict[str, Array]:
    """The weights of one expert. One slice: a slice of the layer first would be an array of its own."""

    def at(w):
        indices, whole = ([w.i, expert], w.stack) if isinstance(w, InStack) else ([expert], w)
        first, rest = [jnp.asarray(i, jnp.int32) for i in indices], w.shape[1:]
        at = *first, *[jnp.int32(0)] * len(rest)
        return jax.lax.dynamic_slice(whole, at, (*[1] * len(first), *rest)).reshape(rest)

    return {name: at(w) for name, w in weights.items()}


def _expert(act_fn: str, x: Float[Array, "r d"], weights: Mapping[str, Array]) -> Float[Array, "r d"]:
    """The gated MLP of an expert, before it is multiplied by the token's choice."""

    def linear(x, W, b, dtype=None):
        y = jnp.einsum("rd,df->rf", x, weights[W], preferred_element_type=dtype)
        return y + weights[b] if b in weights else y

    post = gate(linear(x, "W_gate", "b_gate"), linear(x, "W_in", "b_in"), act_fn)
    return linear(post, "W_out", "b_out", wide_dtype(x.dtype))
