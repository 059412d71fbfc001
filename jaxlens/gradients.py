"""The gradient of a scalar output at every activation that a cache holds, in one backward pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.engine import Caught
from jaxlens.hook_table import POSITION_AXES, split_name
from jaxlens.hooks import DataHook, Edit
from jaxlens.slices import Slice


def with_gradients(model, given, run, hooks):
    """A run, what it caught, and the gradient of its output at each of these as `name + "_grad"`.

    A zero is added at every wanted hook point, after all hooks on it; the derivative by that zero is the gradient as it
    arrives there, before backward hooks edit it.

    Raises:
        ValueError: the output is not one number.
    """
    # what a Python function closes over may have changed since it was compiled
    plain = any(not isinstance(hook.fn, DataHook) for hook in hooks)
    return (_with_gradients if plain else _with_gradients_compiled)(model, given, hooks, run=run)


def _with_gradients(model, given, hooks, *, run):
    everywhere = dataclasses.replace(run, positions=None)
    output, shapes = jax.eval_shape(
        lambda model, given, hooks: model._run(given, everywhere, hooks), model, given, hooks
    )
    if not isinstance(output, jax.ShapeDtypeStruct) or output.shape != ():
        raise ValueError('incl_bwd differentiates one number; run with return_type="loss"')
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    def scalar(zeros: list[Caught]):
        return model._run(given, run, hooks, tuple(_probe(model.cfg, zero) for zero in zeros))

    (output, caught), gradients = jax.value_and_grad(scalar, has_aux=True)(zeros)
    return output, caught + [_kept(gradient, run.positions) for gradient in gradients]


_with_gradients_compiled = jax.jit(_with_gradients, static_argnames=("run",))


def _probe(cfg, zero: Caught) -> Edit:
    """The hook that adds a zero where `zero` was caught."""
    site, layer = split_name(zero.name)
    if zero.layers is None and layer is None:
        return Edit(DataHook(_add, zero=zero.value), None, None, site, "fwd")
    layers = (layer,) if zero.layers is None else zero.layers
    stacked = zero.value[None] if zero.layers is None else zero.value
    numbers = np.arange(cfg.n_layers)
    rows = np.searchsorted(layers, numbers).clip(max=len(layers) - 1)
    return Edit(DataHook(_add_row, zeros=stacked, rows=rows), np.isin(numbers, layers), (), site, "fwd")


def _add(value, hook, zero):
    return value + zero


def _add_row(value, hook, zeros, rows):
    return value + zeros[jnp.asarray(rows)[hook.layer()]]


def _kept(gradient: Caught, positions: Slice) -> Caught:
    """The gradient at the wanted positions, under its own name."""
    axis = POSITION_AXES[split_name(gradient.name)[0]] + (gradient.layers is not None)
    return Caught(f"{gradient.name}_grad", gradient.layers, positions.apply(gradient.value, axis))
