"""Terms of the residual stream: what embeddings, layers, heads, neurons and biases write, and their projections.

Axes: l layer, u unit (a head or a neuron), h activation of a unit (d_head for a head, 1 for a neuron), d d_model, o
direction of a projection, c component (a row of the result); "..." is batch and position, whichever there are.

    unit:  activations ─ W ─ (norm after attention or MLP) ─ + ─ residual stream ─ (norm before a layer) ─ · directions
                                                     bias ───┘

Norms are at the scales of the run, so every step is linear. Projections are computed from the right: the directions are
pulled back through the norms and W first. So no vector of length d_model is stored per unit and position.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens._jax import wide
from jaxlens._jax.explicit_axes import on_any_mesh
from jaxlens.model.cache.linear_norm import IDENTITY, LinearNorm, NormChain


def data(cls):
    """A frozen dataclass that is a pytree."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@data
class Reading:
    """A norm and then a projection onto directions [o d], or [... o d] for each batch entry and position.

    With a `single` direction, `stacked` drops the axis o.
    """

    norm: LinearNorm = IDENTITY
    onto: Float[Array, "*rows o d"] | None = None
    single: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def along(cls, project: Any, d_model: int, norm: LinearNorm = IDENTITY) -> "Reading":
        """The reading for `project_output_onto`: None, [d], [d o], or [... d o] for each batch entry and position."""
        if project is None:
            return cls(norm)
        project = jnp.asarray(project)
        if project.ndim == 0 or project.shape[max(-2, -project.ndim)] != d_model:
            raise ValueError(f"project_output_onto has shape {project.shape}; expected [{d_model}] or [{d_model}, n]")
        return cls(norm, project[None] if project.ndim == 1 else jnp.swapaxes(project, -1, -2), project.ndim == 1)

    def rows(self, x: Float[Array, "c ... d"]) -> Float[Array, "c ... o"]:
        """The result for terms that are vectors."""
        if self.onto is None:
            return self.norm.apply(x)
        return self.norm.divide(jnp.einsum("c...d,...od->c...o", x, self.norm.pull_back(wide(self.onto))))

    def units(self, activations, W, after: LinearNorm | NormChain) -> Float[Array, "u ... o"]:
        """The result for the units of a layer. Without W, the activations are already what the units write."""
        if self.onto is None:
            written = jnp.moveaxis(activations, -2, 0) if W is None else jnp.einsum("...uh,uhd->u...d", activations, W)
            return self.norm.apply(after.apply(written))
        onto = after.pull_back(self.norm.pull_back(wide(self.onto)))
        if W is None:
            along = jnp.einsum("...ud,...od->u...o", activations, onto)
        else:  # a single product for all directions, whose result has the layout of W, so that W is not transposed
            *rows, o, d = onto.shape
            pulled = jnp.einsum("uhd,rd->uhr", W, onto.reshape(-1, d)).reshape(*W.shape[:2], *rows, o)
            along = jnp.einsum("...uh,uh...o->u...o", activations, pulled)
        return self.norm.divide(after.divide(along))


class Term(Protocol):
    """Components of the residual stream. `read` applies a reading to each and returns a row per component."""

    def read(self, reading: Reading) -> Float[Array, "c ... o"]: ...


@data
class Rows:
    """Precomputed vectors. Several arrays are interleaved row by row."""

    columns: tuple[Float[Array, "c ... d"], ...]

    def read(self, reading: Reading) -> Float[Array, "c ... o"]:
        interleaved = jnp.stack(self.columns, axis=1)
        return reading.rows(interleaved.reshape(-1, *self.columns[0].shape[1:]))


@data
class Units:
    """The heads or neurons of a stack of layers: their activations, their output weights, and the norms after them."""

    activations: Float[Array, "l ... u h"]
    W: Float[Array, "l *u h d"] | Float[Array, "l *u d"] | None
    after: LinearNorm | NormChain

    def written(self, reading: Reading) -> Float[Array, "l u ... o"]:
        n_layers, (u, h) = len(self.activations), self.activations.shape[-2:]
        W = None if self.W is None else self.W.reshape(n_layers, u, h, -1)
        return jax.vmap(reading.units)(self.activations, W, self.after)


@data
class UnitsByLayer:
    """The units of several stacks in layer order, as runs of (stack, first row, last row + 1)."""

    stacks: tuple[Units, ...]
    runs: tuple[tuple[int, int, int], ...] = dataclasses.field(metadata={"static": True})

    def read(self, reading: Reading) -> Float[Array, "c ... o"]:
        written = [units.written(reading) for units in self.stacks]
        runs = [written[stack][first:last] for stack, first, last in self.runs]
        flat = [run.reshape(-1, *run.shape[2:]) for run in runs]
        return flat[0] if len(flat) == 1 else jnp.concatenate(flat)


@data
class Biases:
    """The sum of all biases, including those of norms, as a single row."""

    biases: tuple[tuple[Float[Array, "l d"], LinearNorm | NormChain], ...]
    like: Float[Array, "... d"]

    def read(self, reading: Reading) -> Float[Array, "c ... o"]:
        total = jnp.zeros_like(self.like)
        for b, after in self.biases:
            total = total + jnp.sum(carried(b, after), axis=0)
        return reading.rows(total[None])


@jax.jit
def stacked(terms: tuple[Term, ...], reading: Reading, whole: Float[Array, "... d"] | None = None):
    """All components, [c ... d] or [c ... o]. With `whole`, a last row holds `whole` minus their sum."""
    rows = [term.read(reading) for term in terms]
    if whole is not None:
        rows.append(reading.rows(whole[None]) - sum(jnp.sum(row, axis=0, keepdims=True) for row in rows))
    stack = rows[0] if len(rows) == 1 else jnp.concatenate(rows)
    return stack[..., 0] if reading.single else stack


@jax.jit
def carried(x: Float[Array, "l ..."], after: LinearNorm | NormChain) -> Float[Array, "l ..."]:
    """Applies the norms of `after` to terms of several layers, layer by layer."""
    return jax.vmap(type(after).apply)(after, x)


@on_any_mesh
@jax.jit
def head_results(z: Float[Array, "l ... n h"], W_O: Float[Array, "l n h d"]) -> Float[Array, "l ... n d"]:
    """What each head writes, before the norm after attention: `hook_result`."""
    return jnp.einsum("l...nh,lnhd->l...nd", z, W_O)


def runs_of(stacks: Sequence[Sequence[int]]) -> tuple[tuple[int, int, int], ...]:
    """The layers of several stacks in layer order, as runs of (stack, first row, last row + 1).

    Example:
        >>> runs_of([(0, 3, 4), (1, 2)])
        ((0, 0, 1), (1, 0, 2), (0, 1, 3))
    """
    runs: list[tuple[int, int, int]] = []
    for _, stack, row in sorted((layer, i, row) for i, layers in enumerate(stacks) for row, layer in enumerate(layers)):
        if runs and runs[-1][0] == stack:
            runs[-1] = (stack, runs[-1][1], row + 1)
        else:
            runs.append((stack, row, row + 1))
    return tuple(runs)
