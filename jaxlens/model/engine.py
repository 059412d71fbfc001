"""How the blocks run: in stretches of consecutive layers, compiled except for the layers that a Python hook edits.

    eager     [ loop 0..4 ][ layer 5, step by step, the Python hook between two steps ][ loop 6..29, captures stacked ]
    traced    [ scan 0..29, all hooks inside ]                   (under the caller's jit, grad or vmap)

The bounds of the loop are arguments of its program, so the program runs any stretch of layers. Compile time does not
grow with depth, and a new Python hook does not recompile the model. Under a transformation the same Block runs in a
`lax.scan`, which can be differentiated; Python hooks are traced there.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens._jax import is_traced
from jaxlens.hooks.plan import HookPlan
from jaxlens.hooks.tap import Tap
from jaxlens.nn.block import Block
from jaxlens.nn.module import arrays
from jaxlens.nn.sequence import SequenceInfo


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Captured:
    """A captured activation: one value under its full name, or the values of `layers` stacked under their site."""

    name: str = dataclasses.field(metadata={"static": True})
    layers: tuple[int, ...] | None = dataclasses.field(metadata={"static": True})
    value: jax.Array


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Consecutive layers that run together, starting at index `first` of a stack of equal blocks.

    `wanted` are the sites to capture. `edited` is True for a layer that a Python hook edits.
    """

    stack: int
    first: int
    layers: tuple[int, ...]
    wanted: frozenset[str]
    edited: bool


def run_layers(
    stacks: tuple[Block, ...], x: jax.Array, info: SequenceInfo, start: int, stop: int, plan: HookPlan
) -> tuple[jax.Array, list[Captured]]:
    """The residual stream [b p d] after layers start..stop-1, and the captured activations."""
    captured: list[Captured] = []
    traced = is_traced(stacks, info, plan.hooks)
    planned = stretches(plan, start, stop, whole=traced)
    while start < stop:
        if not traced and is_traced(x):  # a Python hook returned a tracer that it closes over
            traced, planned = True, stretches(plan, start, stop, whole=True)
        stretch = next(planned)
        run = _scanned if traced else _edited if stretch.edited else _compiled
        x, new = run(stacks[stretch.stack], x, info, stretch, plan)
        captured, start = captured + new, stretch.layers[-1] + 1
    return x, captured


def stretches(plan: HookPlan, start: int, stop: int, whole: bool = False) -> Iterator[Stretch]:
    """The stretches that cover layers start..stop-1 in order.

    A stretch ends where the kind of block changes, where a Python hook edits a layer, and where the captured sites
    change. A stretch with captures is a whole stack or a single layer, so that a set of sites needs two programs, and
    not a program for each number of layers. With `whole`, stretches are split by kind of block only.
    """
    cfg = plan.cfg
    index = {layer: (stack, i) for stack, layers in enumerate(cfg.stacks) for i, layer in enumerate(layers)}

    def kind(layer: int):
        edited = layer if layer in plan.edited_by_python else None
        return index[layer][0], *((None, None) if whole else (plan.wanted_in.get(layer), edited))

    for (stack, wanted, edited), group in itertools.groupby(range(start, stop), kind):
        layers = tuple(group)
        together = not wanted or len(layers) == len(cfg.stacks[stack])
        for part in [layers] if together else [(layer,) for layer in layers]:
            yield Stretch(stack, index[part[0]][1], part, wanted or frozenset(), edited is not None)


# --- compiled stretches


def _compiled(stack: Block, x, info: SequenceInfo, stretch: Stretch, plan: HookPlan):
    first, last = stretch.first, stretch.first + len(stretch.layers)
    layers = plan.cfg.stacks[stretch.stack]
    hooks = tuple(hook for hook in plan.hooks_in(layers) if not hook.is_plain)
    x, values = _loop(
        stack, x, info, np.int32(first), np.int32(last), hooks, plan.positions,
        layers=layers, wanted=stretch.wanted, n_captured=len(stretch.layers) if stretch.wanted else 0,
    )  # fmt: skip
    return x, _as_captured(values, stretch.layers)


def _as_captured(values: dict[str, jax.Array], layers: tuple[int, ...]) -> list[Captured]:
    """Values by site as Captured. The values of a single layer have no axis of layers."""
    if len(layers) == 1:
        return [Captured(f"blocks.{layers[0]}.{site}", None, value) for site, value in values.items()]
    return [Captured(site, layers, value) for site, value in values.items()]


@functools.partial(jax.jit, static_argnames=("layers", "wanted", "n_captured"))
def _loop(stack, x, info, first, last, hooks, positions, *, layers, wanted, n_captured):
    """Layers first..last-1 of a stack; the bounds are traced. Captures are written to buffers of `n_captured` rows."""
    step = functools.partial(_step, info=info, tap=functools.partial(Tap, hooks, wanted, positions=positions))
    numbers = jnp.array(layers, jnp.int32)

    def body(i, carry):
        x, buffers = carry
        x, captured = step(_layer_of(stack, i), x, numbers[i])
        return x, {site: _set_row(buffers[site], value, i - first) for site, value in captured.items()}

    shapes = jax.eval_shape(step, _layer_of(stack, 0), x, numbers[0])[1]
    buffers = {site: jnp.zeros((n_captured, *shape.shape), shape.dtype) for site, shape in shapes.items()}
    x, buffers = jax.lax.fori_loop(first, last, body, (x, buffers))
    return x, {site: value[0] for site, value in buffers.items()} if n_captured == 1 else buffers


def _step(block: Block, x, layer, *, info: SequenceInfo, tap: Callable[..., Tap]):
    """A layer and what its tap captures. `tap(layer=layer)` makes the tap."""
    tap = tap(layer=layer)
    x = block(x, info.at_layer(layer), tap)
    return x, tap.captured


def _layer_of(stack: Block, i) -> Block:
    return jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, i, keepdims=False), arrays(stack))


def _set_row(buffer, value, i):
    return jax.lax.dynamic_update_index_in_dim(buffer, value, i, 0)


# --- under a transformation


def _scanned(stack: Block, x, info: SequenceInfo, stretch: Stretch, plan: HookPlan):
    """A stretch as a scan, which can be differentiated. All hooks are inside, each conditional on its layers."""
    wanted: dict[str, list[int]] = {}  # site -> the layers of this stretch in which it is captured
    for layer in stretch.layers:
        for site in plan.wanted_in.get(layer, ()):
            wanted.setdefault(site, []).append(layer)
    if stretch.first or len(stretch.layers) < len(plan.cfg.stacks[stretch.stack]):
        stack = jax.tree.map(lambda w: w[stretch.first : stretch.first + len(stretch.layers)], stack)
    wanted_in = tuple((site, tuple(wanted[site])) for site in sorted(wanted))
    inputs, program = (stack, x, info, plan.hooks_in(stretch.layers), plan.positions), (stretch.layers, wanted_in)
    if any(hook.is_plain for hook in inputs[3]):  # traced anew: a Python function may read globals that have changed
        x, values = _scan(*inputs, *program, plan.points, plan.length)
    else:
        x, values = _compiled_scan(*inputs, *program)
    return x, [entry for site, layers in wanted_in for entry in _as_captured({site: values[site]}, layers)]


def _scan(stack, x, info, hooks, positions, layers, wanted_in, points=None, length=None):
    """All layers of a stack. A site that is not captured in every layer has a buffer for its layers."""
    wanted = dict(wanted_in)
    sites = frozenset(wanted)
    tap = functools.partial(Tap, hooks, sites, positions=positions, points=points, length=length)
    step = functools.partial(_step, info=info, tap=tap)
    partly = [site for site in wanted if wanted[site] != layers]
    shapes = jax.eval_shape(step, _layer_of(stack, 0), x, jnp.int32(0))[1] if partly else {}
    # one extra row, to which the values of all other layers are written
    buffers = {site: jnp.zeros((len(wanted[site]) + 1, *shapes[site].shape), shapes[site].dtype) for site in partly}
    rows = {site: _rows(wanted[site], layers) for site in partly}

    def body(carry, xs):
        x, buffers = carry
        block, layer, row = xs
        x, captured = step(arrays(block), x, layer)
        buffers = {site: _set_row(buffers[site], captured.pop(site), row[site]) for site in buffers}
        return (x, buffers), captured

    (x, buffers), everywhere = jax.lax.scan(body, (x, buffers), (stack, jnp.array(layers, jnp.int32), rows))
    values = everywhere | {site: buffer[:-1] for site, buffer in buffers.items()}
    return x, {site: value[0] if len(wanted[site]) == 1 else value for site, value in values.items()}


_compiled_scan = jax.jit(_scan, static_argnums=(5, 6))


def _rows(wanted: tuple[int, ...], layers: tuple[int, ...]) -> jax.Array:
    return jnp.array([wanted.index(layer) if layer in wanted else len(wanted) for layer in layers], jnp.int32)


# --- a layer that a Python hook edits

_compiled_layer_of = jax.jit(_layer_of)
_compiled_at_layer = jax.jit(SequenceInfo.at_layer)


def _edited(stack: Block, x, info: SequenceInfo, stretch: Stretch, plan: HookPlan):
    """A layer step by step, so that a Python hook can run between two steps, on concrete values."""
    (layer,) = stretch.layers
    block = _compiled_layer_of(stack, np.int32(stretch.first))
    tap = Tap(plan.hooks, stretch.wanted, layer, plan.positions, plan.points, plan.length, stepwise=True)
    x = block(x, _compiled_at_layer(info, np.int32(layer)), tap)
    return x, _as_captured(tap.captured, stretch.layers)


# --- before and after the blocks


def run_stage(stage, modules, inputs: tuple, plan: HookPlan, names: tuple[str, ...]):
    """Runs `stage(modules, *inputs, tap)`, with hook points `names`: compiled, or step by step if Python edits it."""
    wanted = frozenset(name for name in names if name in plan.wanted)
    hooks = tuple(hook for hook in plan.hooks if hook.site in names)
    if any(hook.is_plain for hook in hooks):
        output, captured = _stage(modules, inputs, hooks, plan.positions, stage, wanted, plan.points, plan.length)
    else:
        output, captured = _stage_compiled(modules, inputs, hooks, plan.positions, stage, wanted)
    return output, [Captured(name, None, value) for name, value in captured.items()]


def _stage(modules, inputs, hooks, positions, stage, wanted, points=None, length=None):
    tap = Tap(hooks, wanted, None, positions, points, length)
    return stage(arrays(modules), *inputs, tap), tap.captured


_stage_compiled = jax.jit(_stage, static_argnums=(4, 5))
