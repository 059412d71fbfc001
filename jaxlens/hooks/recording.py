"""Calls a user's own model, and records the values at its hook points and the gradients there."""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.tracers import TraceState

from jaxlens.errors import HookError
from jaxlens.hooks.api import PythonHook
from jaxlens.hooks.plan import SiteHook
from jaxlens.hooks.point import HookPoint

Values = dict[str, jax.Array]


def run_with_values(
    model: Any, names: list[str], args: tuple, kwargs: dict, replace: Callable = lambda value, name: value
) -> tuple[Any, Values]:
    """The output of a call, and the values at hook points after all hooks, in the order of the computation.

    The model continues with `replace(value, name)`.

    Raises:
        HookError: A hook point is inside a transformation that the model itself uses.
    """
    values: Values = {}
    trace = TraceState()

    def record(value: jax.Array, point: HookPoint) -> jax.Array:
        if not trace.is_valid():
            raise HookError(
                f'"{point.name}" is inside a transformation of the model (scan, vmap, checkpoint, jit), so its value '
                "cannot be cached from outside; write the layers as a loop, or return the value from the transformation"
            )
        values[point.name] = value
        return replace(value, point.name)

    of_model = model.hook_dict
    points = [of_model[name] for name in names]
    for point in points:
        point._watches += (record,)
    try:
        out = model(*args, **kwargs)
    finally:
        for point in points:
            point._watches = tuple(watch for watch in point._watches if watch is not record)
    return out, values


def run_with_gradients(model: Any, names: list[str], args: tuple, kwargs: dict) -> tuple[Any, Values]:
    """`run_with_values`, and the gradient of the output at each hook point as `name + "_grad"`.

    Every value depends on a zero, which is differentiated. Its gradient is stored when the backward pass reaches it, so
    gradients of parameters are not computed. The variables of the model change as in a call.

    Raises:
        ValueError: The output is not a scalar.
    """
    graphdef, state = nnx.split(model)
    gradients: Values = {}
    order: list[str] = []

    def forward(zero):
        twin = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf, state))  # its own variables, which may change
        originals = model.hook_dict
        for name, point in twin.hook_dict.items():
            point._ctx = originals[name].ctx
        out, values = run_with_values(twin, names, args, kwargs, lambda value, name: probed(value, zero, name))
        if jnp.shape(out) != ():
            raise ValueError(
                f"incl_bwd needs a scalar output, such as a loss; the output has shape {jnp.shape(out)}. For other "
                "functions of the output use jax.grad, and hooks with dir='bwd'"
            )
        order.extend(values)
        return out, (values, nnx.state(twin, nnx.Variable))

    def probed(value, zero, name):
        if not jnp.issubdtype(value.dtype, jnp.inexact):
            return value

        def store(gradient, hook):
            gradients[f"{name}_grad"] = gradient

        return SiteHook(PythonHook(store), name, "bwd")(value + zero.astype(value.dtype), None)

    out, vjp, (values, after) = jax.vjp(forward, jnp.zeros(()), has_aux=True)
    vjp(jnp.ones_like(out))
    nnx.update(model, after)
    return out, {name: values[name] for name in order} | gradients


class OldCachingNames:
    """`add_caching_hooks` of a class, under the names that TransformerLens keeps for old code."""

    def cache_all(
        self, cache: dict[str, jax.Array] | None, incl_bwd: bool = False, device: Any = None,
        remove_batch_dim: bool = False,
    ) -> None:  # fmt: skip
        """`add_caching_hooks` at every hook point."""
        self.add_caching_hooks(None, incl_bwd, device, remove_batch_dim, cache)

    def cache_some(
        self, cache: dict[str, jax.Array] | None, names: str | Callable | Collection[str] | None,
        incl_bwd: bool = False, device: Any = None, remove_batch_dim: bool = False,
    ) -> None:  # fmt: skip
        """`add_caching_hooks` at the hook points that `names` selects."""
        self.add_caching_hooks(names, incl_bwd, device, remove_batch_dim, cache)
