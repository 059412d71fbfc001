"""Sweeps from prompts to labelled results: activation patching in both directions, and ablations.

    activation_patch    one run's activation into another, at every place that the axes span (denoising, noising)
    ablate              zero, the mean, or another prompt's activation instead of it

Axes: b batch, p position, v vocabulary; those of a site are in the hook table.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlens.analysis.labelled import Labelled
from jaxlens.analysis.patching import Metric, cells_at, index_axes, site_of
from jaxlens.analysis.sweep import How, Setter, sweep
from jaxlens.hook_table import sites
from jaxlens.hooks import hook
from jaxlens.transformer import HookedTransformer

LETTERS = {"pos": "p", "dest_pos": "p", "src_pos": "s", "head": "nk", "head_index": "nk", "neuron": "mfx",
           "expert": "e"}  # fmt: skip
"""Which axis of an activation each axis of a sweep goes along, as the hook table writes them."""


@dataclasses.dataclass(frozen=True, repr=False)
class Patched(Labelled):
    """What a metric became at every place of a sweep, and what it was without an intervention (`start`).

    `goal` is the metric of the run that the activations came from, if there was one.
    """

    start: np.ndarray
    goal: np.ndarray | None = None

    def __repr__(self) -> str:
        goal = "" if self.goal is None else f", {_number(self.goal)} in the run that activations came from"
        largest = repr(self.change).partition("\n")[2]
        sizes = ", ".join(f"{axis} {size}" for axis, size in zip(self.axes, self.shape, strict=True))
        return f"Patched({sizes}): {_number(self.start)} without intervention{goal}; largest changes\n{largest}"

    @property
    def change(self) -> Labelled:
        """By how much every intervention changed the metric."""
        return Labelled(self.values - self.start, self.axes, self.labels)

    @property
    def normalised(self) -> Labelled:
        """The change as a fraction of that from `start` to `goal`: 0 where nothing happened, 1 for the whole effect.

        Raises:
            ValueError: there was no other run, or both have the same metric.
        """
        if self.goal is None or np.any(self.goal == self.start):
            raise ValueError(f"nothing to normalise by: the metric goes from {self.start} to {self.goal}")
        return Labelled((self.values - self.start) / (self.goal - self.start), self.axes, self.labels)


def activation_patch(
    model: HookedTransformer, corrupted: Any, clean: Any, metric: Metric | Mapping[str, Metric],
    activation_name: str = "resid_pre", axes: Sequence[str] = ("layer", "pos"), *,
    direction: Literal["denoising", "noising"] = "denoising", **how: Unpack[How],
) -> Patched | dict[str, Patched]:  # fmt: skip
    """Patches one run's activation into another at every place that `axes` span.

    Denoising puts the clean run's activations into the corrupted one (what suffices to restore the metric?), noising
    the reverse (what is necessary for it?). `corrupted` and `clean` are strings or tokens [b p], any number of prompt
    pairs of equal length. `metric(logits)` gives a number, or one per prompt, which adds the axis "prompt"; several
    metrics in a dict give a dict of results, in one sweep. Axes: "layer" first, then any of "pos", "head", "neuron",
    "dest_pos", "src_pos" and "expert" that the activation has. How it is run (`batch_size`, `progress`,
    `attention_mask` for both runs) is described by `jaxlens.analysis.sweep.How`.

    Raises:
        ValueError: the runs have different shapes, or the activation has no such axis.
        HookError: there is no such activation.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> result = activation_patch(
        ...     model, [[1, 5, 3]], [[1, 2, 3]], lambda logits: logits[0, -1, 4], "z", ("layer", "head"))
        >>> result.axes, result.shape, result.normalised.shape
        (('layer', 'head'), (2, 2), (2, 2))
    """
    if direction not in ("denoising", "noising"):
        raise ValueError(f'direction is {direction!r}; wanted "denoising" or "noising"')
    base, other = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    name = f"blocks.*.{site_of(model, activation_name)[0]}"
    mask = how.get("attention_mask")
    shapes = [model._read_input(run, attention_mask=mask).real.shape for run in (base, other)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"both runs need the same prompts and positions; got {shapes[0]} and {shapes[1]}")
    logits, cache = model.run_with_cache(other, names_filter=name, attention_mask=mask)
    goals = {key: np.asarray(one(logits)) for key, one in _named(metric).items()}
    return _swept(model, base, cache, put_source, metric, activation_name, axes, goals, **how)


def ablate(
    model: HookedTransformer, input: Any, metric: Metric | Mapping[str, Metric], activation_name: str = "z",
    axes: Sequence[str] = ("layer", "head"), *, by: Literal["zero", "mean", "resample"] = "zero", seed: int = 0,
    **how: Unpack[How],
) -> Patched | dict[str, Patched]:  # fmt: skip
    """Removes an activation at every place that `axes` span, and asks what is left of the metric.

    `by` says what stands in its place: zero; its mean over the prompts and positions of `input`, padding left out; or
    what it is in another prompt of the batch, drawn by `seed` (no prompt keeps its own; resample ablation, Chan et al.
    2022). Arguments and axes are those of `activation_patch`.

    Raises:
        ValueError: `by` is something else, there is no other prompt to draw from, or a mean over positions has no
            meaning: that of patterns or scores would let every position see those after it.
    """
    site, letters = site_of(model, activation_name)
    if by == "mean" and "s" in letters.split():
        raise ValueError(
            f'the mean of "{activation_name}" over positions would let each see those after it; wanted by="zero" or '
            '"resample", or generic_activation_patch with a mean of your own'
        )
    if by == "zero":
        return _swept(model, input, None, put_zero, metric, activation_name, axes, None, **how)
    mask = how.get("attention_mask")
    _, cache = model.run_with_cache(input, names_filter=f"blocks.*.{site}", attention_mask=mask)
    real = model._read_input(input, attention_mask=mask).real
    if by == "resample":
        if len(real) < 2:
            raise ValueError("resampling takes each activation from another prompt; give at least two prompts")
        others = _other_prompts(len(real), seed)
        source = {name: value[others] for name, value in cache.items()}
    elif by == "mean":
        source = {name: _mean(value, real, sites(model.cfg)[name].axes) for name, value in cache.items()}
    else:
        raise ValueError(f'by is {by!r}; wanted "zero", "mean" or "resample"')
    return _swept(model, input, source, put_source, metric, activation_name, axes, None, **how)


def _other_prompts(n_prompts: int, seed: int) -> np.ndarray:
    """Which prompt each takes its activation from: a cycle through all of them in random order."""
    order = np.random.default_rng(seed).permutation(n_prompts)
    others = np.empty(n_prompts, np.int32)
    others[order] = np.roll(order, 1)
    return others


def _mean(value: Array, real: Array, letters: str) -> Array:
    """The mean of an activation over prompts and real positions, in its own shape."""
    axis = letters.split().index("p")
    weights = real.reshape(len(real), *(real.shape[1] if i == axis else 1 for i in range(1, value.ndim)))
    wide = value.astype(jnp.promote_types(value.dtype, jnp.float32))
    mean = jnp.sum(wide * weights, axis=(0, axis), keepdims=True) / jnp.sum(real)
    return jnp.broadcast_to(mean, value.shape).astype(value.dtype)


# --- what a cell does at the place that its index names


@functools.cache
def _setter(letters: str, axes: tuple[str, ...], change: Callable[[Any, Array, Array], Array]) -> Setter:
    """The setter that changes an activation with these axes where the index of a sweep along `axes` points."""
    places = letters.split()
    along = [next((i for i, letter in enumerate(places) if letter in LETTERS[axis]), None) for axis in axes[1:]]
    if None in along or len(set(along)) < len(along):
        raise ValueError(f"this activation has the axes {letters!r}; a sweep cannot go along {axes} in it")

    @hook
    def setter(activation: Array, index: Array, source: Array) -> Array:
        place: list[Any] = [slice(None)] * activation.ndim
        for axis, i in zip(along, index[1:], strict=True):
            place[axis] = i
        return change(activation.at[tuple(place)], activation, source[tuple(place)])

    return setter


def put_source(at: Any, activation: Array, source: Array) -> Array:
    """The source's value in place of the run's own."""
    return at.set(source)


def put_zero(at: Any, activation: Array, source: Array) -> Array:
    """Zero in place of the run's own value."""
    return at.set(0)


def _number(values: np.ndarray) -> str:
    return f"{values:.4g}" if values.ndim == 0 else np.array2string(values, precision=3, threshold=8)


# --- from a sweep to a labelled result


def _swept(
    model: HookedTransformer, base: Any, source: Mapping[str, Array] | None, change: Callable, metric: Any,
    activation_name: str, axes: Sequence[str], goals: Mapping[str, np.ndarray] | None, **how: Unpack[How],
) -> Patched | dict[str, Patched]:  # fmt: skip
    given = model._read_input(base, attention_mask=how.get("attention_mask"))
    labels = index_axes(model, given.real.shape[1], activation_name, axes)
    setter, metrics = _setter(site_of(model, activation_name)[1], tuple(axes), change), _named(metric)
    indices = np.array(list(itertools.product(*(range(len(places)) for places in labels.values()))), np.int32)
    cells = cells_at(model, activation_name, indices)
    found = sweep(model, base, cells, setter, source, metrics, **how)
    start = model(base, attention_mask=how.get("attention_mask"))
    labels |= {axis: position_labels(model, given.tokens) for axis in axes if axis.endswith("pos")}
    results = {}
    for name, values in found.items():
        prompts = metric_axes(values.shape[1:])
        values = values.reshape(*(len(places) for places in labels.values()), *values.shape[1:])
        result = Patched(values, (*labels, *prompts), labels | prompts, np.asarray(metrics[name](start)))
        results[name] = result if goals is None else dataclasses.replace(result, goal=goals[name])
    return results if isinstance(metric, Mapping) else results[""]


def metric_axes(shape: tuple[int, ...]) -> dict[str, list[str]]:
    """The axes that a metric's own value has, and their places: prompts first."""
    names = ("prompt", *(f"metric axis {axis}" for axis in range(1, len(shape))))
    return {axis: [str(i) for i in range(length)] for axis, length in zip(names, shape, strict=False)}


def position_labels(model: HookedTransformer, tokens: Any) -> list[str]:
    """A name for every position: its number, and the token that the first prompt has there."""
    if model.tokenizer is None:
        return [str(position) for position in range(tokens.shape[1])]
    return [f"{token} {position}" for position, token in enumerate(model.to_str_tokens(tokens[0]))]


def _named(metric: Any) -> dict[str, Metric]:
    if isinstance(metric, Mapping) and not metric:
        raise ValueError("there is no metric in the mapping; wanted a function of the logits, or several by name")
    return dict(metric) if isinstance(metric, Mapping) else {"": metric}
