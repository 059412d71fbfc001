"""How the blocks run: in stretches of consecutive layers, compiled except for the layers that a Python hook edits.

    eager     [ loop 0..4 ][ layer 5, step by step, the Python hook between two steps ][ loop 6..29, captures stacked ]
    gradient  the same, then [ loop 29..6 ][ layer 5, step by step ][ loop 4..0 ]         (an eager jax.grad)
    traced    [ scan 0..29, all hooks inside ]                                            (the caller's jit, vmap, jvp)

The bounds of the loop are arguments of its program, so the program runs any stretch of layers. Compile time does not
grow with depth, and a new Python hook does not recompile the model. Under other transformations the same Block runs in
a `lax.scan`; Python hooks are traced there.
"""

import dataclasses
import enum
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens._jax import is_eagerly_differentiated, is_traced, tracers_in
from jaxlens.errors import HookError
from jaxlens.hooks.plan import HookPlan, zero_probe
from jaxlens.hooks.tap import Tap
from jaxlens.model.loops import (
    LoopInputs,
    Program,
    Rows,
    compiled_loop,
    differentiable_loop,
    layer_at,
    new_buffers,
    new_rows,
    set_row,
    step,
)  # fmt: skip
from jaxlens.nn.block import SPLIT_INPUTS, Block
from jaxlens.nn.module import arrays
from jaxlens.nn.sequence import LayerInfo, SequenceInfo


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

    `wanted` are the sites to capture. They are written to buffers that the whole stack shares if `buffered`, which is
    the case if they are captured in all of its layers. `edited` is True for a layer that a Python hook edits, and
    `per_head` for layers whose inputs of attention are copied for each head, because a data hook edits the copies.
    """

    stack: int
    first: int
    layers: tuple[int, ...]
    wanted: frozenset[str]
    edited: bool
    buffered: bool
    per_head: bool


class Mode(enum.IntEnum):
    """How the layers run: without a transformation, under an eager `jax.grad`, or under any other transformation."""

    EAGER = 0
    DIFFERENTIATED = 1
    SCANNED = 2

    @classmethod
    def of(cls, plan: HookPlan, *trees) -> "Mode":
        """The mode for these inputs. An eager gradient without Python hooks is a scan, which JAX can compile whole."""
        tracers = tracers_in(trees)
        if not tracers:
            return cls.EAGER
        split = any(hook.is_plain for hook in plan.hooks) and all(map(is_eagerly_differentiated, tracers))
        return cls.DIFFERENTIATED if split else cls.SCANNED


def run_layers(
    stacks: tuple[Block, ...], x: jax.Array, info: SequenceInfo, start: int, stop: int, plan: HookPlan
) -> tuple[jax.Array, list[Captured]]:
    """The residual stream [b p d] after layers start..stop-1, and the captured activations."""
    captured: list[Captured] = []
    buffers: dict[int, Rows] = {}  # by stack
    mode, next_layer = Mode.of(plan, stacks, info, plan.hooks, plan.probes), start
    planned = stretches(plan, start, stop, mode)
    while next_layer < stop:
        if is_traced(x) and (new := Mode.of(plan, x)) > mode:  # a Python hook returned a tracer that it closes over
            if new is Mode.SCANNED:
                captured, buffers = captured + _in_buffers(buffers, plan, next_layer), {}
            mode, planned = new, stretches(plan, start, stop, new, next_layer)
        stretch = next(planned)
        stack, own = stacks[stretch.stack], buffers.get(stretch.stack) if stretch.buffered else None
        if mode is Mode.SCANNED:
            x, entries = _scanned(stack, x, info, stretch, plan)
            captured += entries
        else:
            x, values = (_edited if stretch.edited else _compiled)(stack, x, info, stretch, plan, own, mode)
            if stretch.buffered:
                buffers[stretch.stack] = values
            else:
                captured += _as_captured(values, stretch.layers)
        next_layer = stretch.layers[-1] + 1
    return x, captured + _in_buffers(buffers, plan, next_layer)


def _in_buffers(buffers: dict[int, Rows], plan: HookPlan, stop: int) -> list[Captured]:
    """The captured values of the layers before `stop`."""
    entries = []
    for stack, values in buffers.items():
        layers = tuple(layer for layer in plan.cfg.stacks[stack] if layer < stop)
        if len(layers) < len(plan.cfg.stacks[stack]):
            values = {site: rows[: len(layers)] for site, rows in values.items()}
        entries += _as_captured(values, layers)
    return entries


def stretches(plan: HookPlan, start: int, stop: int, mode: Mode = Mode.EAGER, next_layer: int = 0) -> Iterator[Stretch]:
    """The stretches that cover layers start..stop-1 in order, from `next_layer` on.

    A stretch ends where the kind of block changes, where a Python hook edits a layer, where data hooks begin or cease
    to edit the inputs of heads, and where the captured sites change. A stretch with captures belongs to a whole stack,
    whose buffers it writes to, or is a single layer. So a set of sites needs a fixed number of programs, and not one
    for each number of layers. In a scan, stretches are split by kind of block only.
    """
    cfg, scanned = plan.cfg, mode is Mode.SCANNED
    index = {layer: (stack, i) for stack, layers in enumerate(cfg.stacks) for i, layer in enumerate(layers)}
    of_heads = [hook for hook in plan.hooks if hook.site in SPLIT_INPUTS and not hook.is_plain and not scanned]
    edited = frozenset() if scanned else plan.edited_by_python(differentiated=mode is Mode.DIFFERENTIATED)

    def kind(layer: int):
        return index[layer][0], None if scanned else plan.wanted_in.get(layer)

    for (stack, wanted), group in itertools.groupby(range(start, stop), kind):
        layers = tuple(group)
        buffered = bool(wanted) and layers == cfg.stacks[stack] and len(layers) > 1
        single = edited if buffered or not wanted else frozenset(layers)

        def part_of(layer: int, single=single):
            return layer if layer in single else None, any(hook.acts_in(layer) for hook in of_heads)

        for (_, per_head), part in itertools.groupby((layer for layer in layers if layer >= next_layer), part_of):
            part = tuple(part)
            first, sites = part[0], wanted or frozenset()
            yield Stretch(stack, index[first][1], part, sites, first in edited, buffered, per_head)


# --- compiled stretches


def _compiled(stack: Block, x, info: SequenceInfo, stretch: Stretch, plan: HookPlan, buffers: Rows | None, mode: Mode):
    """A stretch as a compiled loop: the residual stream, and the captured values, in the rows of its buffers if any."""
    layers = plan.cfg.stacks[stretch.stack]
    rows = layers if stretch.buffered else stretch.layers if stretch.wanted else ()
    hooks = plan.data_hooks_in(layers)  # of the whole stack, so that all of its stretches have one program
    hooks = tuple(hook for hook in hooks if stretch.per_head or hook.site not in SPLIT_INPUTS)
    inputs = LoopInputs(stack, (info, hooks, plan.positions), plan.probes_at(stretch.wanted, rows))
    loop = compiled_loop if mode is Mode.EAGER else differentiable_loop
    program = Program(layers, stretch.wanted, len(rows))
    if buffers is None:
        buffers = new_buffers(program, inputs, x) if rows else {}
    first, last = np.int32(stretch.first), np.int32(stretch.first + len(stretch.layers))
    x, values = loop(program, inputs, x, buffers, first, last)
    if mode is Mode.EAGER and is_traced(x) and is_eagerly_differentiated(x):  # although no input is traced
        problem = "a function of hook(fn, **data) uses a value that is differentiated and is not among its data"
        raise HookError(f"{problem}; pass the value as data, as in hook(fn, w=w)")
    return x, values if stretch.buffered else {site: value[0] for site, value in values.items()}


def _as_captured(values: Rows, layers: tuple[int, ...]) -> list[Captured]:
    """Values by site as Captured. The values of a single layer have no axis of layers."""
    if len(layers) == 1:
        return [Captured(f"blocks.{layers[0]}.{site}", None, value) for site, value in values.items()]
    return [Captured(site, layers, value) for site, value in values.items()]


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

    def run(block, x, layer):
        return step(block, x, layer, info, Tap(hooks, sites, layer, positions, points, length))

    partly = [site for site in wanted if wanted[site] != layers]
    shapes = jax.eval_shape(run, layer_at(stack, 0), x, jnp.int32(0))[1] if partly else {}
    # one extra row, to which the values of all other layers are written
    buffers = {site: jnp.zeros((len(wanted[site]) + 1, *shapes[site].shape), shapes[site].dtype) for site in partly}
    rows = {site: _rows(wanted[site], layers) for site in partly}

    def body(carry, xs):
        x, buffers = carry
        block, layer, row = xs
        x, captured = run(block, x, layer)
        buffers = {site: set_row(buffers[site], captured.pop(site), row[site]) for site in buffers}
        return (x, buffers), captured

    (x, buffers), everywhere = jax.lax.scan(body, (x, buffers), (stack, jnp.array(layers, jnp.int32), rows))
    values = everywhere | {site: buffer[:-1] for site, buffer in buffers.items()}
    return x, {site: value[0] if len(wanted[site]) == 1 else value for site, value in values.items()}


_compiled_scan = jax.jit(_scan, static_argnums=(5, 6))


def _rows(wanted: tuple[int, ...], layers: tuple[int, ...]) -> jax.Array:
    return jnp.array([wanted.index(layer) if layer in wanted else len(wanted) for layer in layers], jnp.int32)


# --- a layer that a Python hook edits

_new_rows = jax.jit(new_rows, static_argnames="n")
_set_row, _set_row_in_place = jax.jit(set_row), jax.jit(set_row, donate_argnums=0)


@jax.jit
def _block_at(stack: Block, i) -> Block:
    """The layer at index i of a stack, with arrays in place of its parameters: one program for all lengths."""
    return arrays(layer_at(stack, i))


@jax.jit
def _info_at(info: SequenceInfo, layer) -> LayerInfo:
    return info.at_layer(layer)


def _edited(stack: Block, x, info: SequenceInfo, stretch: Stretch, plan: HookPlan, buffers: Rows | None, mode: Mode):
    """A layer step by step, so that a Python hook can run between two steps, on concrete values."""
    (layer,), row = stretch.layers, np.int32(stretch.first)
    probes = (zero_probe(site, zeros[0]) for site, zeros in plan.probes_at(stretch.wanted, stretch.layers).items())
    tap = Tap((*plan.hooks, *probes), stretch.wanted, layer, plan.positions, plan.points, plan.length, stepwise=True)
    x = _block_at(stack, row)(x, _info_at(info, np.int32(layer)), tap)
    if not stretch.buffered:
        return x, tap.captured
    if buffers is None:
        buffers = _new_rows(tap.captured, n=len(plan.cfg.stacks[stretch.stack]))
    return x, (_set_row_in_place if mode is Mode.EAGER else _set_row)(buffers, tap.captured, row)


# --- before and after the blocks


def run_stage(stage, modules, inputs: tuple, plan: HookPlan, names: tuple[str, ...]):
    """Runs `stage(modules, *inputs, tap)`, with hook points `names`: compiled, or step by step if Python edits it."""
    wanted = frozenset(name for name in names if name in plan.wanted)
    hooks = tuple(hook for hook in (*plan.hooks, *plan.probes) if hook.site in names)
    if any(hook.is_plain for hook in hooks):
        output, captured = _stage(modules, inputs, hooks, plan.positions, stage, wanted, plan.points, plan.length)
    elif plan.positions is not None or is_traced(modules, inputs, hooks):
        output, captured = _stage_compiled(modules, inputs, hooks, plan.positions, stage, wanted)
    else:  # one program for all runs, which captures everything; the logits are its output
        everything = frozenset(names) - {"unembed.hook_out"}
        output, captured = _stage_compiled(modules, inputs, hooks, None, stage, everything)
        captured["unembed.hook_out"] = output
    return output, [Captured(name, None, value) for name, value in captured.items() if name in wanted]


def _stage(modules, inputs, hooks, positions, stage, wanted, points=None, length=None):
    tap = Tap(hooks, wanted, None, positions, points, length)
    return stage(arrays(modules), *inputs, tap), tap.captured


_stage_compiled = jax.jit(_stage, static_argnums=(4, 5))
