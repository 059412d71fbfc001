"""The Jacobian of the residual stream: how a small change before one layer arrives before another.

For every prompt it is a linear map of changes [pos d_model], rarely needed as a matrix: it is applied to vectors
forwards (`matvec`) and backwards (`rmatvec`), each at the cost of a few runs of the layers between.

Axes: b batch, p position of the change, q position where it arrives, d and c d_model, r rank, i column.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.analysis.linearise import program, wide
from jaxlens.slices import Slice
from jaxlens.span import Span
from jaxlens.transformer import HookedTransformer

COLUMNS_AT_ONCE = 64
MORE_COLUMNS = 8  # how many more directions a search for the largest ones follows


def residual_jacobian(
    model: HookedTransformer, input: Any, from_layer: int = 0, to_layer: int | None = None, *, from_pos: Any = None,
    to_pos: Any = None, attention_mask: Any = None,
) -> "ResidualJacobian":  # fmt: skip
    """The derivative of the residual stream before `to_layer` (None: where layers end) by that before `from_layer`.

    It is taken around the run of `input`. `from_pos` and `to_pos` choose positions as a `Slice` does: a number takes
    the axis away, so with numbers for both it maps [b d] to [b c].

    Raises:
        ValueError: there is no such layer, `to_layer` comes before `from_layer`, or no position is left.
        IndexError: there is no such position.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> J = residual_jacobian(model, [[1, 2, 3]], 0, from_pos=1, to_pos=-1)
        >>> J.matvec(jnp.ones((1, 8))).shape, J.dense().shape, J.svd(rank=2)[1].shape
        ((1, 8), (1, 8, 8), (1, 2))
    """
    span = Span.of(model.cfg, from_layer, to_layer)
    stop = model.cfg.n_layers if to_layer is None else to_layer % model.cfg.n_layers if to_layer < 0 else to_layer
    if stop < span.start:
        raise ValueError(f"to_layer is {to_layer}, which comes before from_layer {from_layer}; changes move forwards")
    given = model._read_input(input, attention_mask=attention_mask)
    residual = model(given.tokens, stop_at_layer=span.start, attention_mask=given.real)
    places = np.arange(residual.shape[1])
    at, to = (Slice(positions).apply(places) for positions in (from_pos, to_pos))
    if not at.size or not to.size:
        raise ValueError(f"from_pos={from_pos!r} and to_pos={to_pos!r} leave no position to go from, or to")
    return ResidualJacobian(model, (residual, given.real, at, to), (span.start, span.stop))


@dataclasses.dataclass(frozen=True)
class ResidualJacobian:
    """What `residual_jacobian` returns: a linear map of changes [b p d] to changes [b q c], prompt by prompt.

    Where a position was given as a number, that axis is not there. What it is applied to becomes an array of the
    model's dtype; a shape other than those of `shape` is a ValueError.
    """

    model: HookedTransformer
    around: tuple[Array, ...]
    layers: tuple[int, int]

    @property
    def shape(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of what it gives and of what it takes."""
        residual, _, at, to = self.around
        return residual[:, to].shape, residual[:, at].shape

    def matvec(self, change: Float[Array, "b p d"]) -> Float[Array, "b q c"]:
        """What becomes of a change, to first order."""
        return push(self.model, self.around, self._fitting(change, self.shape[1]), layers=self.layers)

    def rmatvec(self, gradient: Float[Array, "b q c"]) -> Float[Array, "b p d"]:
        """The gradient by the change, from the gradient by what becomes of it: the transpose."""
        return pull(self.model, self.around, self._fitting(gradient, self.shape[0]), layers=self.layers)

    def _fitting(self, given: Any, shape: tuple[int, ...]) -> Array:
        given = jnp.asarray(given, self.around[0].dtype)
        if given.shape != shape:
            raise ValueError(f"the Jacobian was given the shape {given.shape}; wanted {shape}, one for every prompt")
        return given

    def dense(self) -> Float[Array, "b q c p d"]:
        """The matrix of every prompt."""
        return dense(self.model, self.around, layers=self.layers)

    def svd(
        self, rank: int, n_iterations: int = 8, seed: int = 0
    ) -> tuple[Float[Array, "b r q c"], Float[Array, "b r"], Float[Array, "b r p d"]]:
        """The directions that grow most: where they arrive, by how much they grow, and where they come from.

        By subspace iteration (Halko et al. 2011, arXiv 0909.4061), without the matrix. Growth is found from below: what
        is not told apart after `n_iterations` are directions that grow almost equally.

        Raises:
            ValueError: the rank is no positive whole number, or more than the map has.
        """
        gives, takes = self.shape
        most = min(int(np.prod(shape[1:])) for shape in (gives, takes))
        if not isinstance(rank, int | np.integer) or not 1 <= rank <= most:
            raise ValueError(f"rank is {rank}; wanted 1 to {most}, the smaller side of the map of one prompt")
        columns = min(rank + MORE_COLUMNS, most)
        first = wide(jnp.asarray(np.random.default_rng(seed).normal(size=(columns, *takes)), self.around[0].dtype))
        left, growth, right = largest(self.model, self.around, first, n_iterations, layers=self.layers)
        return left[:, :rank], growth[:, :rank], right[:, :rank]


# --- compiled


def _run(model: HookedTransformer, around: tuple[Array, ...], layers: tuple[int, int]) -> tuple[Callable, Array]:
    """The run between the layers as a function of a change, and no change."""
    residual, real, at, to = around

    def run(change):
        moved = residual.at[:, at].add(change)
        return model(moved, start_at_layer=layers[0], stop_at_layer=layers[1], attention_mask=real)[:, to]

    return run, jnp.zeros_like(residual[:, at])


@program
def push(model: HookedTransformer, around: tuple[Array, ...], change: Array, *, layers: tuple[int, int]) -> Array:
    """The Jacobian times a change."""
    run, nothing = _run(model, around, layers)
    return jax.jvp(run, (nothing,), (change,))[1]


@program
def pull(model: HookedTransformer, around: tuple[Array, ...], gradient: Array, *, layers: tuple[int, int]) -> Array:
    """The Jacobian's transpose times a gradient."""
    run, nothing = _run(model, around, layers)
    return jax.vjp(run, nothing)[1](gradient)[0]


@program
def dense(model: HookedTransformer, around: tuple[Array, ...], *, layers: tuple[int, int]) -> Float[Array, "b q c p d"]:
    """The Jacobian as a matrix: all prompts' columns together, some at a time."""
    run, nothing = _run(model, around, layers)
    _, column = jax.linearize(run, nothing)
    size = nothing[0].size

    def at(i):
        one = jnp.zeros(size, nothing.dtype).at[i].set(1).reshape(nothing.shape[1:])
        return column(jnp.broadcast_to(one, nothing.shape))

    n_times = -(-size // COLUMNS_AT_ONCE)
    numbers = jnp.arange(n_times * -(-size // n_times)).reshape(n_times, -1)  # a number past the end sets nothing
    columns = jax.lax.map(jax.vmap(at), numbers)
    columns = columns.reshape(-1, *columns.shape[2:])[:size]
    return jnp.moveaxis(columns, 0, -1).reshape(*columns.shape[1:], *nothing.shape[1:])


@program
def largest(
    model: HookedTransformer, around: tuple[Array, ...], first: Float[Array, "i b p d"], n_iterations, *,
    layers: tuple[int, int],
) -> tuple[Array, Array, Array]:  # fmt: skip
    """The largest singular values and their directions, in a subspace that begins with `first`."""
    run, nothing = _run(model, around, layers)
    there, push = jax.linearize(run, nothing)
    pull = jax.linear_transpose(push, nothing)

    def applied(apply, shape, x):  # columns [b n i] to columns [b m i]
        columns = wide(jax.vmap(apply)(jnp.moveaxis(x, -1, 0).reshape(-1, *shape).astype(nothing.dtype)))
        return jnp.moveaxis(columns.reshape(x.shape[-1], len(x), -1), 0, -1)

    def forwards(x):
        return applied(push, nothing.shape, x)

    def step(_, x):
        x, _ = jnp.linalg.qr(forwards(x))
        x, _ = jnp.linalg.qr(applied(lambda gradient: pull(gradient)[0], there.shape, x))
        return x

    start, _ = jnp.linalg.qr(jnp.moveaxis(first.reshape(len(first), len(nothing), -1), 0, -1))
    right = jax.lax.fori_loop(0, n_iterations, step, start)
    left, growth, mixed = jnp.linalg.svd(forwards(right), full_matrices=False)
    right = jnp.einsum("bni,bri->brn", right, mixed)
    left = jnp.swapaxes(left, 1, 2)
    return left.reshape(*growth.shape, *there.shape[1:]), growth, right.reshape(*growth.shape, *nothing.shape[1:])
