"""Sweeps: many interventions on the same run, one after another, as one compiled program.

A sweep has a baseline run and cells. A cell is a run in which one activation in one layer is replaced. A row is one
position of one prompt in one cell. A cell equals the baseline in all layers before its layer and at all positions
before the first that it changes, so these are not computed again (nn/packing.py). The other rows, of many cells from
neighboring layers, run through the compiled layers together, a fixed number at a time. Layer, position, head and the
new values are data: a sweep compiles once for its site and its shapes.

    layer        0   1   2   3   4   5            rows join at the layer of their cell, with the baseline's residual
    cell (2, 7)          ▪───▪───▪───▪─┐          stream and the cell's value at the site; before that they wait
    cell (2, 9)          ▪───▪───▪───▪─┼─ logits ─ metric
    cell (3, 7)              ▪───▪───▪─┘

Axes: c cell, b batch, p position, l layer, r row, g = c b sequence, t slot of a sequence, d d_model, v vocabulary,
i index of a cell.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from jaxlens._jax import UNTRACEABLE, full_precision, is_traced, on_host
from jaxlens.analysis.interventions.cells import Cells, layers_with
from jaxlens.analysis.interventions.metric import Metric, Read, selected
from jaxlens.analysis.interventions.sweep_batches import Baseline, Batch, BatchShape, Filler, in_slots
from jaxlens.analysis.interventions.sweep_rows import Rows, needs_sequences, packed_rows, packings, run_rows
from jaxlens.errors import ActivationNotFound
from jaxlens.hooks.api import DataHook, hook
from jaxlens.hooks.names import split_name
from jaxlens.hooks.plan import HookPlan
from jaxlens.hooks.positions import overwritten, shortened
from jaxlens.hooks.table import EMBED_NAMES, LENGTH_AXES
from jaxlens.hooks.tap import Tap
from jaxlens.model.engine import run_stage
from jaxlens.model.request import ModelInput
from jaxlens.model.transformer import HookedTransformer
from jaxlens.nn.block import Block
from jaxlens.nn.module import arrays
from jaxlens.nn.sequence import SequenceInfo
from jaxlens.nn.transformer import Modules

Setter = Callable[[Array, Int[Array, "i"], Array], Array]
"""The function of a cell: `(activation of the baseline, index of the cell, activation of the source) -> activation`.

A setter is traced. A plain function may read globals, so it is traced again in every sweep. For a `hook(fn, **data)`,
sweeps with the same `fn` reuse the compiled programs."""


class PaddedSetter(DataHook):
    """A setter that accepts activations with padding after the last position of the prompt, at the length of a program.

    Other setters may count positions from the end, so they receive the positions of the prompt only.
    """


jax.tree_util.register_pytree_node(
    PaddedSetter, lambda s: ((s.keywords,), s.func), lambda function, data: PaddedSetter(function, **data[0])
)


class SweepOptions(TypedDict, total=False):
    """How a sweep runs.

    `batch_size`: cells at a time (default: as many as fit in memory). `progress`: whether a terminal shows a progress
    bar. `attention_mask` [b p]: for padded tokens.
    """

    batch_size: int | None
    progress: bool
    attention_mask: Any


class Swept(NamedTuple):
    """The result of a sweep, by metric: its value in every cell, [c] or [c ...], and in the baseline run."""

    cells: dict[str, np.ndarray]
    baseline: dict[str, np.ndarray]


def sweep(
    model: HookedTransformer, inputs: ModelInput, cells: Cells, setter: Setter, source: Mapping[str, Array] | None,
    metrics: Mapping[str, Callable], **options: Unpack[SweepOptions],
) -> Swept:  # fmt: skip
    """Every metric in every cell, and in the baseline run.

    `inputs` are those of the baseline run. `source` holds the activations that the setter receives as its third
    argument (None: those of the baseline). Metrics receive the logits at the positions of the prompt, without the
    padding to the length of the program.

    Raises:
        ValueError: The model has hooks, the source does not fit the input, the setter returns another shape, or the
            model or input is traced by a transformation.
        TypeError: An option does not exist, or a setter cannot be traced.
        ActivationNotFound: The source lacks the site in a layer.
    """
    check_options(options)
    if is_traced(model.modules, inputs):
        raise ValueError("a sweep needs concrete values to choose what to compute; call it outside jit, grad and vmap")
    if model.list_hooks():
        problem = "a sweep runs many interventions at once, and a hook on the model would receive all of them together"
        raise ValueError(f"{problem}; call model.reset_hooks(including_permanent=True) first")
    with full_precision(model.cfg.dtype):
        # Metrics come first, so that an error in one is raised before the model runs.
        shape = jax.ShapeDtypeStruct((len(inputs.mask), inputs.n_positions, model.cfg.d_vocab_out), model.cfg.dtype)
        traced = {name: Metric(metric, shape) for name, metric in metrics.items()}
        baseline, site_row = baseline_run(model, inputs, cells.site, sorted(set(cells.layers.tolist())))
        sources = baseline.activations
        if source is not None:
            sources = _stacked_source(source, cells.site, site_row, baseline.activations, inputs.n_positions)
        # A vocabulary may be divided over devices. Then it stays whole, because to select from it might gather it.
        read = Read.by(traced.values(), inputs.mask.shape[1], few_tokens=model.sharding is None)
        data_hook = setter if isinstance(setter, DataHook) else hook(lambda *args: setter(*args))  # traced again
        whole, size = needs_sequences(cells.site), options.get("batch_size")
        shape = BatchShape.for_sweep(model.cfg, baseline, read, size, whole)
        runner = SweepRunner(model, inputs, baseline, sources, site_row, cells, data_hook, read, shape)
        logits = selected(baseline.logits, *read)
        unchanged = {name: on_host(metric(logits[None], *read)) for name, metric in traced.items()}
        results = {name: np.repeat(value, len(cells.layers), axis=0) for name, value in unchanged.items()}
        hidden = None if options.get("progress", True) else True  # None: hidden unless there is a terminal
        with tqdm(total=len(cells.layers), desc=cells.site, disable=hidden) as bar:
            for batch in runner.batches():
                for swept_cells, swept in runner.run(batch, logits):
                    for name, metric in traced.items():
                        values = on_host(metric(swept, *read))
                        results[name][swept_cells] = values[: len(swept_cells)]
                    bar.update(len(swept_cells))
            bar.update(bar.total - bar.n)  # cells that change nothing
    return Swept(results, {name: value[0] for name, value in unchanged.items()})


def check_options(options: SweepOptions) -> None:
    """Checks the names of the options, and the batch size."""
    if unknown := options.keys() - SweepOptions.__annotations__.keys():
        raise TypeError(f"there is no argument {min(unknown)!r}; a sweep takes {list(SweepOptions.__annotations__)}")
    batch_size = options.get("batch_size")
    if batch_size is not None and not (isinstance(batch_size, int | np.integer) and batch_size > 0):
        raise ValueError(f"batch_size is {batch_size!r}; expected a number of cells, or None for as many as fit")


# --- the baseline run


def baseline_run(
    model: HookedTransformer, inputs: ModelInput, site: str, layers: list[int]
) -> tuple[Baseline, dict[int, int]]:
    """The run that the cells of a sweep start from, and the index of each of these layers in its `activations`."""
    cfg = model.cfg
    wanted = captured_names(site)
    logits, cache = model.run_with_cache(inputs.tokens, names_filter=wanted, attention_mask=inputs.mask)
    embed = Modules.embed_tokens, model.modules.without_blocks(), (inputs.tokens, inputs.mask)
    (_, info), _ = run_stage(*embed, HookPlan(cfg), EMBED_NAMES)  # the program of the run
    residuals, k, v = (cache[name] for name in wanted[:3])
    k, v = _prepared(model.modules.stacks, k, v, info)
    present = layers_with(cfg, site)
    if absent := sorted(set(layers) - set(present)):
        raise ValueError(
            f'there is no "{site}" in layer {absent[0]}; the model has it in layers {present}; select these'
        )
    activations = cache[f"blocks.*.{site}"] if layers == present else _stack(cache, site, layers)
    rows = {layer: row for row, layer in enumerate(layers)}
    return Baseline(info, residuals, k, v, activations, logits), rows


def captured_names(site: str) -> list[str]:
    """What the baseline run of a sweep captures. A source that captures the same shares its programs."""
    sites = ("hook_resid_pre", "attn.hook_k", "attn.hook_v", site)
    return list(dict.fromkeys(f"blocks.*.{name}" for name in sites))  # the site may be one of the other three


@jax.jit
def _prepared(
    stacks: tuple[Block, ...], k: Float[Array, "l b t k h"], v: Float[Array, "l b t k h"], info: SequenceInfo
) -> tuple[Float[Array, "l o k h"], Float[Array, "l o k h"]]:
    """The keys and values of all layers as attention uses them: normalized, clipped and rotated."""

    def of_layer(attn, k, v, layer):
        return attn.prepared(k, "k", info.at_layer(layer), Tap()), attn.clipped(v)

    cfg = stacks[0].cfg
    by_stack = [
        jax.vmap(of_layer)(stack.attn, k[np.array(layers)], v[np.array(layers)], np.array(layers, np.int32))
        for stack, layers in zip(arrays(stacks), cfg.stacks, strict=True)
    ]
    order = np.argsort(np.concatenate(cfg.stacks))
    return tuple(in_slots(jnp.concatenate(of)[order]) for of in zip(*by_stack, strict=True))


def _stacked_source(
    source: Mapping[str, Array], site: str, site_row: dict[int, int], activations: Array, n_positions: int
) -> Array:
    """The source's activations at a site in all swept layers, [s b ...], at the length of the baseline's program."""
    layers = list(site_row)
    present = [layer for at, layer in map(split_name, source) if at == site]
    stacked = f"blocks.*.{site}"
    stack = source[stacked] if present == layers and stacked in source else _stack(source, site, layers)
    expected = list(activations.shape)
    for axis in LENGTH_AXES[site]:
        expected[axis + 1] = n_positions
    fits = stack.shape[1] in (1, activations.shape[1])
    if fits and list(stack.shape[2:]) == expected[2:] != list(activations.shape[2:]):
        stack = overwritten(activations[:, : stack.shape[1]].astype(stack.dtype), stack)
    if not fits or stack.shape[2:] != activations.shape[2:]:
        shapes = f'the source has "{site}" of shape {stack.shape[1:]}, and the patched run {tuple(expected[1:])}'
        raise ValueError(f"{shapes}; both need the same positions, and the source as many prompts or a single prompt")
    return stack


def _stack(source: Mapping[str, Array], site: str, layers: list[int]) -> Array:
    names = [f"blocks.{layer}.{site}" for layer in layers]
    if missing := [name for name in names if name not in source]:
        raise ActivationNotFound(f'the source holds no "{missing[0]}", which the sweep needs as a replacement')
    values = [jnp.asarray(source[name]) for name in names]
    if other := [layer for layer, value in zip(layers, values, strict=True) if value.shape != values[0].shape]:
        shapes = f'"{site}" has shape {values[0].shape} in layer {layers[0]}, but another in layer {other[0]}'
        raise ValueError(f"{shapes}; sweep over layers of one shape at a time, with an index_df")
    return jnp.stack(values)


# --- batches of cells


@dataclasses.dataclass(frozen=True, eq=False)
class SweepRunner:
    """Runs the batches of a sweep. `read` are the positions and tokens whose logits the metrics use.

    `n_positions` are those of the prompt. Later slots are padding to the length of the program, and are not computed.
    """

    model: HookedTransformer
    inputs: ModelInput
    baseline: Baseline
    sources: Array
    site_row: dict[int, int]
    cells: Cells
    setter: DataHook
    read: Read
    shape: BatchShape

    @property
    def n_positions(self) -> int:
        """The number of positions of the prompt."""
        return self.inputs.n_positions

    @property
    def length(self) -> int | None:
        """The number of positions that the setter receives, or None for those of the program."""
        return None if isinstance(self.setter, PaddedSetter) else self.n_positions

    def batches(self) -> Iterator[Batch]:
        """The cells that change anything, in batches, ordered by layer."""
        layers, depth, first = self.cells.layers, self.model.cfg.n_layers, self.first_changes()
        n_rows = self.n_positions - first
        filler = Filler(self.shape)
        for cell in np.lexsort((-n_rows.sum(1), layers)).tolist():
            if n_rows[cell].any() and not filler.add(cell, n_rows[cell].tolist()):
                yield Batch.of(filler, layers, first, self.n_positions, depth)
                filler = Filler(self.shape)
                filler.add(cell, n_rows[cell].tolist())
        if filler.cells:
            yield Batch.of(filler, layers, first, self.n_positions, depth)

    def first_changes(self) -> Int[np.ndarray, "c b"]:
        """The first position at which every cell changes every prompt; `n_positions` if it changes none."""
        size = self.shape.cells
        rows = np.array([self.site_row[layer] for layer in self.cells.layers.tolist()], np.int32)
        data, axes = (self.setter, self.baseline.activations, self.sources), LENGTH_AXES[self.cells.site]
        slots = []
        for start in range(0, len(rows), size):
            # The last batch repeats its cells, so that all batches have the same shape.
            batch = np.resize(np.arange(start, min(start + size, len(rows))), size)
            first = _first_changes(*data, rows[batch], self.cells.indices[batch], axes=axes, length=self.length)
            slots.append(on_host(first)[: len(rows) - start])
        return np.minimum(np.concatenate(slots), self.n_positions)

    def run(self, batch: Batch, baseline_logits: Float[Array, "b r t"]) -> Iterator[tuple[np.ndarray, Array]]:
        """Some cells at a time, and the logits in `read`, [c b r t], of which the first are theirs."""
        site, cfg, size = self.cells.site, self.model.cfg, self.shape.read_cells
        rows_of_site = np.array([self.site_row.get(layer, 0) for layer in batch.cell_layers.tolist()], np.int32)
        rows = _prepare(
            self.setter, self.baseline, self.sources, rows_of_site, self.cells.indices[batch.cells], batch,
            packings(self.shape, batch, on_host(self.inputs.mask)), shape=self.shape, site=site, length=self.length,
        )  # fmt: skip
        sharding = self.model.sharding
        if sharding is not None:  # the rows of each block are then divided over devices, as those of a batch are
            rows = dataclasses.replace(rows, x=sharding.divide(rows.x, "block b"))
        x = run_rows(cfg, self.model.modules.stacks, rows, batch, self.shape)
        read = batch.rows[:, self.read.positions].reshape(-1, *baseline_logits.shape[:2])
        tokens = None if len(self.read.tokens) == cfg.d_vocab_out else self.read.tokens
        for start in range(0, batch.n_cells, size):
            of_cells = np.full((size, *read.shape[1:]), -1, np.int32)
            cells = batch.cells[: batch.n_cells][start : start + size]
            of_cells[: len(cells)] = read[start : start + len(cells)]
            of_cells = of_cells if sharding is None else sharding.place_batch(of_cells)
            yield cells, _finish(self.model.modules.without_blocks(), x, of_cells, baseline_logits, tokens)


def _changed(setter, activations, sources, rows, indices, axes: tuple[int, ...], length: int | None):
    """The activations of the cells' layers after the setter, [c b ...]. The setter receives `length` positions.

    `axes` are those of positions; the first is that of queries.
    """

    def change(row, index):
        activation, source = (
            array[row] if length is None else shortened(array[row], axes, length) for array in (activations, sources)
        )
        try:
            new = setter(activation, index, source)
        except UNTRACEABLE as error:
            problem = "the index of a setter is traced: numpy functions, `if`, lists and slices `a:b` fail with it"
            raise TypeError(f"{problem}; use jnp.where, jnp.take and jax.lax.dynamic_slice") from error
        if new is None or new.shape != activation.shape or new.dtype != activation.dtype:
            got = "None" if new is None else f"{new.dtype}{list(new.shape)}"
            whole = f"the whole activation, {activation.dtype}{list(activation.shape)}"
            raise ValueError(f"a setter must return {whole}; got {got}. Write `return activation.at[:, pos].set(...)`")
        return new if length is None else overwritten(activations[row], new)

    return jax.vmap(change)(rows, indices)


@functools.partial(jax.jit, static_argnames=("axes", "length"))
def _first_changes(setter, activations, sources, rows, indices, axes, length):
    differs = _changed(setter, activations, sources, rows, indices, axes, length) != activations[rows]
    differs = jnp.moveaxis(differs, axes[0] + 1, 2)
    differs = jnp.any(differs, axis=tuple(range(3, differs.ndim)))
    return jnp.where(jnp.any(differs, axis=2), jnp.argmax(differs, axis=2), differs.shape[2])


@functools.partial(jax.jit, static_argnames=("shape", "site", "length"))
def _prepare(
    setter, baseline: Baseline, sources, rows_of_site, indices, batch: Batch, packings: dict[str, Array],
    shape: BatchShape, site: str, length: int | None,
) -> Rows:  # fmt: skip
    """The rows of a batch, with the cells' new values."""
    new = _changed(setter, baseline.activations, sources, rows_of_site, indices, LENGTH_AXES[site], length)
    return packed_rows(shape, batch, packings, baseline, site, new)


@jax.jit
def _finish(
    modules: Modules, x: Float[Array, "i r d"], rows: Int[Array, "c b r"], baseline_logits, tokens
) -> Float[Array, "c b r t"]:
    """Logits from the rows that the cells changed, and the baseline's elsewhere."""
    residual = x.reshape(-1, x.shape[-1])[rows.reshape(-1, rows.shape[-1])]
    logits = arrays(modules).logits(residual, tap=Tap(), tokens=tokens).reshape(-1, *baseline_logits.shape)
    return jnp.where((rows >= 0)[..., None], logits, baseline_logits)
