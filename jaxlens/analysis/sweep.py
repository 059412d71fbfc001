"""Sweeps: one intervention after another on the same run, as one compiled program.

A sweep has a known run, and cells: each puts another value in the place of one activation, in one layer, and asks what
the metric becomes. What the known run and a cell's run share is never computed again: no layer before the cell's, and
from there on no position before the first that the cell changes (packing.py). The rows that are left, of many cells
from neighbouring layers, go through the compiled layers together, a fixed number at a time. Layer, position, head and
the values themselves are data: a sweep compiles once for its site and its shapes.

    layer        0   1   2   3   4   5            rows join at their cell's layer, with the known run's residual
    cell (2, 7)          ▪───▪───▪───▪─┐          stream and the cell's value at its site; before that they wait
    cell (2, 9)          ▪───▪───▪───▪─┼─ logits ─ metric
    cell (3, 7)              ▪───▪───▪─┘

Axes: c cell, b batch, p position, l layer, r row, g = c b sequence, t slot of a sequence, d d_model, v vocabulary,
i index of a cell.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from jaxlens.analysis.batches import Batch, Known, Room
from jaxlens.analysis.linearise import context_of
from jaxlens.analysis.metric import Metric
from jaxlens.engine import run_layers
from jaxlens.errors import ActivationNotFound
from jaxlens.hook_table import POSITION_AXES, matching, split_name
from jaxlens.hooks import DataHook, Edit, Listening, Tap, hook
from jaxlens.nn.block import Block
from jaxlens.nn.packing import Packing
from jaxlens.tracing import is_traced
from jaxlens.transformer import HookedTransformer, float32_means_float32

Setter = Callable[[Array, Int[Array, "i"], Array], Array]
"""What a cell does: `(activation of the known run, index of the cell, activation of the source) -> activation`.

It is traced. As with hooks, a plain function is traced anew for every sweep, for it may read globals;
`hook(fn, **data)` is found again by `fn`."""


class How(TypedDict, total=False):
    """How a sweep is run: `batch_size` cells at once (as many as fit in memory, by default), with a `progress` bar on a
    terminal or without, and with an `attention_mask` [b p] for tokens that are padded."""

    batch_size: int | None
    progress: bool
    attention_mask: Any


UNTRACEABLE = (
    jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError, jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cells:
    """The cells of a sweep over one site: the layer of each, and the index that is passed to the setter."""

    site: str
    layers: Int[np.ndarray, "c"]
    indices: Int[np.ndarray, "c i"]


def sweep(
    model: HookedTransformer, input: Any, cells: Cells, setter: Setter, source: Mapping[str, Array] | None,
    metrics: Mapping[str, Callable], **how: Unpack[How],
) -> dict[str, np.ndarray]:  # fmt: skip
    """Every metric of every cell, [c] or [c, ...].

    `input` gives the known run; `source` the other activations that the setter is shown (None: the known run's own).

    Raises:
        ValueError: the model has hooks, the source does not fit the input, a setter returns another shape, or a
            transformation is looking.
        TypeError: an argument that there is not, or a setter that cannot be traced.
        ActivationNotFound: the source lacks the site in a layer.
    """
    _check_how(how)
    if is_traced(model.parts, input):
        raise ValueError("a sweep decides what to compute by looking at values; call it outside jit, grad and vmap")
    if model.list_hooks():
        raise ValueError(
            "a sweep runs many interventions side by side, which hooks on the model would not see as their own run; "
            "call model.reset_hooks() (including_permanent=True) first"
        )
    with float32_means_float32(model.cfg):
        known, site_row = known_run(
            model, input, how.get("attention_mask"), cells.site, sorted(set(cells.layers.tolist()))
        )
        sources = known.activations if source is None else _stacked(source, cells.site, site_row, known.activations)
        ready = {name: Metric(metric, _shape(known.logits)) for name, metric in metrics.items()}
        read = np.unique(np.concatenate([metric.positions for metric in ready.values()]))
        running = Running(model, known, sources, site_row, cells, _as_data(setter), read)
        room = Room.for_sweep(model.cfg, known, len(read), how.get("batch_size"))
        at = {name: np.searchsorted(read, metric.positions) for name, metric in ready.items()}
        baseline = known.logits[:, read]
        unchanged = {name: np.asarray(metric(baseline[None][:, :, at[name]])) for name, metric in ready.items()}
        results = {name: np.repeat(value, len(cells.layers), axis=0) for name, value in unchanged.items()}
        hidden = None if how.get("progress", True) else True  # None: hidden unless there is a terminal
        with tqdm(total=len(cells.layers), desc=cells.site, disable=hidden) as bar:
            for batch in running.plan(room):
                logits = running.run(batch, baseline)
                live = batch.cells[: batch.n_cells]
                for name, metric in ready.items():
                    results[name][live] = np.asarray(metric(logits[:, :, at[name]]))[: len(live)]
                bar.update(len(live))
            bar.update(bar.total - bar.n)  # those that change nothing
    return results


def _check_how(how: How) -> None:
    if odd := how.keys() - How.__annotations__.keys():
        raise TypeError(f"there is no argument {min(odd)!r}; how a sweep is run is said by {list(How.__annotations__)}")
    batch_size = how.get("batch_size")
    if batch_size is not None and not (isinstance(batch_size, int | np.integer) and batch_size > 0):
        raise ValueError(f"batch_size is {batch_size!r}; wanted a number of cells, or None for as many as fit")


def _as_data(setter: Setter) -> DataHook:
    """The setter as a data hook, which programs are found by; a plain function under an identity of its own."""
    return setter if isinstance(setter, DataHook) else hook(lambda *given: setter(*given))


def known_run(
    model: HookedTransformer, input: Any, attention_mask: Any, site: str, layers: list[int]
) -> tuple[Known, dict[int, int]]:
    """The run that the cells of a sweep start from, and which row of its activations each of these layers has."""
    cfg = model.cfg
    wanted = [f"blocks.*.{name}" for name in ("hook_resid_pre", "attn.hook_k", "attn.hook_v", site)]
    given = model._read_input(input, attention_mask=attention_mask)
    logits, cache = model.run_with_cache(
        input, names_filter=list(dict.fromkeys(wanted)), attention_mask=attention_mask
    )
    context = context_of(model, given.real)
    residuals, k, v = (cache[name] for name in wanted[:3])
    by_stack = [
        _as_met(stack, k[np.array(layers)], v[np.array(layers)], context, np.array(layers, np.int32))
        for stack, layers in zip(model.parts.stacks, cfg.stacks, strict=True)
    ]
    order = np.argsort(np.concatenate(cfg.stacks))
    k, v = (jnp.concatenate(parts)[order] for parts in zip(*by_stack, strict=True))
    present = [split_name(name)[1] for name in matching(cfg, f"blocks.*.{site}")]
    if odd := sorted(set(layers) - set(present)):
        raise ValueError(f'there is no "{site}" in layer {odd[0]}; the model has it in layers {present}')
    activations = cache[wanted[3]] if layers == present else _stack(cache, site, layers)
    return Known(context, residuals, k, v, activations, logits), {layer: row for row, layer in enumerate(layers)}


@jax.jit
def _as_met(stack: Block, k: Float[Array, "l b t k h"], v: Float[Array, "l b t k h"], context, layers: Int[Array, "l"]):
    """The keys and values of a stack's layers as queries meet them: normalised, clipped and rotated."""

    def of_layer(attn, k, v, layer):
        return attn.meeting(k, "k", context.at_layer(layer), Tap(())), attn.clipped(v)

    return jax.vmap(of_layer)(stack.attn, k, v, layers)


@dataclasses.dataclass(frozen=True)
class Running:
    """A sweep on its way: what its batches have in common."""

    model: HookedTransformer
    known: Known
    sources: Array
    site_row: dict[int, int]
    cells: Cells
    setter: DataHook
    read: Int[np.ndarray, "r"]

    def plan(self, room: Room) -> Iterator[Batch]:
        """The cells that change anything, in batches of as many as there is room for, from the first layer on."""
        layers, depth = self.cells.layers, self.model.cfg.n_layers
        first = self.first_changes(room)
        n_rows = (room.slots - first).sum(1)
        waiting, used = [], 0
        for cell in np.argsort(layers, kind="stable").tolist():
            if not n_rows[cell]:
                continue
            if waiting and (used + n_rows[cell] > room.rows or len(waiting) == room.cells):
                yield Batch.of(room, waiting, layers, first, depth)
                waiting, used = [], 0
            waiting.append(cell)
            used += n_rows[cell]
        if waiting:
            yield Batch.of(room, waiting, layers, first, depth)

    def first_changes(self, room: Room) -> Int[np.ndarray, "c b"]:
        """The first slot at which every cell changes the activation of every prompt; the number of slots if nowhere."""
        rows = np.array([self.site_row[layer] for layer in self.cells.layers.tolist()], np.int32)
        found = []
        for start in range(0, len(rows), room.cells):
            some = np.resize(np.arange(start, min(start + room.cells, len(rows))), room.cells)
            first = _first_changes(
                self.setter, self.known.activations, self.sources, rows[some], self.cells.indices[some],
                axis=POSITION_AXES[self.cells.site],
            )  # fmt: skip
            found.append(np.asarray(first)[: len(rows) - start])
        return np.concatenate(found)

    def run(self, batch: Batch, baseline: Float[Array, "b r v"]) -> Float[Array, "c b r v"]:
        """The logits of a batch of cells."""
        live = batch.cell_layers[: batch.n_cells]
        site, cfg = self.cells.site, self.model.cfg
        rows_of_site = np.array([self.site_row.get(layer, 0) for layer in batch.cell_layers.tolist()], np.int32)
        context, x, new, new_layers = _prepare(
            self.setter, self.known, self.sources, rows_of_site, self.cells.indices[batch.cells],
            batch.groups, batch.slots, batch.row_layers, batch.cell_layers, batch.rows, axis=POSITION_AXES[site],
        )  # fmt: skip
        here = np.isin(np.arange(cfg.n_layers), live)
        put = [("hook_resid_pre", x, batch.row_layers)] if site != "hook_resid_pre" else []
        edits = tuple(
            Edit(DataHook(_put, new=value, layers=layers), here, (), at, "fwd")
            for at, value, layers in (*put, (site, new, new_layers))
        )
        x, _ = run_layers(
            self.model.parts.stacks, x, context, int(live.min()), cfg.n_layers, Listening(cfg, edits)
        )  # fmt: skip
        return _finish(self.model, x, batch.rows[:, self.read], baseline)


def _put(value, hook, new, layers):
    """The cells' own values where this layer is theirs; `layers` counts rows [1 r ...] or sequences [g ...]."""
    here = layers == hook.layer()
    here = here[None] if len(value) == 1 and value.shape[1] == len(layers) else here
    return jnp.where(jnp.expand_dims(here, tuple(range(here.ndim, value.ndim))), new, value)


def _changed(setter, activations, sources, rows, indices):
    """What the cells make of the activations of their layers: [c b ...]."""

    def change(row, index):
        activation = activations[row]
        try:
            new = setter(activation, index, sources[row])
        except UNTRACEABLE as error:
            raise TypeError(
                "a patch setter is traced: its index is an array of JAX, with which neither numpy nor Python's `if`, "
                "lists and slices `a:b` work; use jnp.where, jnp.take and jax.lax.dynamic_slice"
            ) from error
        if new is None or new.shape != activation.shape or new.dtype != activation.dtype:
            got = "None" if new is None else f"{new.dtype}{list(new.shape)}"
            raise ValueError(
                f"a patch setter returns the whole activation, {activation.dtype}{list(activation.shape)}; got {got}. "
                "Where one in torch assigns, `activation[:, pos] = ...`, return `activation.at[:, pos].set(...)`"
            )
        return new

    return jax.vmap(change)(rows, indices)


def _first_changes_of(setter, activations, sources, rows, indices, axis):
    differs = _changed(setter, activations, sources, rows, indices) != activations[rows]
    differs = jnp.moveaxis(differs, axis + 1, 2)
    differs = jnp.any(differs, axis=tuple(range(3, differs.ndim)))
    return jnp.where(jnp.any(differs, axis=2), jnp.argmax(differs, axis=2), differs.shape[2])


_first_changes = jax.jit(_first_changes_of, static_argnames=("axis",))


def _prepare_rows(
    setter, known: Known, sources, rows_of_site, indices, groups, slots, row_layers, cell_layers, rows, axis
):  # fmt: skip
    """The context of a batch, its rows of the residual stream, and the cells' values, as rows or as sequences."""
    n_prompts = known.context.real.shape[0]
    cells, prompts = groups // n_prompts, groups % n_prompts
    of_sequences = jnp.arange(len(rows)) % n_prompts
    new = _changed(setter, known.activations, sources, rows_of_site, indices)
    if axis == 1:
        new, layers = new[cells, prompts, slots][None], row_layers
    else:
        new, layers = new.reshape(-1, *new.shape[2:]), jnp.repeat(cell_layers, n_prompts)
    context = dataclasses.replace(
        known.context,
        positions=known.context.positions[prompts, slots][None],
        real=known.context.real[of_sequences],
        pos_embed=None if known.context.pos_embed is None else known.context.pos_embed[prompts, slots][None],
        packing=Packing(groups, slots, rows, of_sequences, known.keys, known.values),
    )
    x = known.residuals[jnp.maximum(row_layers, 0), prompts, slots][None]
    return context, x, new, layers


_prepare = jax.jit(_prepare_rows, static_argnames=("axis",))


@jax.jit
def _finish(model: HookedTransformer, x, rows, baseline):
    """Logits [c b r v] from the rows where the cells changed them, and those of the known run elsewhere."""
    logits = model(x[0][rows], start_at_layer=model.cfg.n_layers)
    logits = logits.reshape(-1, *baseline.shape)
    return jnp.where((rows >= 0).reshape(*logits.shape[:3], 1), logits, baseline)


def _stacked(source: Mapping[str, Array], site: str, site_row: dict[int, int], activations: Array) -> Array:
    """The source's activations at a site in every layer, [s b ...]."""
    layers = list(site_row)
    held = [layer for at, layer in map(split_name, source) if at == site]
    stored = f"blocks.*.{site}"
    stack = source[stored] if held == layers and stored in source else _stack(source, site, layers)
    if stack.shape[2:] != activations.shape[2:] or stack.shape[1] not in (1, activations.shape[1]):
        raise ValueError(
            f'the source has "{site}" of shape {stack.shape[1:]}; the run that is patched has {activations.shape[1:]}. '
            "Both need the same positions, and the same prompts or a single one"
        )
    return stack


def _stack(source: Mapping[str, Array], site: str, layers: list[int]) -> Array:
    names = [f"blocks.{layer}.{site}" for layer in layers]
    if missing := [name for name in names if name not in source]:
        raise ActivationNotFound(f'the source holds no "{missing[0]}", which the sweep puts in place of the run\'s own')
    values = [jnp.asarray(source[name]) for name in names]
    if odd := [layer for layer, value in zip(layers, values, strict=True) if value.shape != values[0].shape]:
        raise ValueError(
            f'"{site}" has shape {values[0].shape} in layer {layers[0]} and another in layer {odd[0]}; sweep over '
            "layers of one shape at a time, with an index_df"
        )
    return jnp.stack(values)


def _shape(array: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)
