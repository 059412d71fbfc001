"""Compiled loops over layers of a stack, whose bounds are arguments, and their derivative.

A loop with traced bounds runs any layers of a stack with one program, but JAX cannot differentiate it backward. So
`differentiable_loop` keeps the input of each layer and has a loop for the backward pass, which runs each layer again.

    forward     x0 ─ layer 0 ─ x1 ─ layer 1 ─ x2 ─ …      keeps x0, x1, …
    backward    g0 ─ layer 0ᵀ ─ g1 ─ layer 1ᵀ ─ g2 ─ …    linearises each layer at its input
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jaxlens._jax import full_precision, is_traced
from jaxlens.hooks.plan import SiteHook, zero_probe
from jaxlens.hooks.positions import Positions
from jaxlens.hooks.tap import Tap
from jaxlens.nn.block import Block
from jaxlens.nn.in_stack import layer_in_stack
from jaxlens.nn.kv_cache import LayerMemory
from jaxlens.nn.module import arrays
from jaxlens.nn.sequence import SequenceInfo

Rows = dict[str, jax.Array]
"""A value per site, with a row for each layer."""

Memory = tuple[jax.Array, jax.Array] | None
"""The keys and values of a KV cache, for all layers."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What a loop depends on besides arrays: the layers of the stack, and the sites to capture.

    Captured values are written to `n_rows` rows: as many as the stack has layers, or one for a single layer.
    """

    layers: tuple[int, ...]
    wanted: frozenset[str]
    n_rows: int

    def row(self, i: Any, first: Any) -> Any:
        """The row of the layer with index i in the stack, in a loop that starts at `first`."""
        return i - first if self.n_rows == 1 else i


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LoopInputs:
    """The inputs of a loop besides the residual stream.

    `stack` and `probes` have a row per layer, and `shared` is the same in all layers. A probe is added to the value at
    its site before that is captured: the derivative with respect to the probe is the gradient at the site.
    """

    stack: Block
    shared: tuple[SequenceInfo, tuple[SiteHook, ...], Positions | None]
    probes: Rows

    def at(self, i: Any, row: Any) -> "LoopInputs":
        """The inputs of one layer, at index i of the stack. Its weights are `nnx.Param`s, as those of the stack."""
        return LoopInputs(layer_at(self.stack, i), self.shared, layer_at(self.probes, row))

    def in_stack(self, i: Any, row: Any, one_token: bool) -> "LoopInputs":
        """The same, but weights stay in the stack if they are read there (`layer_in_stack`)."""
        return LoopInputs(layer_in_stack(self.stack, i, one_token), self.shared, layer_at(self.probes, row))


def layer_at(rows: Any, i: Any) -> Any:
    """Row i of every array."""
    return jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, i, keepdims=False), rows)


def set_row(rows: Any, value: Any, i: Any) -> Any:
    """The arrays with `value` as row i."""
    return jax.tree.map(lambda w, value: jax.lax.dynamic_update_index_in_dim(w, value, i, 0), rows, value)


def step(block: Block, x, layer, info: SequenceInfo, tap: Tap, memory: Memory) -> tuple[jax.Array, Rows, Memory]:
    """A layer, what its tap captures, and the memory with the keys and values of the new tokens."""
    tap.columns = info.columns
    tap.memory = None if memory is None else LayerMemory(memory, layer, info.start, not info.sees_slots)
    x = arrays(block)(x, info.at_layer(layer), tap)
    return x, tap.captured, None if memory is None else tap.memory.rows


def _step_at(program: Program, given: LoopInputs, x, i, memory: Memory = None) -> tuple[jax.Array, Rows, Memory]:
    info, hooks, positions = given.shared
    hooks = (*hooks, *(zero_probe(site, zero) for site, zero in given.probes.items()))
    layer = jnp.array(program.layers, jnp.int32)[i]
    return step(given.stack, x, layer, info, Tap(hooks, program.wanted, layer, positions), memory)


def new_rows(values: Any, n: int) -> Any:
    """Zeros for n values like these, which may be only shapes."""
    return jax.tree.map(lambda value: jnp.zeros((n, *value.shape), value.dtype), values)


# --- forward


@functools.partial(jax.jit, static_argnums=0)
def new_buffers(program: Program, inputs: LoopInputs, x, memory: Memory = None) -> Rows:
    """Zeros for the captured values of a loop."""
    return new_rows(jax.eval_shape(lambda: _step_at(program, inputs.at(0, 0), x, 0, memory)[1]), program.n_rows)


def _forward(program: Program, inputs: LoopInputs, x, buffers: Rows, first, last, keep: bool, memory: Memory = None):
    """The loop: the residual stream, captured values in `buffers`, if `keep` the input of each layer, the memory."""
    kept = new_rows(x, 1 if program.n_rows == 1 else len(program.layers)) if keep else None

    def body(i, carry):
        x, buffers, kept, memory = carry
        row = program.row(i, first)
        kept = set_row(kept, x if keep else None, row)
        given = inputs.at(i, row) if keep else inputs.in_stack(i, row, one_token=x.shape[:2] == (1, 1))
        x, captured, memory = _step_at(program, given, x, i, memory)
        return x, set_row(buffers, captured, row), kept, memory

    return jax.lax.fori_loop(first, last, body, (x, buffers, kept, memory))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(3, 6))
def compiled_loop(program: Program, inputs: LoopInputs, x, buffers: Rows, first, last, memory: Memory = None):
    """Layers first..last-1 of a stack: the residual stream after them, the captured values in `buffers`, the memory."""
    x, buffers, _, memory = _forward(program, inputs, x, buffers, first, last, False, memory)
    return x, buffers, memory


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
def compiled_layer(program: Program, inputs: LoopInputs, x, i, memory: Memory = None):
    """The layer with index i in a stack: the residual stream after it, the captured values, the memory."""
    return _step_at(program, inputs.in_stack(i, 0, one_token=x.shape[:2] == (1, 1)), x, i, memory)


# --- backward


def differentiable_loop(program: Program, inputs: LoopInputs, x, buffers: Rows, first, last, memory: None = None):
    """`compiled_loop` with a derivative, for reverse mode and without a memory. `buffers` are not donated."""
    leaves, structure = jax.tree.flatten(inputs)  # custom_vjp puts objects that are no arrays in their place
    return *_differentiable(program, structure, leaves, x, buffers, first, last), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _differentiable(program: Program, structure, leaves: list, x, buffers: Rows, first, last):
    return _keeping_loop(program, structure.unflatten(leaves), x, buffers, first, last)[:2]


_keeping_loop = jax.jit(functools.partial(_forward, keep=True), static_argnums=0)
_FIELDS = ("stack", "shared", "probes")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Residuals:
    """What the backward pass needs. `fields` are those of the inputs whose gradients are needed.

    `kept` is the input of each layer.
    """

    fields: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    inputs: LoopInputs
    kept: jax.Array
    first: Any
    last: Any


def _loop_fwd(program: Program, structure, leaves, *others):
    perturbed = iter([leaf.perturbed for leaf in leaves])
    sizes = [field.num_leaves for field in structure.children()]
    needed = [any(list(itertools.islice(perturbed, size))) for size in sizes]
    leaves, (x, buffers, first, last) = jax.tree.map(lambda leaf: leaf.value, (leaves, others))
    inputs = structure.unflatten(leaves)
    if is_traced(inputs, x, buffers):  # differentiated again: known bounds make it a scan
        output, values, kept, _ = _forward(program, inputs, x, buffers, int(first), int(last), keep=True)
    else:
        output, values, kept, _ = _keeping_loop(program, inputs, x, buffers, first, last)
    return (output, values), _Residuals(tuple(itertools.compress(_FIELDS, needed)), inputs, kept, first, last)


def _loop_bwd(program: Program, structure, residuals: _Residuals, gradients):
    gradient, of_values = _without_symbols(gradients[0]), gradients[1]
    of_floats = {
        site: of_value for site, of_value in of_values.items()
        if not isinstance(of_value, SymbolicZero) and of_value.dtype != jax.dtypes.float0
    }  # fmt: skip
    with full_precision(residuals.inputs.stack.cfg.dtype):
        if is_traced(residuals, gradient, of_floats):
            known = dataclasses.replace(residuals, first=int(residuals.first), last=int(residuals.last))
            sums, gradient, of_floats = _backward(program, known, gradient, of_floats)
        else:
            sums, gradient, of_floats = _compiled_backward(program, residuals, gradient, of_floats)
    of_leaves: list[jax.Array | None] = []
    for field in _FIELDS:
        values, of_field = getattr(residuals.inputs, field), iter(sums.get(field, ()))
        of_leaves += [next(of_field, None) if _is_float(leaf) else None for leaf in jax.tree.leaves(values)]
    return of_leaves, gradient, {site: of_floats.get(site) for site in of_values}, None, None


_differentiable.defvjp(_loop_fwd, _loop_bwd, symbolic_zeros=True)


def _backward(program: Program, residuals: _Residuals, gradient, of_buffers: Rows):
    """The gradients of the needed fields of the inputs (their floats), of the residual stream, and of the buffers.

    `of_buffers` has only the sites whose captured values have a gradient.
    """
    inputs, first, last = residuals.inputs, residuals.first, residuals.last
    zeros = {field: jax.tree.map(jnp.zeros_like, _floats(getattr(inputs, field))[0]) for field in residuals.fields}

    def body(k, carry):
        gradient, of_buffers, sums = carry
        i = first + last - 1 - k
        row = program.row(i, first)
        given = inputs.at(i, row)
        floats, joins = {}, {}
        for field in residuals.fields:
            floats[field], joins[field] = _floats(getattr(given, field))

        def run(floats, x):
            fields = {field: joins[field](floats[field]) for field in floats}
            x, captured, _ = _step_at(program, dataclasses.replace(given, **fields), x, i)
            return x, {site: captured[site] for site in of_buffers}

        _, pull_back = jax.vjp(run, floats, layer_at(residuals.kept, row))
        of_captured = layer_at(of_buffers, row)
        of_floats, gradient = pull_back((gradient, of_captured))
        of_buffers = set_row(of_buffers, jax.tree.map(jnp.zeros_like, of_captured), row)
        sums = {field: _added(field, sums[field], of_floats[field], i, row) for field in sums}
        return gradient, of_buffers, sums

    gradient, of_buffers, sums = jax.lax.fori_loop(first, last, body, (gradient, of_buffers, zeros))
    return sums, gradient, of_buffers


_compiled_backward = jax.jit(_backward, static_argnums=0)


def _added(field: str, sums, of_layer, i, row):
    """The gradients of a field with those of one layer: a new row, or added for inputs that all layers share."""
    if field == "shared":
        return jax.tree.map(jnp.add, sums, of_layer)
    return set_row(sums, of_layer, {"stack": i, "probes": row}[field])


def _floats(tree: Any) -> tuple[list[jax.Array], Callable[[list], Any]]:
    """The arrays of a pytree that can be differentiated, and a function that makes the pytree from such arrays."""
    leaves, structure = jax.tree.flatten(tree)

    def joined(floats: list) -> Any:
        floats = iter(floats)
        return structure.unflatten(next(floats) if _is_float(leaf) else leaf for leaf in leaves)

    return list(filter(_is_float, leaves)), joined


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _without_symbols(gradient: Any) -> Any:
    if not isinstance(gradient, SymbolicZero):
        return gradient
    if gradient.dtype == jax.dtypes.float0:
        return np.zeros(gradient.shape, gradient.dtype)
    return jnp.zeros(gradient.shape, gradient.dtype)
