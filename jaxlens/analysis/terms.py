"""Terms of the residual stream: what embeddings, layers, heads, neurons and biases write, and how it is read.

Axes: l layer, u unit (a head, or a neuron), h what a unit holds at a position (d_head numbers, or one), d d_model,
o direction that is read along, c component (a row of the result); "..." is batch and position, whichever there are.

    unit:  held ─ W ─ (norm after attention or MLP) ─ + ─ residual stream ─ (norm of the reader) ─ · directions
                                              bias ───┘

Norms stand at the scales that the run had, so all of this is linear. Read along directions, it is done from the right:
the directions go through the norms and through W first, and a vector of d_model numbers per unit and position is never
made.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens.analysis.final_norm import IDENTITY, Chain, FixedNorm

einsum = functools.partial(jnp.einsum, precision="highest")  # sums are checked to 1e-5, on accelerators too


def data(cls):
    """A frozen dataclass that is a pytree."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@data
class Reading:
    """How terms are read: through a norm, and along directions [o d] if there are any (or [... o d], some per row).

    With a `single` direction the results have no axis for it.
    """

    norm: FixedNorm = IDENTITY
    onto: Float[Array, "*rows o d"] | None = None
    single: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def along(cls, project: Any, d_model: int, norm: FixedNorm = IDENTITY) -> "Reading":
        """Along a projection as TransformerLens gives it: [d], [d o] or None; or some for each row, [... d o].

        Raises:
            ValueError: its vectors are not of length d_model.
        """
        if project is None:
            return cls(norm)
        project = jnp.asarray(project)
        if project.ndim == 0 or project.shape[max(-2, -project.ndim)] != d_model:
            raise ValueError(
                f"project_output_onto has shape {project.shape}; wanted [d_model = {d_model}] or [d_model, outputs]"
            )
        return cls(norm, project[None] if project.ndim == 1 else jnp.swapaxes(project, -1, -2), project.ndim == 1)

    def rows(self, x: Float[Array, "c ... d"]) -> Float[Array, "c ... o"]:
        """Terms that are there as vectors."""
        if self.onto is None:
            return self.norm.of(x)
        return self.norm.divide(einsum("c...d,...od->c...o", x, self.norm.before(_wide(self.onto))))

    def units(self, held, W, after: FixedNorm | Chain) -> Float[Array, "u ... o"]:
        """What the units of one layer write. Without W they hold it already, before the norm after them."""
        if self.onto is None:
            written = jnp.moveaxis(held, -2, 0) if W is None else einsum("...uh,uhd->u...d", held, W)
            return self.norm.of(after.of(written))
        onto = after.before(self.norm.before(_wide(self.onto)))
        if W is None:
            along = einsum("...ud,...od->u...o", held, onto)
        else:  # all directions in one product whose result is laid out as W is, so that no transpose of W is made
            *rows, o, d = onto.shape
            read = einsum("uhd,rd->uhr", W, onto.reshape(-1, d)).reshape(*W.shape[:2], *rows, o)
            along = einsum("...uh,uh...o->u...o", held, read)
        return self.norm.divide(after.divide(along))


def _wide(x):
    """In float32 at least: sums of many terms are not rounded to half precision."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Term(Protocol):
    """Something that wrote to the residual stream; `read` gives a row for each of its components."""

    def read(self, reading: Reading) -> Float[Array, "c ... o"]: ...


@data
class Rows:
    """Vectors that are there as they are; of several columns the rows are taken in turn."""

    columns: tuple[Float[Array, "c ... d"], ...]

    def read(self, reading: Reading) -> Float[Array, "c ... o"]:
        taken_in_turn = jnp.stack(self.columns, axis=1)
        return reading.rows(taken_in_turn.reshape(-1, *self.columns[0].shape[1:]))


@data
class Units:
    """The heads or neurons of a stack's layers: what they hold, what they write it with, the norm that follows."""

    held: Float[Array, "l ... u h"]
    W: Float[Array, "l *u h d"] | Float[Array, "l *u d"] | None
    after: FixedNorm | Chain

    def written(self, reading: Reading) -> Float[Array, "l u ... o"]:
        n_layers, (u, h) = len(self.held), self.held.shape[-2:]
        W = None if self.W is None else self.W.reshape(n_layers, u, h, -1)
        return jax.vmap(reading.units)(self.held, W, self.after)


@data
class UnitsByLayer:
    """The units of several stacks in the order of their layers: runs of (stack, first row, last row + 1)."""

    stacks: tuple[Units, ...]
    runs: tuple[tuple[int, int, int], ...] = dataclasses.field(metadata={"static": True})

    def read(self, reading: Reading) -> Float[Array, "c ... o"]:
        written = [units.written(reading) for units in self.stacks]
        runs = [written[stack][first:last] for stack, first, last in self.runs]
        flat = [run.reshape(-1, *run.shape[2:]) for run in runs]
        return flat[0] if len(flat) == 1 else jnp.concatenate(flat)


@data
class Biases:
    """The sum of what some layers' biases add, norms' biases included: one row."""

    biases: tuple[tuple[Float[Array, "l d"], FixedNorm | Chain], ...]
    like: Float[Array, "... d"]

    def read(self, reading: Reading) -> Float[Array, "c ... o"]:
        total = jnp.zeros_like(self.like)
        for b, after in self.biases:
            total = total + jnp.sum(carried(b, after), axis=0)
        return reading.rows(total[None])


@jax.jit
def stacked(terms: tuple[Term, ...], reading: Reading, whole: Float[Array, "... d"] | None = None):
    """All components [c ... d], or [c ... o]; if the `whole` is given, a last row holds what they leave of it."""
    rows = [term.read(reading) for term in terms]
    if whole is not None:
        rest = reading.rows(whole[None]) - sum(jnp.sum(row, axis=0, keepdims=True) for row in rows)
        rows.append(rest)
    stack = rows[0] if len(rows) == 1 else jnp.concatenate(rows)
    return stack[..., 0] if reading.single else stack


@jax.jit
def carried(x: Float[Array, "l ..."], passed: FixedNorm | Chain) -> Float[Array, "l ..."]:
    """Terms of several layers behind the norms that each of them passes."""
    return jax.vmap(type(passed).of)(passed, x)


@jax.jit
def write_heads(z: Float[Array, "l ... n h"], W_O: Float[Array, "l n h d"]) -> Float[Array, "l ... n d"]:
    """What each head alone writes, before the norm after attention."""
    return einsum("l...nh,lnhd->l...nd", z, W_O)


def runs_of(stacks: Sequence[Sequence[int]]) -> tuple[tuple[int, int, int], ...]:
    """Where the layers of several stacks lie, in the order of the layers: runs of (stack, first row, last row + 1).

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
