"""How a forward runs: as a plan of compiled stretches, with the layers that Python functions edit between them.

    eager     [ loop 0..4 ][ layer 5, op by op, a Python hook between two ops ][ loop 6..29, captures stacked ]
    traced    [ scan 0..29, every hook inside ]                  (under the caller's jit, grad or vmap)

The loop takes its bounds as data, so one program runs any stretch of layers: compile time does not grow with depth, and
a new Python hook compiles nothing of the model. Under a transformation the same Block runs in a `lax.scan`, which can
be differentiated; a Python function is traced there like any other.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxlens.config import Config
from jaxlens.hooks import Listening, Tap
from jaxlens.nn.block import Block
from jaxlens.nn.context import Context
from jaxlens.tracing import is_traced


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Caught:
    """What was wanted of one hook point: its value, under its full name; or, under the name of the site in its block,
    the values of `layers`, stacked on a leading axis."""

    name: str = dataclasses.field(metadata={"static": True})
    layers: tuple[int, ...] | None = dataclasses.field(metadata={"static": True})
    value: jax.Array


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Consecutive layers that run in one go: `count` of them from index `first` of a stack of equal blocks."""

    stack: int
    first: int
    layers: tuple[int, ...]
    wanted: frozenset[str]
    edited: bool


def run_layers(
    stacks: tuple[Block, ...], x: jax.Array, context: Context, start: int, stop: int, listening: Listening
) -> tuple[jax.Array, list[Caught]]:
    """The residual stream [b p d] after layers start..stop-1, and what was wanted on the way.

    A Python function may close over something traced, so whether a transformation is looking is asked before every
    stretch: what comes after such a function is differentiable again.
    """
    caught: list[Caught] = []
    traced = is_traced(stacks, context, listening.edits)
    while start < stop:
        traced = traced or is_traced(x)
        stretch = next(plan(listening, start, stop, whole=traced))
        run = _scanned if traced else _edited if stretch.edited else _compiled
        x, found = run(stacks[stretch.stack], x, context, stretch, listening)
        caught, start = caught + found, stretch.layers[-1] + 1
    return x, caught


def plan(listening: Listening, start: int, stop: int, whole: bool = False) -> Iterator[Stretch]:
    """The stretches that cover layers start..stop-1 in order.

    Stretches end where the kind of block changes, where Python edits a layer, and where the wanted sites change. With
    captures a stretch is a whole stack or a single layer, so that there are two programs for a set of sites and not
    one for every length. `whole` ignores all but the kind of block.
    """
    cfg = listening.cfg
    place = {layer: (stack, i) for stack, layers in enumerate(cfg.stacks) for i, layer in enumerate(layers)}

    def kind(layer: int):
        wanted = listening.wanted_at(layer)
        edited = listening.edited_by_python(layer)
        return place[layer][0], *((None, None) if whole else (wanted, layer if edited else None))

    for (stack, wanted, edited), group in itertools.groupby(range(start, stop), kind):
        layers = tuple(group)
        in_one_go = not wanted or len(layers) == len(cfg.stacks[stack])
        for part in [layers] if in_one_go else [(layer,) for layer in layers]:
            yield Stretch(stack, place[part[0]][1], part, wanted or frozenset(), edited is not None)


# --- compiled stretches


def _compiled(stack: Block, x, context: Context, stretch: Stretch, listening: Listening):
    first, last = stretch.first, stretch.first + len(stretch.layers)
    layers = listening.cfg.stacks[stretch.stack]
    edits = tuple(edit for edit in listening.edits_in(layers) if not edit.is_plain)
    x, values = _loop(
        stack, x, context, np.int32(first), np.int32(last), edits,
        layers=layers, wanted=stretch.wanted, positions=listening.positions,
        n_caught=len(stretch.layers) if stretch.wanted else 0,
    )  # fmt: skip
    return x, _named(values, stretch.layers)


def _named(values: dict[str, jax.Array], layers: tuple[int, ...]) -> list[Caught]:
    """Values by site as Caught; those of a single layer are not stacked."""
    if len(layers) == 1:
        return [Caught(f"blocks.{layers[0]}.{site}", None, value) for site, value in values.items()]
    return [Caught(site, layers, value) for site, value in values.items()]


@functools.partial(jax.jit, static_argnames=("layers", "wanted", "positions", "n_caught"))
def _loop(stack, x, context, first, last, edits, *, layers, wanted, positions, n_caught):
    """Layers first..last-1 of a stack; the bounds are data. Captures fill buffers of a fixed number of layers."""
    step = functools.partial(_step, context=context, edits=edits, wanted=wanted, positions=positions)
    numbers = jnp.array(layers, jnp.int32)

    def body(i, carry):
        x, buffers = carry
        x, caught = step(_take(stack, i), x, numbers[i])
        return x, {site: _put(buffers[site], value, i - first) for site, value in caught.items()}

    shapes = jax.eval_shape(step, _take(stack, 0), x, numbers[0])[1]
    buffers = {site: jnp.zeros((n_caught, *shape.shape), shape.dtype) for site, shape in shapes.items()}
    x, buffers = jax.lax.fori_loop(first, last, body, (x, buffers))
    return x, {site: value[0] for site, value in buffers.items()} if n_caught == 1 else buffers


def _step(block: Block, x, layer, *, context, edits, wanted, positions, points=None):
    tap = Tap(edits, wanted, layer, positions, points)
    x = block(x, context.at_layer(layer), tap)
    return x, tap.caught


def _take(stack: Block, i) -> Block:
    return jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, i, keepdims=False), stack)


def _put(buffer, value, i):
    return jax.lax.dynamic_update_index_in_dim(buffer, value, i, 0)


# --- under a transformation


def _scanned(stack: Block, x, context: Context, stretch: Stretch, listening: Listening):
    """The same layers in a scan, differentiable, all hooks inside; Python functions act where their layer comes by."""
    wanted: dict[str, list[int]] = {}  # site -> the layers of this stretch that it is wanted in
    for layer in stretch.layers:
        for site in listening.wanted_at(layer):
            wanted.setdefault(site, []).append(layer)
    if stretch.first or len(stretch.layers) < len(listening.cfg.stacks[stretch.stack]):
        stack = jax.tree.map(lambda w: w[stretch.first : stretch.first + len(stretch.layers)], stack)
    wanted_in = tuple((site, tuple(wanted[site])) for site in sorted(wanted))
    x, values = _scan(
        stack, x, context, tuple(edit.afresh() for edit in listening.edits_in(stretch.layers)),
        layers=stretch.layers, wanted_in=wanted_in,
        positions=listening.positions, points=listening.points if listening.edits else None,
    )  # fmt: skip
    return x, [caught for site, layers in wanted_in for caught in _named({site: values[site]}, layers)]


@functools.partial(jax.jit, static_argnames=("layers", "wanted_in", "positions", "points"))
def _scan(stack, x, context, edits, *, layers, wanted_in, positions, points):
    """All layers of a (part of a) stack; what is wanted in only some of them is kept in a buffer for just those."""
    wanted = dict(wanted_in)
    step = functools.partial(
        _step, context=context, edits=edits, wanted=frozenset(wanted), positions=positions, points=points
    )
    partly = [site for site in wanted if wanted[site] != layers]
    shapes = jax.eval_shape(step, _take(stack, 0), x, jnp.int32(0))[1] if partly else {}
    # one row too many, which takes the values of layers that are not wanted
    buffers = {site: jnp.zeros((len(wanted[site]) + 1, *shapes[site].shape), shapes[site].dtype) for site in partly}
    rows = {site: _rows(wanted[site], layers) for site in partly}

    def body(carry, xs):
        x, buffers = carry
        block, layer, row = xs
        x, caught = step(block, x, layer)
        buffers = {site: _put(buffers[site], caught.pop(site), row[site]) for site in buffers}
        return (x, buffers), caught

    (x, buffers), everywhere = jax.lax.scan(body, (x, buffers), (stack, jnp.array(layers, jnp.int32), rows))
    values = everywhere | {site: buffer[:-1] for site, buffer in buffers.items()}
    return x, {site: value[0] if len(wanted[site]) == 1 else value for site, value in values.items()}


def _rows(wanted: tuple[int, ...], layers: tuple[int, ...]) -> jax.Array:
    return jnp.array([wanted.index(layer) if layer in wanted else len(wanted) for layer in layers], jnp.int32)


# --- a layer that Python edits

_take_compiled = jax.jit(_take)
_at_layer = jax.jit(Context.at_layer)


def _edited(stack: Block, x, context: Context, stretch: Stretch, listening: Listening):
    """One layer piece by piece, so that a Python function can stand between two pieces and see plain values."""
    (layer,) = stretch.layers
    block = _take_compiled(stack, np.int32(stretch.first))
    tap = Tap(listening.edits, stretch.wanted, layer, listening.positions, listening.points, in_pieces=True)
    x = block(x, _at_layer(context, np.int32(layer)), tap)
    return x, _named(tap.caught, stretch.layers)


# --- what stands before and after the layers


def run_stage(stage, parts, x, listening: Listening, names: tuple[str, ...], cfg: Config):
    """Embedding or unembedding: `stage(parts, x, tap, cfg)` compiled, or piece by piece if Python edits it."""
    wanted = frozenset(name for name in names if name in listening.wanted)
    edits = tuple(edit for edit in listening.edits if edit.site in names)
    run = _stage if any(edit.is_plain for edit in edits) else _stage_compiled
    x, caught = run(parts, x, edits, stage, wanted, listening.positions, listening.points if edits else None, cfg)
    return x, [Caught(name, None, value) for name, value in caught.items()]


def _stage(parts, x, edits, stage, wanted, positions, points, cfg):
    tap = Tap(edits, wanted, None, positions, points)
    return stage(parts, x, tap, cfg), tap.caught


_stage_compiled = jax.jit(_stage, static_argnums=(3, 4, 5, 6, 7))
