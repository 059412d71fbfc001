"""Metrics of logits, as sweeps use them: which positions a metric reads, and its value for many runs at once.

A metric is any Python function of logits [b p v]. What it does with them is traced once, without running anything:
where it begins by picking positions, as `logits[:, -1]` does, a sweep computes no others. Its operations are then
replayed one by one on the logits of many runs, so a new metric, or an old one with new answers, compiles nothing of the
model. A metric that cannot be traced, because it needs plain numbers, is called for one run after another. (Like under
jit, what a metric does besides, as appending to a list, happens once, while it is traced.)

Axes: c cell of a sweep, b batch, p position, r position that is read, v vocabulary.
"""

from collections.abc import Callable
from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Metric:
    """A metric made ready for logits of one shape.

    `positions` are those it reads, in order; `metric(logits)` takes logits [c b r v] at those alone.

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
            some = jax.ShapeDtypeStruct((2, b, len(traced.positions), v), logits.dtype)
            jax.eval_shape(jax.vmap(traced.replay), some)
        except Exception:  # whatever is wrong with the metric itself will be wrong again when it is called
            return
        self._traced, self.positions = traced, traced.positions

    def __call__(self, logits: Float[Array, "c b r v"]) -> jax.Array:
        """The metric of every cell, [c] or [c, ...] if the metric is not a single number.

        Raises:
            TypeError: it gives something that is no number and no array.
        """
        if self._traced is None:
            return jnp.stack([self._called(one) for one in logits])
        return jax.vmap(self._traced.replay)(logits)

    def _called(self, logits: Float[Array, "b p v"]) -> jax.Array:
        value = self.function(logits)
        if not isinstance(value, jax.Array | np.ndarray | np.generic | Number):
            raise TypeError(f"a metric gives a number or an array of numbers; got {type(value).__name__}")
        return jnp.asarray(value)


class _Traced:
    """A metric as the operations it consists of: those that the logits do not enter are done, the others kept."""

    def __init__(self, function: Callable, logits: jax.ShapeDtypeStruct):
        closed = jax.make_jaxpr(lambda logits: jnp.asarray(function(logits)))(logits)
        jaxpr = closed.jaxpr
        (self.logits,) = jaxpr.invars
        (self.result,) = jaxpr.outvars
        self.known = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        self.left = []
        for operation in jaxpr.eqns:
            if all(_is_literal(v) or v in self.known for v in operation.invars) and not operation.effects:
                self.known |= _outcomes(operation, [_value(v, self.known) for v in operation.invars])
            else:
                self.left.append(operation)
        length = logits.shape[1]
        self.positions = np.arange(length)
        read = [self._read_by(o, length) for o in self.left if any(v is self.logits for v in o.invars)]
        if read and self.result is not self.logits and all(positions is not None for positions in read):
            self.positions = np.unique(np.concatenate(read))
        self.place = np.searchsorted(self.positions, np.arange(length))  # of a position among those that are read

    def _read_by(self, operation, length: int) -> np.ndarray | None:
        """The positions that an operation on the logits picks; None for one that does not pick."""
        kind, params = operation.primitive.name, operation.params
        if kind == "slice" and params["strides"] is None and params["start_indices"][1] < params["limit_indices"][1]:
            return np.arange(params["start_indices"][1], params["limit_indices"][1])
        numbers = params.get("dimension_numbers")
        if kind != "gather" or 1 not in numbers.start_index_map or params["slice_sizes"][1] != 1:
            return None
        picked, indices = operation.invars
        if picked is not self.logits or indices not in self.known:
            return None
        positions = np.asarray(self.known[indices])[..., numbers.start_index_map.index(1)].ravel()
        return positions if ((positions >= 0) & (positions < length)).all() else None

    def replay(self, logits: Float[Array, "b r v"]) -> jax.Array:
        """The metric of logits at the positions that it reads."""
        values = {**self.known, self.logits: logits}
        for operation in self.left:
            given = [_value(v, values) for v in operation.invars]
            moved = any(v is self.logits for v in operation.invars) and len(self.positions) < len(self.place)
            values |= self._picked(operation, given) if moved else _outcomes(operation, given)
        return _value(self.result, values)

    def _picked(self, operation, given: list) -> dict:
        """What an operation picks of the logits, whose positions are now in other places."""
        if operation.primitive.name == "slice":
            low, high = list(operation.params["start_indices"]), list(operation.params["limit_indices"])
            low[1], high[1] = int(self.place[low[1]]), int(self.place[high[1] - 1]) + 1
            return {operation.outvars[0]: jax.lax.slice(given[0], low, high)}
        logits, indices = given
        column = operation.params["dimension_numbers"].start_index_map.index(1)
        indices = np.array(indices)
        indices[..., column] = self.place[indices[..., column]]
        return _outcomes(operation, [logits, jnp.asarray(indices)])


def _is_literal(variable: Any) -> bool:
    return hasattr(variable, "val")


def _value(variable: Any, values: dict) -> Any:
    return variable.val if _is_literal(variable) else values[variable]


def _outcomes(operation, given: list) -> dict:
    """What an operation of a traced function makes of these values."""
    with operation.ctx.manager:
        results = operation.primitive.bind(*given, **operation.primitive.get_bind_params(operation.params))
    return dict(zip(operation.outvars, results if operation.primitive.multiple_results else [results], strict=True))
