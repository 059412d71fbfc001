"""Metrics of a sweep: the positions and tokens that a metric reads, and its value for many runs at once.

A metric is any Python function of logits [b p v]. It is traced once. If it begins by selecting positions, as in
`logits[:, -1]`, the sweep computes the logits of these positions only; if it then selects logits of tokens, as the
difference of two answers does, only those of these tokens. The traced operations are then replayed on the logits of
many runs. So a new metric, or the same metric with other answers, does not recompile the model. A metric that
needs concrete numbers cannot be traced and is called once per run. Side effects of a traced metric happen once, as
under `jax.jit`.

Axes: c cell of a sweep, b batch, p position, i position that the metric reads, r the same with repetitions,
v vocabulary, t token that the metric reads.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var, jaxpr_as_fun
from jaxtyping import Array, Float, Int

from jaxlens._jax import UNTRACEABLE, on_host
from jaxlens.analysis.interventions.selections import inlined, selection

NOT_TRACED = (
    *UNTRACEABLE, jax.errors.NonConcreteBooleanIndexError, AttributeError, TypeError, NotImplementedError,
)  # fmt: skip
"""The errors of a metric that needs concrete logits. A tracer also lacks some methods of arrays (AttributeError) and
cannot be formatted (TypeError), and some operations cannot be mapped over cells (NotImplementedError)."""


class Metric:
    """A metric for logits of one shape.

    `positions` and `tokens` are those that the metric reads, in ascending order. Calls take the logits [c b r t] of
    these, or of the positions and tokens that they give, which contain these and ascend too.

    Example:
        >>> def difference(logits):
        ...     return logits[:, -1, 3] - logits[:, 2, 4]
        >>> metric = Metric(difference, jax.ShapeDtypeStruct((2, 6, 10), "float32"))
        >>> metric.positions.tolist(), metric.tokens.tolist()
        ([2, 5], [3, 4])
        >>> metric(jnp.zeros((7, 2, 2, 2))).shape
        (7, 2)
    """

    def __init__(self, function: Callable[[Float[Array, "b p v"]], Any], logits: jax.ShapeDtypeStruct):
        self.function, self._replay, self.shape = function, None, logits.shape
        b, n_positions, v = logits.shape
        self.positions, self.tokens = np.arange(n_positions), np.arange(v)
        try:
            replay, *read = _traced(function, logits)
            shape = 2, b, *map(len, read)
            jax.eval_shape(
                jax.vmap(lambda logits: replay(logits, *read)), jax.ShapeDtypeStruct(shape, logits.dtype)
            )
        except NOT_TRACED:  # an error of the metric itself is raised again when it is called
            return
        self._replay, (self.positions, self.tokens) = replay, read

    def __call__(self, logits: Float[Array, "c b r t"], positions: Any = None, tokens: Any = None) -> jax.Array:
        """The metric of every cell: [c], or [c, ...] if the metric returns an array."""
        positions = self.positions if positions is None else positions
        tokens = self.tokens if tokens is None else tokens
        if self._replay is None:
            whole = (_at_positions(cell, positions, self.shape[1]) for cell in logits)
            return jnp.stack([_value(self.function, cell) for cell in whole])
        return jax.vmap(lambda logits: self._replay(logits, positions, tokens))(logits)


FEW_TOKENS = 64
"""A sweep computes at least so many logits of a position, so that few programs are compiled."""


class Read(NamedTuple):
    """The positions and tokens whose logits a sweep computes, in ascending order, the last of each repeated."""

    positions: Int[np.ndarray, "r"]
    tokens: Int[np.ndarray, "t"]

    @classmethod
    def by(cls, metrics: Iterable[Metric], n_positions: int, few_tokens: bool = True) -> "Read":
        """What these metrics read. All tokens, unless they read less than half of them and `few_tokens`."""
        metrics = list(metrics)
        positions, tokens = (
            np.unique(np.concatenate([getattr(metric, name) for metric in metrics])) for name in cls._fields
        )
        v = metrics[0].shape[2]
        tokens = repeated_last(tokens, v, FEW_TOKENS)
        is_part = few_tokens and 2 * len(tokens) <= v
        return cls(repeated_last(positions, n_positions), tokens if is_part else np.arange(v))


def metric_of(function: Callable, logits: Float[Array, "b t v"], n_positions: int) -> np.ndarray:
    """The metric of one run, whose logits may have padding after their positions."""
    metric = Metric(function, jax.ShapeDtypeStruct((len(logits), n_positions, logits.shape[2]), logits.dtype))
    read = Read.by([metric], logits.shape[1])
    return on_host(metric(selected(logits, *read)[None], *read))[0]


@jax.jit
def selected(
    logits: Float[Array, "b p v"], positions: Int[Array, "i"], tokens: Int[Array, "t"]
) -> Float[Array, "b i t"]:
    """The logits of some tokens at some positions."""
    return logits[:, positions[:, None], tokens]


def repeated_last(numbers: Int[np.ndarray, "i"], at_most: int, at_least: int = 1) -> Int[np.ndarray, "r"]:
    """The numbers, with the last repeated until there are a power of two of them, so that few programs are compiled."""
    count = min(max(1 << (len(numbers) - 1).bit_length(), at_least), at_most)
    return np.pad(numbers, (0, count - len(numbers)), mode="edge")


def _value(function: Callable, logits: Float[Array, "b p v"]) -> jax.Array:
    value = function(logits)
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        given = type(value).__name__
        raise TypeError(f"a metric must return a number or an array of numbers; got {given}") from error


class Inputs(NamedTuple):
    """What the program of a metric computes with: `variables`, from which `operations` compute the metric.

    `select(logits, positions, tokens)` returns their values, from logits of at least the positions and tokens here.
    """

    positions: np.ndarray
    tokens: np.ndarray
    variables: list[Var]
    operations: list[JaxprEqn]
    select: Callable[[Array, np.ndarray, np.ndarray], list]


def _traced(function: Callable, logits: jax.ShapeDtypeStruct) -> tuple[Callable, np.ndarray, np.ndarray]:
    """A function that replays a metric on selected logits, and the positions and tokens that it reads."""
    closed = inlined(jax.make_jaxpr(lambda logits: _value(function, logits))(logits))
    constants, operations = _folded(closed.jaxpr, closed.consts)
    program = closed.jaxpr.replace(constvars=list(constants), eqns=operations)
    inputs = _elements(program, constants) or _positions(program, constants) or _everything(program)
    run = program.replace(invars=inputs.variables, eqns=inputs.operations)
    run = jaxpr_as_fun(ClosedJaxpr(run, list(constants.values())))
    return lambda *given: run(*inputs.select(*given))[0], inputs.positions, inputs.tokens


def _elements(program: Jaxpr, constants: dict[Var, Any]) -> Inputs | None:
    """The inputs of a metric that computes with few elements of the logits, or None."""
    found = selection(program, constants)
    if found is None:
        return None
    read, of_tokens = (np.unique(np.concatenate([of[axis].ravel() for of in found.elements])) for axis in (1, 2))

    def select(logits, positions, tokens):
        values = []
        for (rows, position, token), dtypes in zip(found.elements, found.casts, strict=True):
            value = _at(logits, rows, np.searchsorted(positions, position), np.searchsorted(tokens, token))
            values.append(functools.reduce(lambda value, dtype: value.astype(dtype), dtypes, value))
        return values

    is_part = len(of_tokens) < program.invars[0].aval.shape[2]
    return Inputs(read, of_tokens, found.variables, found.operations, select) if is_part else None


@jax.jit
def _at(logits: Float[Array, "b r t"], *index: Int[Array, "..."]) -> Float[Array, "..."]:
    return logits.at[index].get(mode="promise_in_bounds")


def _positions(program: Jaxpr, constants: dict[Var, Any]) -> Inputs | None:
    """The inputs of a metric that begins by selecting positions, or None."""
    (whole,), (_, length, v) = program.invars, program.invars[0].aval.shape
    reads = [operation for operation in program.eqns if any(v is whole for v in operation.invars)]
    selections = [_selection(operation, whole, constants, length) for operation in reads]
    if not reads or None in selections or program.outvars[0] is whole:
        return None

    def select(logits, positions, tokens):
        row = np.searchsorted(positions, np.arange(length))
        return [of(logits, row) for _, of in selections]

    read = np.unique(np.concatenate([selected for selected, _ in selections]))
    others = [operation for operation in program.eqns if all(operation is not read for read in reads)]
    return Inputs(read, np.arange(v), [operation.outvars[0] for operation in reads], others, select)


def _everything(program: Jaxpr) -> Inputs:
    """The inputs of any metric: the logits."""
    _, length, v = program.invars[0].aval.shape

    def select(logits, positions, tokens):
        return [_at_positions(logits, positions, length)]

    return Inputs(np.arange(length), np.arange(v), program.invars, program.eqns, select)


def _at_positions(logits: Float[Array, "b r v"], positions: np.ndarray, n: int) -> Float[Array, "b n v"]:
    """The logits of the first n positions, from those of these positions."""
    return logits if logits.shape[1] == n else logits[:, np.searchsorted(positions, np.arange(n))]


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
