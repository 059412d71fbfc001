"""How the blocks run: in stretches of consecutive layers, compiled except for the layers that a Python hook edits.

    eager     [ loop 0..4 ][ layer 5, step by step, the Python hook between two steps ][ loop 6..29, captures stacked ]
              [ loop 0..4 ] the Python hook, if it edits the residual stream between two layers [ loop 5..29 ]
    gradient  the same, then [ loop 29..6 ][ layer 5, step by step ][ loop 4..0 ]         (an eager jax.grad)
    traced    [ scan 0..29, all hooks inside ]                                            (the caller's jit, vmap, jvp)
    large cache   [ layer 0 ][ layer 1 ] … [ layer 29 ], captures in arrays of their own

The bounds of the loop are arguments of its program, so the program runs any stretch of layers. Compile time does not
grow with depth, and a new Python hook does not recompile the model. Under other transformations the same Block runs in
a `lax.scan`; Python hooks are traced there.
"""

import dataclasses
import enum
import functools
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens._jax import is_eagerly_differentiated, is_traced, tracers_in
from jaxlens.config import Config
from jaxlens.errors import HookError
from jaxlens.hooks.plan import HookPlan, sites_by_layer, zero_probe
from jaxlens.hooks.table import RESID_POST, RESID_PRE, sites
from jaxlens.hooks.tap import Tap
from jaxlens.model.loops import (
    LoopInputs,
    Memory,
    Program,
    Rows,
    compiled_layer,
    compiled_loop,
    differentiable_loop,
    layer_at,
    new_buffers,
    new_rows,
    set_row,
)  # fmt: skip
from jaxlens.model.scans import Scan
from jaxlens.nn.block import SPLIT_INPUTS, Block
from jaxlens.nn.kv_cache import LayerMemory
from jaxlens.nn.module import arrays, axis_lengths
from jaxlens.nn.sequence import Columns, SequenceInfo


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
    the case if they are captured in all of its layers, unless they are a large cache. `edited` is True for a layer that
    a Python hook edits, and `per_head` for layers whose inputs of attention are copied for each head, because a data
    hook edits the copies.
    """

    stack: int
    first: int
    layers: tuple[int, ...]
    wanted: frozenset[str]
    edited: bool
    buffered: bool
    per_head: bool

    @property
    def last_row(self) -> int:
        """The row of the last layer in the captured values."""
        return self.first + len(self.layers) - 1 if self.buffered else 0


class Mode(enum.IntEnum):
    """How the layers run: without a transformation, under an eager `jax.grad`, or under any other transformation."""

    EAGER = 0
    DIFFERENTIATED = 1
    SCANNED = 2

    @classmethod
    def of(cls, plan: HookPlan, memory: Memory, *trees) -> "Mode":
        """The mode for these inputs. An eager gradient without Python hooks is a scan, which JAX can compile whole."""
        tracers = tracers_in(memory, trees)
        if not tracers:
            return cls.EAGER
        split = any(hook.is_plain for hook in plan.hooks) and all(map(is_eagerly_differentiated, tracers))
        return cls.DIFFERENTIATED if split and memory is None else cls.SCANNED


def run_layers(
    stacks: tuple[Block, ...], x: jax.Array, info: SequenceInfo, start: int, stop: int, plan: HookPlan,
    memory: Memory = None, mode: Mode | None = None,
) -> tuple[jax.Array, list[Captured], Memory]:  # fmt: skip
    """The residual stream [b p d] after layers start..stop-1, the captured activations, and the memory.

    The memory holds the keys and values of a KV cache. Those of the new tokens are added; outside of transformations
    its arrays are used up.
    """
    captured: list[Captured] = []
    buffers: dict[int, Rows] = {}  # by stack
    next_layer, is_given = start, mode is not None
    mode = mode if is_given else Mode.of(plan, memory, stacks, info, plan.hooks, plan.probes)
    stacked = is_given or mode is not Mode.EAGER or is_traced(x) or not _is_large_cache(plan, x)
    planned = stretches(plan, start, stop, mode, stacked=stacked)
    while next_layer < stop:
        stretch = next(planned)
        if mode is not Mode.SCANNED and not stretch.edited and plan.plain_hooks_at(RESID_PRE, next_layer):
            x, _ = _edited_end(RESID_PRE, x, next_layer, plan, info.columns)
            plan = plan.without_plain_hooks_at(RESID_PRE, next_layer)
        # The residual stream may be a tracer, also one that a Python hook closes over and returns.
        if not is_given and is_traced(x) and (new := Mode.of(plan, memory, x)) > mode:
            if new is Mode.SCANNED:
                captured, buffers = captured + _in_buffers(buffers, plan, next_layer), {}
            mode, planned = new, stretches(plan, start, stop, new, next_layer, stacked)
            stretch = next(planned)
        stack, own = stacks[stretch.stack], buffers.get(stretch.stack) if stretch.buffered else None
        if mode is Mode.SCANNED:
            x, entries, memory = _scanned(stack, x, info, stretch, plan, memory)
            captured += entries
        else:
            run = _edited if stretch.edited else _compiled
            x, values, memory = run(stack, x, info, stretch, plan, own, mode, memory)
            if not stretch.edited and plan.plain_hooks_at(RESID_POST, stretch.layers[-1]):
                x, values = _edited_after(x, values, stretch, plan, mode, info.columns)
            if stretch.buffered:
                buffers[stretch.stack] = values
            else:
                captured += _as_captured(values, stretch.layers)
        next_layer = stretch.layers[-1] + 1
    return x, captured + _in_buffers(buffers, plan, next_layer), memory


def _in_buffers(buffers: dict[int, Rows], plan: HookPlan, stop: int) -> list[Captured]:
    """The captured values of the layers before `stop`."""
    entries = []
    for stack, values in buffers.items():
        layers = tuple(layer for layer in plan.cfg.stacks[stack] if layer < stop)
        if len(layers) < len(plan.cfg.stacks[stack]):
            values = {site: rows[: len(layers)] for site, rows in values.items()}
        entries += _as_captured(values, layers)
    return entries


MANY_SITES, MANY_BYTES = 8, 2**27
"""A cache of more than so many sites and bytes is large."""


def _is_large_cache(plan: HookPlan, x: jax.Array) -> bool:
    """Whether so much is captured that each layer gets arrays of its own, which need not be filled with zeros first.

    Captures of few sites stay in one array each: they are often read in all layers at once.
    """
    return plan.positions is None and _captured_bytes(plan.cfg, plan.wanted, x.shape[:2]) > MANY_BYTES


@functools.lru_cache(maxsize=256)
def _captured_bytes(cfg: Config, names: frozenset[str], shape: tuple[int, int]) -> int:
    """The bytes of these activations of all layers, in a run of [b p] tokens, or 0 if they are few sites."""
    in_blocks = [sites(cfg)[name] for name in names if name.startswith("blocks.")]
    if len({site.name for site in in_blocks}) <= MANY_SITES:
        return 0
    (b, p), size = shape, jnp.dtype(cfg.dtype).itemsize
    lengths = axis_lengths(cfg) | {"b": b, "p": p, "s": p, "1": 1}
    return size * sum(math.prod(lengths[letter] for letter in site.axes.split()) for site in in_blocks)


def stretches(
    plan: HookPlan, start: int, stop: int, mode: Mode = Mode.EAGER, next_layer: int = 0, stacked: bool = True
) -> Iterator[Stretch]:
    """The stretches that cover layers start..stop-1 in order, from `next_layer` on.

    A stretch ends where the kind of block changes, where a Python hook edits a layer or the residual stream between two
    layers, where data hooks begin or cease to edit the inputs of heads, and where the captured sites change. A stretch
    with captures belongs to a whole stack, whose buffers it writes to, or is a single layer; always the latter unless
    `stacked`. So a set of sites needs a fixed number of programs, and not one for each number of layers. In a scan,
    stretches are split by kind of block only.
    """
    if mode is Mode.SCANNED:
        return iter(_stretches(plan.cfg, None, *[frozenset()] * 3, start, stop, next_layer, stacked))
    edited, after_edit = plan.edited_by_python(differentiated=mode is Mode.DIFFERENTIATED)
    of_heads = [hook for hook in plan.hooks if hook.site in SPLIT_INPUTS and not hook.is_plain]
    per_head = frozenset(layer for hook in of_heads for layer in range(start, stop) if hook.acts_in(layer))
    return iter(_stretches(plan.cfg, plan.wanted, edited, after_edit, per_head, start, stop, next_layer, stacked))


@functools.lru_cache(maxsize=256)
def _stretches(
    cfg: Config, names: frozenset[str] | None, edited: frozenset[int], after_edit: frozenset[int],
    per_head: frozenset[int], start: int, stop: int, next_layer: int, stacked: bool,
) -> tuple[Stretch, ...]:  # fmt: skip
    """`stretches` that capture these names (None: in a scan, which captures in any layer)."""
    index = {layer: (stack, i) for stack, layers in enumerate(cfg.stacks) for i, layer in enumerate(layers)}
    wanted_in = {} if names is None else sites_by_layer(names)
    planned = []
    for (stack, wanted), group in itertools.groupby(
        range(start, stop), lambda layer: (index[layer][0], wanted_in.get(layer))
    ):
        layers = tuple(group)
        buffered = stacked and bool(wanted) and layers == cfg.stacks[stack] and len(layers) > 1
        single = edited if buffered or not wanted else frozenset(layers)

        def part_of(layer: int, single=single):
            return layer if layer in single else None, sum(begin <= layer for begin in after_edit), layer in per_head

        for (*_, of_heads), part in itertools.groupby((layer for layer in layers if layer >= next_layer), part_of):
            part = tuple(part)
            first, sites = part[0], wanted or frozenset()
            planned.append(Stretch(stack, index[first][1], part, sites, first in edited, buffered, of_heads))
    return tuple(planned)


# --- compiled stretches

NOT_AMONG_DATA = (
    "a function of hook(fn, **data) uses a value that is differentiated and is not among its data; pass the value as "
    "data, as in hook(fn, w=w)"
)


def _compiled(
    stack: Block, x, info: SequenceInfo, stretch: Stretch, plan: HookPlan, buffers: Rows | None, mode: Mode,
    memory: Memory,
):  # fmt: skip
    """A stretch, compiled: the residual stream, and the captured values, in the rows of its buffers if any."""
    layers = plan.cfg.stacks[stretch.stack]
    rows = layers if stretch.buffered else stretch.layers if stretch.wanted else ()
    hooks = plan.data_hooks_in(layers)  # of the whole stack, so that all of its stretches have one program
    hooks = tuple(hook for hook in hooks if stretch.per_head or hook.site not in SPLIT_INPUTS)
    probes = plan.probes_at(stretch.wanted, rows)
    if RESID_POST in probes and plan.plain_hooks_at(RESID_POST, stretch.layers[-1]):  # added after these hooks
        probes |= _with_zero_row({RESID_POST: probes[RESID_POST]}, np.int32(stretch.last_row))
    inputs = LoopInputs(stack, (info, hooks, plan.positions), probes)
    program, first = Program(layers, stretch.wanted, len(rows)), np.int32(stretch.first)
    try:
        if mode is Mode.EAGER and stretch.wanted and not stretch.buffered:
            x, values, memory = compiled_layer(program, inputs, x, first, memory)
        else:
            loop = compiled_loop if mode is Mode.EAGER else differentiable_loop
            if buffers is None:
                buffers = new_buffers(program, inputs, x, memory) if rows else {}
            x, values, memory = loop(program, inputs, x, buffers, first, first + np.int32(len(stretch.layers)), memory)
            values = values if stretch.buffered else {site: value[0] for site, value in values.items()}
    except ValueError as error:
        if mode is Mode.EAGER and "Linearization failed" in str(error):  # JAX cannot differentiate such a loop
            raise HookError(NOT_AMONG_DATA) from error
        raise
    if mode is Mode.EAGER and is_traced(x) and is_eagerly_differentiated(x):  # although no input is traced
        raise HookError(NOT_AMONG_DATA)
    return x, values, memory


def _as_captured(values: Rows, layers: tuple[int, ...]) -> list[Captured]:
    """Values by site as Captured. The values of a single layer have no axis of layers."""
    if len(layers) == 1:
        return [Captured(f"blocks.{layers[0]}.{site}", None, value) for site, value in values.items()]
    return [Captured(site, layers, value) for site, value in values.items()]


# --- under a transformation


def _scanned(stack: Block, x, info: SequenceInfo, stretch: Stretch, plan: HookPlan, memory: Memory):
    """A stretch as a scan, which can be differentiated. All hooks are inside, each conditional on its layers."""
    wanted: dict[str, list[int]] = {}  # site -> the layers of this stretch in which it is captured
    for layer in stretch.layers:
        for site in plan.wanted_in.get(layer, ()):
            wanted.setdefault(site, []).append(layer)
    wanted_in = tuple((site, tuple(wanted[site])) for site in sorted(wanted))
    program = Scan(stretch.first, stretch.layers, wanted_in)
    inputs = stack, x, info, plan.hooks_in(stretch.layers), plan.positions, memory
    x, values, memory = program.run(inputs, plan.points, plan.length)
    return x, [entry for site, layers in wanted_in for entry in _as_captured({site: values[site]}, layers)], memory


# --- a layer that a Python hook edits

_new_rows = jax.jit(new_rows, static_argnames="n")
_set_row, _set_row_in_place = jax.jit(set_row), jax.jit(set_row, donate_argnums=0)


@jax.jit
def _block_at(stack: Block, i) -> Block:
    """The layer at index i of a stack, with arrays in place of its parameters: one program for all lengths."""
    return arrays(layer_at(stack, i))


_info_at = jax.jit(SequenceInfo.at_layer)


def _edited(
    stack: Block, x, info: SequenceInfo, stretch: Stretch, plan: HookPlan, buffers: Rows | None, mode: Mode,
    memory: Memory,
):  # fmt: skip
    """A layer step by step, so that a Python hook can run between two steps, on concrete values."""
    (layer,), row = stretch.layers, np.int32(stretch.first)
    probes = (zero_probe(site, zeros[0]) for site, zeros in plan.probes_at(stretch.wanted, stretch.layers).items())
    tap = Tap((*plan.hooks, *probes), stretch.wanted, layer, plan.positions, plan.points, plan.length, stepwise=True)
    tap.columns = info.columns
    if memory is not None:
        tap.memory = LayerMemory(memory, np.int32(layer), info.start, not info.sees_slots, in_place=True)
    x = _block_at(stack, row)(x, _info_at(info, np.int32(layer)), tap)
    memory = None if memory is None else tap.memory.rows
    if not stretch.buffered:
        return x, tap.captured, memory
    if buffers is None:
        buffers = _new_rows(tap.captured, n=len(plan.cfg.stacks[stretch.stack]))
    return x, (_set_row_in_place if mode is Mode.EAGER else _set_row)(buffers, tap.captured, row), memory


# --- between two layers


@jax.jit
def _with_zero_row(rows: Rows, i) -> Rows:
    return set_row(rows, jax.tree.map(lambda w: jnp.zeros(w.shape[1:], w.dtype), rows), i)


def _edited_end(site: str, x, layer: int, plan: HookPlan, columns: Columns, wanted: frozenset[str] = frozenset()):
    """The residual stream at an end of a layer, `site`, after its Python hooks and its probe, and what is captured."""
    wanted &= {site}
    probes = (zero_probe(site, zeros[0]) for site, zeros in plan.probes_at(wanted, (layer,)).items())
    hooks = (*plan.plain_hooks_at(site, layer), *probes)
    tap = Tap(hooks, wanted, layer, plan.positions, plan.points, plan.length, stepwise=True, columns=columns)
    return tap(site, x), tap.captured


def _edited_after(
    x, values: Rows, stretch: Stretch, plan: HookPlan, mode: Mode, columns: Columns
) -> tuple[jax.Array, Rows]:
    """The residual stream after a compiled stretch, edited by Python hooks, and the captured values with the edit."""
    x, captured = _edited_end(RESID_POST, x, stretch.layers[-1], plan, columns, stretch.wanted)
    if captured and stretch.buffered:
        set_one = _set_row_in_place if mode is Mode.EAGER else _set_row
        captured = set_one({RESID_POST: values[RESID_POST]}, captured, np.int32(stretch.last_row))
    return x, values | captured


# --- before and after the blocks


def run_stage(stage, modules, inputs: tuple, plan: HookPlan, names: tuple[str, ...]):
    """Runs `stage(modules, *inputs, tap=tap)`, with hook points `names`: compiled, or in steps if Python edits it."""
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
    return stage(arrays(modules), *inputs, tap=tap), tap.captured


_stage_compiled = jax.jit(_stage, static_argnums=(4, 5))
