"""Layers as a `lax.scan`, which any transformation of JAX can take apart: jit, grad, vmap, jvp.

A scan over the weights of all layers slices them. That is a copy, which costs little beside the product of many tokens,
and its derivative is a row of the gradients of all layers. For a single token the copy takes longer than the product,
and of experts it copies all for the few that are chosen. Then the scan is over the numbers of the layers, and reads the
weights where they lie (`nn/in_stack.py`). Its derivative is that of the scan over weights.
"""

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp

from jaxlens._jax import is_traced, jvp_of_changing
from jaxlens.hooks.plan import SiteHook
from jaxlens.hooks.tap import Tap
from jaxlens.model.loops import Memory, Rows, layer_at, set_row, step
from jaxlens.nn.block import Block
from jaxlens.nn.in_stack import has_experts, layer_in_stack

Inputs = tuple[Block, jax.Array, Any, tuple[SiteHook, ...], Any, Memory]
"""The stack, the residual stream, the SequenceInfo, the hooks, the Positions and the memory."""
Outputs = tuple[jax.Array, Rows, Memory]
"""The residual stream, the captured values and the memory."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """Consecutive layers of a stack, from index `first` on, and the layers in which each site is captured."""

    first: int
    layers: tuple[int, ...]
    wanted_in: tuple[tuple[str, tuple[int, ...]], ...]

    def run(self, inputs: Inputs, points: Any, length: int | None) -> Outputs:
        """The layers with these inputs. `points` and `length` are what Python hooks read."""
        stack, x, _, hooks, *_ = inputs
        if any(hook.is_plain for hook in hooks):  # traced anew: a Python function may read globals that have changed
            return _scan(self, inputs, False, points, length)
        in_stack = (x.shape[:2] == (1, 1) or has_experts(stack)) and all(map(_is_closed, hooks))
        if not in_stack:
            return _compiled_scan(self, inputs, False)
        leaves, structure = jax.tree.flatten(inputs)  # custom_jvp puts objects that are no arrays in their place
        return _run_in_stack(self, structure, leaves)


def _is_closed(hook: SiteHook) -> bool:
    """Whether the function of a data hook surely reads no value of a transformation besides its data."""
    function = hook.hook.func
    if not isinstance(function, types.FunctionType) or hook.direction != "fwd":
        return False
    return function.__closure__ is None and not is_traced(function.__defaults__, function.__kwdefaults__)


def _scan(program: Scan, inputs: Inputs, in_stack: bool, points: Any = None, length: int | None = None) -> Outputs:
    """A site that is not captured in every layer has a buffer for its layers."""
    stack, x, info, hooks, positions, memory = inputs
    layers, wanted = program.layers, dict(program.wanted_in)
    sites = frozenset(wanted)

    def run(block, x, layer, memory):
        return step(block, x, layer, info, Tap(hooks, sites, layer, positions, points, length), memory)

    partly = [site for site in wanted if wanted[site] != layers]
    shapes = jax.eval_shape(run, layer_at(stack, 0), x, jnp.int32(0), memory)[1] if partly else {}
    # one extra row, to which the values of all other layers are written
    buffers = {site: jnp.zeros((len(wanted[site]) + 1, *shapes[site].shape), shapes[site].dtype) for site in partly}
    rows = {site: _rows(wanted[site], layers) for site in partly}

    def body(carry, xs):
        x, buffers, memory = carry
        block, layer, row = xs
        if in_stack:
            block = layer_in_stack(stack, block, products=x.shape[:2] == (1, 1))
        x, captured, memory = run(block, x, layer, memory)
        buffers = {site: set_row(buffers[site], captured.pop(site), row[site]) for site in buffers}
        return (x, buffers, memory), captured

    first, last = program.first, program.first + len(layers)
    blocks = stack
    if in_stack:
        blocks = jnp.arange(first, last)
    elif last - first < len(jax.tree.leaves(stack)[0]):
        blocks = jax.tree.map(lambda w: w[first:last], stack)
    xs = blocks, jnp.array(layers, jnp.int32), rows
    (x, buffers, memory), everywhere = jax.lax.scan(body, (x, buffers, memory), xs)
    values = everywhere | {site: buffer[:-1] for site, buffer in buffers.items()}
    return x, {site: value[0] if len(wanted[site]) == 1 else value for site, value in values.items()}, memory


_compiled_scan = jax.jit(_scan, static_argnums=(0, 2))


def _rows(wanted: tuple[int, ...], layers: tuple[int, ...]) -> jax.Array:
    return jnp.array([wanted.index(layer) if layer in wanted else len(wanted) for layer in layers], jnp.int32)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _run_in_stack(program: Scan, structure: Any, leaves: list) -> Outputs:
    return _compiled_scan(program, structure.unflatten(leaves), True)


@functools.partial(_run_in_stack.defjvp, symbolic_zeros=True)
def _run_in_stack_jvp(program: Scan, structure: Any, primals: tuple, tangents: tuple):
    def over_weights(leaves: list) -> Outputs:
        return _compiled_scan(program, structure.unflatten(leaves), False)

    return jvp_of_changing(over_weights, primals, tangents)
