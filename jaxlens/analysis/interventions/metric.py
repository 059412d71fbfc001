"""Metrics of a sweep: the positions that a metric reads, and its value for many runs at once.

A metric is any Python function of logits [b p v]. It is traced once. If it begins by selecting positions, as `logits[:,
-1]` does, the sweep computes the logits of these positions only. The traced operations are then replayed on the logits
of many runs. So a new metric, or the same metric with other answers, does not recompile the model. A metric that needs
concrete numbers cannot be traced and is called once per run. As under `jax.jit`, side effects of a traced metric happen
once.

Axes: c cell of a sweep, b batch, p position, r position that the metric reads, v vocabulary.
"""

from collections.abc import Callable
from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Metric:
    """A metric for logits of one shape.

    `positions` are the positions that it reads, in ascending order. `metric(logits)` takes the logits [c b r v] of
    these positions.

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
        self.function = function
        self.positions = np.arange(logits.shape[1])
        self._traced = None
        try:
            traced = _Traced(function, logits)
            b, _, v = logits.shape
            example = jax.ShapeDtypeStruct((2, b, len(traced.positions), v), logits.dtype)
            jax.eval_shape(jax.vmap(traced.replay), example)
        except Exception:  # an error of the metric itself will be raised again when it is called
            return
        self._traced, self.positions = traced, traced.positions

    def __call__(self, logits: Float[Array, "c b r v"]) -> jax.Array:
        """The metric of every cell: [c], or [c, ...] if the metric returns an array.

        Raises:
            TypeError: The metric returns neither a number nor an array.
        """
        if self._traced is None:
            return jnp.stack([self._call_once(cell) for cell in logits])
        return jax.vmap(self._traced.replay)(logits)

    def _call_once(self, logits: Float[Array, "b p v"]) -> jax.Array:
        value = self.function(logits)
        if not isinstance(value, jax.Array | np.ndarray | np.generic | Number):
            raise TypeError(f"a metric must return a number or an array of numbers; got {type(value).__name__}")
        return jnp.asarray(value)


class _Traced:
    """The traced operations of a metric. Operations that do not depend on the logits are evaluated at once."""

    def __init__(self, function: Callable, logits: jax.ShapeDtypeStruct):
        closed = jax.make_jaxpr(lambda logits: jnp.asarray(function(logits)))(logits)
        jaxpr = closed.jaxpr
        (self.logits,) = jaxpr.invars
        (self.result,) = jaxpr.outvars
        self.constants = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        self.operations = []
        for operation in jaxpr.eqns:
            if all(_is_literal(v) or v in self.constants for v in operation.invars) and not operation.effects:
                self.constants |= _evaluate(operation, [_value(v, self.constants) for v in operation.invars])
            else:
                self.operations.append(operation)
        length = logits.shape[1]
        self.positions = np.arange(length)
        read = [self._positions_of(o, length) for o in self.operations if any(v is self.logits for v in o.invars)]
        if read and self.result is not self.logits and all(positions is not None for positions in read):
            self.positions = np.unique(np.concatenate(read))
        self.row = np.searchsorted(self.positions, np.arange(length))  # the index of a position in `positions`

    def _positions_of(self, operation, length: int) -> np.ndarray | None:
        """The positions that an operation selects from the logits; None if it is not a selection of positions."""
        kind, params = operation.primitive.name, operation.params
        if kind == "slice" and params["strides"] is None and params["start_indices"][1] < params["limit_indices"][1]:
            return np.arange(params["start_indices"][1], params["limit_indices"][1])
        numbers = params.get("dimension_numbers")
        if kind != "gather" or 1 not in numbers.start_index_map or params["slice_sizes"][1] != 1:
            return None
        operand, indices = operation.invars
        if operand is not self.logits or indices not in self.constants:
            return None
        positions = np.asarray(self.constants[indices])[..., numbers.start_index_map.index(1)].ravel()
        return positions if ((positions >= 0) & (positions < length)).all() else None

    def replay(self, logits: Float[Array, "b r v"]) -> jax.Array:
        """The metric of the logits of `positions`."""
        values = {**self.constants, self.logits: logits}
        for operation in self.operations:
            inputs = [_value(v, values) for v in operation.invars]
            selects = any(v is self.logits for v in operation.invars) and len(self.positions) < len(self.row)
            values |= self._select(operation, inputs) if selects else _evaluate(operation, inputs)
        return _value(self.result, values)

    def _select(self, operation, inputs: list) -> dict:
        """Evaluates a selection of positions on logits that hold only `positions`."""
        if operation.primitive.name == "slice":
            low, high = list(operation.params["start_indices"]), list(operation.params["limit_indices"])
            low[1], high[1] = int(self.row[low[1]]), int(self.row[high[1] - 1]) + 1
            return {operation.outvars[0]: jax.lax.slice(inputs[0], low, high)}
        logits, indices = inputs
        column = operation.params["dimension_numbers"].start_index_map.index(1)
        indices = np.array(indices)
        indices[..., column] = self.row[indices[..., column]]
        return _evaluate(operation, [logits, jnp.asarray(indices)])


def _is_literal(variable: Any) -> bool:
    return hasattr(variable, "val")


def _value(variable: Any, values: dict) -> Any:
    return variable.val if _is_literal(variable) else values[variable]


def _evaluate(operation, inputs: list) -> dict:
    """The output variables of a traced operation with their values."""
    with operation.ctx.manager:
        results = operation.primitive.bind(*inputs, **operation.primitive.get_bind_params(operation.params))
    return dict(zip(operation.outvars, results if operation.primitive.multiple_results else [results], strict=True))
