"""The Jacobian of the residual stream: the effect of a small change before one layer on the stream before another.

For every prompt it is a linear map of changes [pos d_model]. It is rarely needed as a matrix: products with vectors,
forwards (`matvec`) and backwards (`rmatvec`), each cost a few runs of the layers in between.

Axes: b batch, p position of the change, q position of its effect, d and c d_model, r rank, i column.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens._jax import wide
from jaxlens.analysis.compiled import compiled
from jaxlens.analysis.inputs import read_single
from jaxlens.hooks.positions import shortened
from jaxlens.hooks.slice import Slice
from jaxlens.model.lengths import extended, program_length
from jaxlens.model.request import LayerRange
from jaxlens.model.transformer import HookedTransformer

COLUMNS_AT_ONCE = 64
EXTRA_COLUMNS = 8  # directions in the subspace iteration in addition to `rank`


def residual_jacobian(
    model: HookedTransformer, input: Any, from_layer: int = 0, to_layer: int | None = None, *, from_pos: Any = None,
    to_pos: Any = None, attention_mask: Any = None,
) -> "ResidualJacobian":  # fmt: skip
    """The derivative of the residual stream before `to_layer` with respect to that before `from_layer`, at a run.

    `to_layer` None is the end of the last layer. `from_pos` and `to_pos` select positions as a `Slice` does. A number
    removes the axis, so with two numbers the Jacobian maps [b d] to [b c].

    Raises:
        ValueError: There is no such layer, `to_layer` comes before `from_layer`, or no position is selected.
        IndexError: There is no such position.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> J = residual_jacobian(model, [[1, 2, 3]], 0, from_pos=1, to_pos=-1)
        >>> J.matvec(jnp.ones((1, 8))).shape, J.dense().shape, J.svd(rank=2)[1].shape
        ((1, 8), (1, 8, 8), (1, 2))
    """
    layers = LayerRange.of(model.cfg, from_layer, to_layer)
    if LayerRange.of(model.cfg, None, to_layer).stop < layers.start:
        raise ValueError(f"to_layer is {to_layer}, before from_layer {from_layer}; changes affect later layers only")
    inputs = read_single(model, input, attention_mask)
    n_ctx = model.cfg.n_ctx
    (start, n_start), (end, n_end) = (_positions(which, inputs.n_positions, n_ctx) for which in (from_pos, to_pos))
    if n_start == 0 or n_end == 0:
        raise ValueError(f"from_pos={from_pos!r} or to_pos={to_pos!r} selects no position")
    residual = model(inputs.tokens, stop_at_layer=layers.start, attention_mask=inputs.mask)
    return ResidualJacobian(model, (residual, inputs.mask, start, end), (layers.start, layers.stop), (n_start, n_end))


def _positions(which: Any, n: int, n_ctx: int) -> tuple[np.ndarray, int | None]:
    """The selected of n positions, and their number (None: one without an axis).

    After those of a slice come positions that do not exist, so that prompts of many lengths share a program.
    """
    selection = Slice(which)
    positions = selection.apply(np.arange(n))
    if selection.mode not in ("identity", "slice") or not positions.size:
        return positions, len(positions) if positions.ndim else None
    n_more = program_length(len(positions), n_ctx) - len(positions)
    return np.pad(positions, (0, n_more), constant_values=n_ctx), len(positions)


@dataclasses.dataclass(frozen=True, eq=False)
class ResidualJacobian:
    """The result of `residual_jacobian`: a linear map of changes [b p d] to changes [b q c], for each prompt.

    A position that was given as a number has no axis. Vectors are converted to the model's dtype. A vector whose shape
    is not in `shape` raises a ValueError. `around` holds the residual stream and mask of the run, and the positions of
    changes and effects, all with padding. `counts` are the numbers of positions without padding, None for no axis.
    """

    model: HookedTransformer
    around: tuple[Array, ...]
    layers: tuple[int, int]
    counts: tuple[int | None, int | None]

    @property
    def shape(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape of the output, and the shape of the input.

        Results are cut along axis 1. Without an axis of positions it is that of d_model, and nothing is cut.
        """
        n_prompts, _, d_model = self.around[0].shape
        input, output = ((n_prompts, *([] if count is None else [count]), d_model) for count in self.counts)
        return output, input

    def matvec(self, change: Float[Array, "b p d"]) -> Float[Array, "b q c"]:
        """The effect of a change, to first order."""
        output, input = self.shape
        effect = push(self.model, self.around, self._extended(change, input, self.around[2]), layers=self.layers)
        return shortened(effect, (1,), output[1])

    def rmatvec(self, gradient: Float[Array, "b q c"]) -> Float[Array, "b p d"]:
        """The transpose: the gradient with respect to the change, from that with respect to its effect."""
        output, input = self.shape
        change = pull(self.model, self.around, self._extended(gradient, output, self.around[3]), layers=self.layers)
        return shortened(change, (1,), input[1])

    def _extended(self, vector: Any, shape: tuple[int, ...], positions: Array) -> Array:
        """A vector, checked, with zeros at the padding."""
        vector = jnp.asarray(vector, self.around[0].dtype)
        if vector.shape != shape:
            raise ValueError(f"the vector has shape {vector.shape}; expected {shape}, one vector per prompt")
        return extended(vector, (1,), len(positions)) if positions.ndim else vector

    def dense(self) -> Float[Array, "b q c p d"]:
        """The Jacobian of every prompt as a matrix."""
        output, input = self.shape
        matrix = shortened(dense(self.model, self.around, layers=self.layers), (1,), output[1])
        return shortened(matrix, (len(output),), input[1])

    def svd(
        self, rank: int, n_iterations: int = 8, seed: int = 0
    ) -> tuple[Float[Array, "b r q c"], Float[Array, "b r"], Float[Array, "b r p d"]]:
        """The largest singular values with their vectors: left vectors, singular values, right vectors.

        Subspace iteration (Halko et al. 2011, arXiv 0909.4061) computes them without the matrix. The
        computed values are lower bounds of the exact ones. Directions with almost equal singular values need more
        iterations.

        Raises:
            ValueError: `rank` is not a positive integer, or exceeds the largest rank that the map can have.
        """
        output, input = self.shape
        largest_rank = min(int(np.prod(shape[1:])) for shape in (output, input))
        if not isinstance(rank, int | np.integer) or not 1 <= rank <= largest_rank:
            raise ValueError(f"rank is {rank}; expected 1 to {largest_rank}, the smaller side of one prompt's matrix")
        columns = min(rank + EXTRA_COLUMNS, largest_rank)
        first, positions = np.random.default_rng(seed).normal(size=(columns, *input)), self.around[2]
        first = extended(first, (2,), len(positions)) if positions.ndim else first
        first = wide(jnp.asarray(first, self.around[0].dtype))
        left, values, right = largest(self.model, self.around, first, n_iterations, layers=self.layers)
        left, right = shortened(left, (2,), output[1]), shortened(right, (2,), input[1])
        return left[:, :rank], values[:, :rank], right[:, :rank]


# --- compiled


def _run(model: HookedTransformer, around: tuple[Array, ...], layers: tuple[int, int]) -> tuple[Callable, Array]:
    """The run of the layers as a function of a change, and a change of zero."""
    residual, mask, start, end = around

    def run(change):
        changed = residual.at[:, start].add(change)
        output = model(changed, start_at_layer=layers[0], stop_at_layer=layers[1], attention_mask=mask)
        return output.at[:, end].get(mode="fill", fill_value=0)

    return run, jnp.zeros_like(residual[:, start])


@compiled
def push(model: HookedTransformer, around: tuple[Array, ...], change: Array, *, layers: tuple[int, int]) -> Array:
    """The Jacobian times a change."""
    run, zero = _run(model, around, layers)
    return jax.jvp(run, (zero,), (change,))[1]


@compiled
def pull(model: HookedTransformer, around: tuple[Array, ...], gradient: Array, *, layers: tuple[int, int]) -> Array:
    """The Jacobian's transpose times a gradient."""
    run, zero = _run(model, around, layers)
    return jax.vjp(run, zero)[1](gradient)[0]


@compiled
def dense(model: HookedTransformer, around: tuple[Array, ...], *, layers: tuple[int, int]) -> Float[Array, "b q c p d"]:
    """The Jacobian as a matrix, computed a few columns of all prompts at a time."""
    run, zero = _run(model, around, layers)
    _, push = jax.linearize(run, zero)
    size = zero[0].size

    def column(i):
        unit = jnp.zeros(size, zero.dtype).at[i].set(1).reshape(zero.shape[1:])
        return push(jnp.broadcast_to(unit, zero.shape))

    n_times = -(-size // COLUMNS_AT_ONCE)
    indices = jnp.arange(n_times * -(-size // n_times)).reshape(n_times, -1)  # indices past the end set nothing
    columns = jax.lax.map(jax.vmap(column), indices)
    columns = columns.reshape(-1, *columns.shape[2:])[:size]
    return jnp.moveaxis(columns, 0, -1).reshape(*columns.shape[1:], *zero.shape[1:])


@compiled
def largest(
    model: HookedTransformer, around: tuple[Array, ...], first: Float[Array, "i b p d"], n_iterations, *,
    layers: tuple[int, int],
) -> tuple[Array, Array, Array]:  # fmt: skip
    """The largest singular values with their vectors, by subspace iteration from the directions `first`."""
    run, zero = _run(model, around, layers)
    output, push = jax.linearize(run, zero)
    pull = jax.linear_transpose(push, zero)

    def applied(apply, shape, x):  # columns [b n i] to columns [b m i]
        columns = wide(jax.vmap(apply)(jnp.moveaxis(x, -1, 0).reshape(-1, *shape).astype(zero.dtype)))
        return jnp.moveaxis(columns.reshape(x.shape[-1], len(x), -1), 0, -1)

    def forwards(x):
        return applied(push, zero.shape, x)

    def step(_, x):
        x, _ = jnp.linalg.qr(forwards(x))
        x, _ = jnp.linalg.qr(applied(lambda gradient: pull(gradient)[0], output.shape, x))
        return x

    start, _ = jnp.linalg.qr(jnp.moveaxis(first.reshape(len(first), len(zero), -1), 0, -1))
    right = jax.lax.fori_loop(0, n_iterations, step, start)
    left, values, mixed = jnp.linalg.svd(forwards(right), full_matrices=False)
    right = jnp.einsum("bni,bri->brn", right, mixed)
    left = jnp.swapaxes(left, 1, 2)
    return left.reshape(*values.shape, *output.shape[1:]), values, right.reshape(*values.shape, *zero.shape[1:])
