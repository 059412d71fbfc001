"""Metrics of a sweep: the positions that a metric reads, and its value for many runs at once.

A metric is any Python function of logits [b p v]. It is traced once. If it begins by selecting positions, as in
`logits[:, -1]`, the sweep computes the logits of these positions only. The traced operations are then replayed on the
logits of many runs. So a new metric, or the same metric with other answers, does not recompile the model. A metric that
needs concrete numbers cannot be traced and is called once per run. Side effects of a traced metric happen once, as
under `jax.jit`.

Axes: c cell of a sweep, b batch, p position, i position that the metric reads, r the same with repetitions,
v vocabulary.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var, jaxpr_as_fun
from jaxtyping import Array, Float, Int

from jaxlens._jax import UNTRACEABLE, on_host

NOT_TRACED = (
    *UNTRACEABLE, jax.errors.NonConcreteBooleanIndexError, AttributeError, TypeError, NotImplementedError,
)  # fmt: skip
"""The errors of a metric that needs concrete logits. A tracer also lacks some methods of arrays (AttributeError) and
cannot be formatted (TypeError), and some operations cannot be mapped over cells (NotImplementedError)."""


class Metric:
    """A metric for logits of one shape.

    `positions` are the positions that the metric reads, in ascending order. Calls take the logits [c b r v] at these
    positions.

    Example:
        >>> def difference(logits):
        ...     return logits[:, -1, 3] - logits[:, 2, 4]
        >>> metric = Metric(difference, jax.ShapeDtypeStruct((2, 6, 10), "float32"))
        >>> metric.positions
        array([2, 5])
        >>> metric(jnp.zeros((7, 2, 2, 10))).shape
        (7, 2)
    """

    def __init__(self, function: Callable[[Float[Array, "b p v"]], Any], logits: jax.ShapeDtypeStruct):
        self.function, self._replay = function, None
        b, n_positions, v = logits.shape
        self.positions = np.arange(n_positions)
        try:
            replay, positions = _traced(function, logits)
            jax.eval_shape(jax.vmap(replay), jax.ShapeDtypeStruct((2, b, len(positions), v), logits.dtype))
        except NOT_TRACED:  # an error of the metric itself is raised again when it is called
            return
        self._replay, self.positions = replay, positions

    def __call__(self, logits: Float[Array, "c b r v"]) -> jax.Array:
        """The metric of every cell: [c], or [c, ...] if the metric returns an array."""
        if self._replay is None:
            return jnp.stack([_value(self.function, cell) for cell in logits])
        return jax.vmap(self._replay)(logits)


def metric_of(function: Callable, logits: Float[Array, "b t v"], n_positions: int) -> np.ndarray:
    """The metric of one run, whose logits may have padding after their positions."""
    metric = Metric(function, jax.ShapeDtypeStruct((len(logits), n_positions, logits.shape[2]), logits.dtype))
    return on_host(metric(selected(logits, metric.positions)[None]))[0]


@jax.jit
def selected(logits: Float[Array, "b p v"], positions: Int[Array, "r"]) -> Float[Array, "b r v"]:
    """The logits at some positions."""
    return logits[:, positions]


def repeated_last(positions: Int[np.ndarray, "i"], at_most: int) -> Int[np.ndarray, "r"]:
    """The positions, with the last repeated to a number that is a power of two, so that few programs are compiled."""
    number = min(1 << (len(positions) - 1).bit_length(), at_most)
    return np.pad(positions, (0, number - len(positions)), mode="edge")


def _value(function: Callable, logits: Float[Array, "b p v"]) -> jax.Array:
    value = function(logits)
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        given = type(value).__name__
        raise TypeError(f"a metric must return a number or an array of numbers; got {given}") from error


def _traced(function: Callable, logits: jax.ShapeDtypeStruct) -> tuple[Callable, np.ndarray]:
    """A function that replays a metric on the logits of the positions that it reads, and these positions."""
    closed, length = jax.make_jaxpr(lambda logits: _value(function, logits))(logits), logits.shape[1]
    jaxpr, (whole,) = closed.jaxpr, closed.jaxpr.invars
    constants, operations = _folded(jaxpr, closed.consts)
    reads = [operation for operation in operations if any(v is whole for v in operation.invars)]
    selections = [_selection(operation, whole, constants, length) for operation in reads]
    positions, inputs, select = np.arange(length), [whole], lambda logits: [logits]
    if reads and None not in selections and jaxpr.outvars[0] is not whole:
        positions = np.unique(np.concatenate([selected for selected, _ in selections]))
        row = np.searchsorted(positions, np.arange(length))  # the index of a position in `positions`
        inputs, select = [o.outvars[0] for o in reads], lambda logits: [of(logits, row) for _, of in selections]
        operations = [operation for operation in operations if all(operation is not read for read in reads)]
    program = jaxpr.replace(constvars=list(constants), invars=inputs, eqns=operations)
    run = jaxpr_as_fun(ClosedJaxpr(program, list(constants.values())))

    def replay(logits: Float[Array, "b r v"]) -> jax.Array:
        return run(*select(logits))[0]

    return replay, positions


def _folded(jaxpr: Jaxpr, consts: list) -> tuple[dict[Var, Any], list[JaxprEqn]]:
    """The values of variables that do not depend on the logits, and the operations that do or that have effects."""
    dependent, folded, operations = set(jaxpr.invars), [], []
    for operation in jaxpr.eqns:
        if operation.effects or dependent & _variables(operation.invars):
            dependent.update(operation.outvars)
            operations.append(operation)
        else:
            folded.append(operation)
    used = _variables(jaxpr.outvars).union(*(_variables(operation.invars) for operation in operations))
    kept = [variable for operation in folded for variable in operation.outvars if variable in used]
    values = jaxpr_as_fun(ClosedJaxpr(jaxpr.replace(invars=[], outvars=kept, eqns=folded), consts))()
    return dict(zip([*jaxpr.constvars, *kept], [*consts, *values], strict=True)), operations


def _variables(atoms: Iterable) -> set[Var]:
    return {atom for atom in atoms if isinstance(atom, Var)}  # the others are literals


def _selection(operation: JaxprEqn, logits: Var, constants: dict[Var, Any], length: int) -> tuple | None:
    """The positions that an operation selects from the logits, and `select(logits, row)`; None for other operations.

    `select` does the same with logits whose index `row[i]` is position i.
    """
    kind, params = operation.primitive.name, dict(operation.params)
    if kind == "slice" and params["strides"] is None and params["start_indices"][1] < params["limit_indices"][1]:
        (b, first, v), (b_end, end, v_end) = params["start_indices"], params["limit_indices"]

        def sliced(logits, row):
            return jax.lax.slice(logits, (b, int(row[first]), v), (b_end, int(row[end - 1]) + 1, v_end))

        return np.arange(first, end), sliced
    if kind != "gather" or operation.invars[0] is not logits or operation.invars[1] not in constants:
        return None
    numbers, indices = params["dimension_numbers"], np.array(constants[operation.invars[1]])
    if 1 not in numbers.start_index_map or params["slice_sizes"][1] != 1:
        return None
    column = numbers.start_index_map.index(1)
    positions = indices[..., column]

    def gathered(logits, row):
        shifted = indices.copy()
        shifted[..., column] = row[positions]
        return jax.lax.gather(logits, jnp.asarray(shifted), **params)

    return (positions.ravel(), gathered) if ((positions >= 0) & (positions < length)).all() else None
