"""The elements of the logits that a traced metric reads, if it reads only some.

Some operations move elements without changing them, such as a slice or a gather. Each has a map from the indices of its
output to those of its input. The maps lead from the values that a metric computes with back to elements of the logits:

    logits [b p v] ─ slice ─ squeeze ─ gather ─ [b 2] ─ difference, mean, …          the program of the metric
    (0 … b-1, p-1, token) ◂──────────────────── [b 2]                                the indices of the elements

An index is a tuple of integer arrays, one for each axis of the array that it selects from, as in NumPy.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

from jaxlens._jax import is_traced

Index = tuple[np.ndarray, ...]

MOST_ELEMENTS = 2**16
"""Metrics that compute with more elements of the logits read all tokens."""

CALLS, CAST = ("jit", "pjit"), "convert_element_type"


class Selection(NamedTuple):
    """What a metric computes with: variables of its program, and the elements of the logits that they hold.

    `casts` are the dtypes that these elements are converted to, one after the other. `operations` are the others of the
    program, which compute the metric from these variables.
    """

    variables: list[Var]
    elements: list[Index]
    casts: list[list[np.dtype]]
    operations: list[JaxprEqn]


def selection(program: Jaxpr, constants: Mapping[Var, Any]) -> Selection | None:
    """What a program computes with, or None if that is not a small part of its input, the logits."""
    (logits,) = program.invars
    moved: dict[Var, JaxprEqn | None] = {logits: None}
    others, read = [], [v for v in program.outvars if isinstance(v, Var)]
    for operation in program.eqns:
        if _moves(operation, moved, constants):
            moved[operation.outvars[0]] = operation
        else:
            others.append(operation)
            read += [v for v in operation.invars if isinstance(v, Var)]
    variables = [v for v in dict.fromkeys(read) if v in moved]
    if logits in variables or not 0 < sum(math.prod(v.aval.shape) for v in variables) <= MOST_ELEMENTS:
        return None
    elements, casts = [], []
    for variable in variables:
        index, dtypes, source = tuple(np.indices(variable.aval.shape, np.int32)), [], variable
        while (operation := moved[source]) is not None:
            dtypes += [operation.params["new_dtype"]] if operation.primitive.name == CAST else []
            index, source = _source(operation, index, constants), operation.invars[0]
            if index is None:
                return None
        elements.append(tuple(np.broadcast_to(i, variable.aval.shape) for i in index))
        casts.append(dtypes[::-1])
    return Selection(variables, elements, casts, others)


def _moves(operation: JaxprEqn, moved: Any, constants: Mapping[Var, Any]) -> bool:
    """Whether an operation moves elements that were only moved before, to places that do not depend on the logits."""
    if operation.primitive.name not in MAPS:
        return False
    source, *others = operation.invars
    are_known = all(isinstance(v, Literal) or (v in constants and not is_traced(constants[v])) for v in others)
    return isinstance(source, Var) and source in moved and are_known


def _source(operation: JaxprEqn, index: Sequence[Any], constants: Mapping[Var, Any]) -> Sequence[Any] | None:
    """The elements of its first input that an operation moves to these elements of its output."""
    shape = operation.invars[0].aval.shape
    others = [v.val if isinstance(v, Literal) else np.asarray(constants[v]) for v in operation.invars[1:]]
    return MAPS[operation.primitive.name](operation.params, shape, index, *others)


# --- maps


def _of_slice(params, shape, index):
    steps = params["strides"] or [1] * len(shape)
    return [first + step * i for first, step, i in zip(params["start_indices"], steps, index, strict=True)]


def _of_squeeze(params, shape, index):
    kept = iter(index)
    zero = np.zeros_like(index[0]) if index else np.int32(0)
    return [zero if axis in params["dimensions"] else next(kept) for axis in range(len(shape))]


def _of_reshape(params, shape, index):
    if params["dimensions"] is not None:
        return None
    flat = np.ravel_multi_index(index, params["new_sizes"]) if index else np.int32(0)
    return np.unravel_index(flat, shape) if shape else []


def _of_transpose(params, shape, index):
    return [index[params["permutation"].index(axis)] for axis in range(len(shape))]


def _of_broadcast(params, shape, index):
    axes = params["broadcast_dimensions"]
    return [index[axis] if size > 1 else np.zeros_like(index[axis]) for axis, size in zip(axes, shape, strict=True)]


def _of_reverse(params, shape, index):
    sizes = enumerate(zip(shape, index, strict=True))
    return [size - 1 - i if axis in params["dimensions"] else i for axis, (size, i) in sizes]


def _of_dynamic_slice(params, shape, index, *starts):
    last = [size - length for size, length in zip(shape, params["slice_sizes"], strict=True)]
    return [np.clip(first, 0, most) + i for first, most, i in zip(starts, last, index, strict=True)]


def _of_gather(params, shape, index, starts):
    """See https://openxla.org/stablehlo/spec#gather. None if an index that may be out of bounds is."""
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    batch = [i for axis, i in enumerate(index) if axis not in numbers.offset_dims]
    offsets = iter([index[axis] for axis in numbers.offset_dims])
    starts, source = starts[tuple(batch)], []
    for axis, size in enumerate(shape):
        if axis in numbers.operand_batching_dims:
            of_starts = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(axis)]
            source.append(batch[of_starts])
            continue
        first = np.int32(0)
        if axis in numbers.start_index_map:
            given = starts[..., numbers.start_index_map.index(axis)].astype(np.int64)
            first = np.clip(given, 0, size - sizes[axis])
            if (first != given).any() and params["mode"] != jax.lax.GatherScatterMode.CLIP:
                return None
        source.append(first if axis in numbers.collapsed_slice_dims else first + next(offsets))
    return source


MAPS: dict[str, Callable] = {
    "slice": _of_slice, "squeeze": _of_squeeze, "reshape": _of_reshape, "transpose": _of_transpose,
    "broadcast_in_dim": _of_broadcast, "rev": _of_reverse, "dynamic_slice": _of_dynamic_slice, "gather": _of_gather,
    CAST: lambda params, shape, index: index,
}  # fmt: skip
"""By the name of an operation, `map(params, shape of the input, index of the output, *other inputs)`."""


# --- jitted functions


def inlined(program: ClosedJaxpr) -> ClosedJaxpr:
    """The program without those calls of jitted functions that begin by moving elements of the logits.

    `jnp.take_along_axis` is such a function, and so may be the metric.
    """
    if not any(operation.primitive.name in CALLS for operation in program.jaxpr.eqns):
        return program
    (logits,) = program.in_avals
    logits = jax.ShapeDtypeStruct(logits.shape, logits.dtype)
    return jax.make_jaxpr(lambda logits: _run(program, [logits], [True])[0])(logits)


def _run(program: ClosedJaxpr, inputs: list, are_moved: list[bool]) -> tuple[list, list[bool]]:
    """The outputs of a program, and which of them are elements of the logits."""
    jaxpr = program.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*program.consts, *inputs), strict=True))
    moved = {v for v, is_moved in zip(jaxpr.invars, are_moved, strict=True) if is_moved}
    for operation in jaxpr.eqns:
        flags = [isinstance(v, Var) and v in moved for v in operation.invars]
        if _begins_with_moves(operation, flags):
            given = [values[v] if isinstance(v, Var) else v.val for v in operation.invars]
            results, new = _run(operation.params["jaxpr"], given, flags)
        else:
            results = _alone(operation, jaxpr, values)
            new = [operation.primitive.name in MAPS and flags[0] and not any(flags[1:])] * len(results)
        values |= zip(operation.outvars, results, strict=True)
        moved |= {v for v, is_moved in zip(operation.outvars, new, strict=True) if is_moved}
    outputs = [values[v] if isinstance(v, Var) else v.val for v in jaxpr.outvars]
    return outputs, [isinstance(v, Var) and v in moved for v in jaxpr.outvars]


def _begins_with_moves(operation: JaxprEqn, flags: list[bool]) -> bool:
    """Whether an operation is the call of a function that begins by moving the inputs that have a flag."""
    if operation.primitive.name not in CALLS or not any(flags):
        return False
    inner = operation.params["jaxpr"].jaxpr
    moved = {v for v, flag in zip(inner.invars, flags, strict=True) if flag}
    of_inner = [(each, [isinstance(v, Var) and v in moved for v in each.invars]) for each in inner.eqns]
    return any(
        _begins_with_moves(each, of_each) or (each.primitive.name in MAPS and of_each[0]) for each, of_each in of_inner
    )


def _alone(operation: JaxprEqn, jaxpr: Jaxpr, values: Mapping[Var, Any]) -> list:
    """The outputs of one operation of a program."""
    inputs = list(dict.fromkeys(v for v in operation.invars if isinstance(v, Var)))
    alone = jaxpr.replace(constvars=[], invars=inputs, outvars=operation.outvars, eqns=[operation])
    return jaxpr_as_fun(ClosedJaxpr(alone, []))(*(values[v] for v in inputs))
