"""Activation patching in both directions, and ablations: from prompts to labelled results.

    activation_patch    one run's activation in another, at every place along the axes (denoising, noising)
    ablate              zero, the mean, or another prompt's activation instead

On the use of activation patching see Heimersheim & Nanda 2024 (arXiv 2404.15255).

Axes: b batch, p position, v vocabulary; those of a site are in the hook table.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens._jax import wide
from jaxlens.analysis.interventions.cells import Cells, index_axes, site_of
from jaxlens.analysis.interventions.sweep import Setter, SweepOptions, sweep
from jaxlens.analysis.labelled_array import Labelled
from jaxlens.hooks.api import hook
from jaxlens.hooks.table import sites
from jaxlens.model.request import ModelInput
from jaxlens.model.transformer import HookedTransformer

MetricFunction = Callable[[Float[Array, "b p v"]], Any]

LETTERS = {"pos": "p", "dest_pos": "p", "src_pos": "s", "head": "nk", "head_index": "nk", "neuron": "mfx",
           "expert": "e"}  # fmt: skip
"""The letters that each axis of a sweep has in the hook table."""


@dataclasses.dataclass(frozen=True, repr=False)
class Patched(Labelled):
    """The metric at every place of a sweep, and without an intervention (`start`).

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
        """The change of the metric by every intervention."""
        return Labelled(self.values - self.start, self.axes, self.labels)

    @property
    def normalised(self) -> Labelled:
        """The change as a fraction of the difference between `start` and `goal`: 0 for no effect, 1 for the whole.

        Raises:
            ValueError: There was no other run, or both have the same metric.
        """
        if self.goal is None or np.any(self.goal == self.start):
            raise ValueError(f"cannot normalise: the metric is {self.start} before and {self.goal} in the other run")
        return Labelled((self.values - self.start) / (self.goal - self.start), self.axes, self.labels)


def activation_patch(
    model: HookedTransformer, corrupted: Any, clean: Any, metric: MetricFunction | Mapping[str, MetricFunction],
    activation_name: str = "resid_pre", axes: Sequence[str] = ("layer", "pos"), *,
    direction: Literal["denoising", "noising"] = "denoising", **options: Unpack[SweepOptions],
) -> Patched | dict[str, Patched]:  # fmt: skip
    """Patches one run's activation into another at every place along `axes`.

    Denoising patches clean activations into the corrupted run (what suffices to restore the metric?), noising the
    reverse (what is necessary for it?). `corrupted` and `clean` are strings or tokens [b p]: any number of pairs of
    prompts of equal length. `metric(logits)` returns a number, or one per prompt, which adds the axis "prompt". A dict
    of metrics gives a dict of results from one sweep. `axes` are "layer" and then any of "pos", "head", "neuron",
    "dest_pos", "src_pos" and "expert" that the activation has. `jaxlens.analysis.interventions.sweep.SweepOptions`
    describes the options (`batch_size`, `progress`, and `attention_mask` for both runs).

    Raises:
        ValueError: The runs have different shapes, or the activation has no such axis.
        HookError: There is no such activation.

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
        raise ValueError(f'direction is {direction!r}; expected "denoising" or "noising"')
    base, other = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    place = Place.of(model, activation_name, axes)
    base, other = (model.read_input(run, attention_mask=options.get("attention_mask")) for run in (base, other))
    if base.mask.shape != other.mask.shape:
        shapes = f"{base.mask.shape} and {other.mask.shape}"
        raise ValueError(f"both runs need the same number of prompts and positions; got {shapes}")
    logits, cache = model.run_with_cache(other.tokens, names_filter=place.name, attention_mask=other.mask)
    goals = {key: np.asarray(function(logits)) for key, function in _by_name(metric).items()}
    return _swept(model, base, cache, put_source, metric, place, goals, **options)


def ablate(
    model: HookedTransformer, input: Any, metric: MetricFunction | Mapping[str, MetricFunction],
    activation_name: str = "z", axes: Sequence[str] = ("layer", "head"), *,
    by: Literal["zero", "mean", "resample"] = "zero", seed: int = 0, **options: Unpack[SweepOptions],
) -> Patched | dict[str, Patched]:  # fmt: skip
    """The metric after an activation is removed, at every place along `axes`.

    `by` is what replaces it: zero; its mean over the prompts and positions of `input`, without padding; or its value in
    another prompt of the batch, drawn with `seed` (no prompt keeps its own; resample ablation, Chan et al. 2022). The
    other arguments are those of `activation_patch`.

    Raises:
        ValueError: `by` is unknown, there is no other prompt to draw from, or a mean over positions is undefined: that
            of patterns or scores would let every position attend to later ones.
    """
    place = Place.of(model, activation_name, axes)
    if by == "mean" and "s" in place.letters.split():
        raise ValueError(
            f'the mean of "{activation_name}" over positions would let each attend to later ones; use by="zero" or '
            'by="resample", or generic_activation_patch with your own mean'
        )
    given = model.read_input(input, attention_mask=options.get("attention_mask"))
    if by == "zero":
        return _swept(model, given, None, put_zero, metric, place, None, **options)
    _, cache = model.run_with_cache(given.tokens, names_filter=place.name, attention_mask=given.mask)
    if by == "resample":
        if len(given.mask) < 2:
            raise ValueError("resampling takes each activation from another prompt; give at least two prompts")
        others = _other_prompts(len(given.mask), seed)
        source = {name: value[others] for name, value in cache.items()}
    elif by == "mean":
        source = {name: _mean(value, given.mask, sites(model.cfg)[name].axes) for name, value in cache.items()}
    else:
        raise ValueError(f'by is {by!r}; expected "zero", "mean" or "resample"')
    return _swept(model, given, source, put_source, metric, place, None, **options)


def _other_prompts(n_prompts: int, seed: int) -> np.ndarray:
    """The prompt that each prompt takes its activation from: a random cycle through all of them."""
    order = np.random.default_rng(seed).permutation(n_prompts)
    others = np.empty(n_prompts, np.int32)
    others[order] = np.roll(order, 1)
    return others


def _mean(value: Array, mask: Array, letters: str) -> Array:
    """The mean of an activation over prompts and positions, without padding, in the activation's shape."""
    axis = letters.split().index("p")
    weights = mask.reshape(len(mask), *(mask.shape[1] if i == axis else 1 for i in range(1, value.ndim)))
    mean = jnp.sum(wide(value) * weights, axis=(0, axis), keepdims=True) / jnp.sum(mask)
    return jnp.broadcast_to(mean, value.shape).astype(value.dtype)


# --- from a sweep to a labelled result


@dataclasses.dataclass(frozen=True)
class Place:
    """What is swept: an activation, the letters of its axes, and the axes of the sweep."""

    activation_name: str
    site: str
    letters: str
    axes: tuple[str, ...]

    @classmethod
    def of(cls, model: HookedTransformer, activation_name: str, axes: Sequence[str]) -> "Place":
        """
        Raises:
            ValueError, HookError: There is no such activation of layers.
        """
        return cls(activation_name, *site_of(model.cfg, activation_name), axes=axes)

    @property
    def name(self) -> str:
        """The site in all layers, as a `names_filter`."""
        return f"blocks.*.{self.site}"


def _swept(
    model: HookedTransformer, base: ModelInput, source: Mapping[str, Array] | None, change: Callable, metric: Any,
    place: Place, goals: Mapping[str, np.ndarray] | None, **options: Unpack[SweepOptions],
) -> Patched | dict[str, Patched]:  # fmt: skip
    labels = index_axes(model.cfg, base.mask.shape[1], place.activation_name, place.axes)
    indices = np.array(list(itertools.product(*(range(len(places)) for places in labels.values()))), np.int32)
    cells = Cells.at(model.cfg, place.activation_name, indices)
    setter = _setter(place.letters, tuple(place.axes), change)
    found = sweep(model, base, cells, setter, source, _by_name(metric), **options)
    labels |= {axis: position_labels(model, base.tokens) for axis in place.axes if axis.endswith("pos")}
    results = {}
    for name, values in found.cells.items():
        prompts = metric_axes(values.shape[1:])
        values = values.reshape(*(len(places) for places in labels.values()), *values.shape[1:])
        goal = None if goals is None else goals[name]
        results[name] = Patched(values, (*labels, *prompts), labels | prompts, found.baseline[name], goal)
    return results if isinstance(metric, Mapping) else results[""]


@functools.cache
def _setter(letters: str, axes: tuple[str, ...], change: Callable[[Any, Array, Array], Array]) -> Setter:
    """The setter that changes an activation with these axes at the index of a sweep along `axes`."""
    along = [
        next((i for i, letter in enumerate(letters.split()) if letter in LETTERS[axis]), None) for axis in axes[1:]
    ]
    if None in along or len(set(along)) < len(along):
        raise ValueError(f"an activation with the axes {letters!r} cannot be swept along {axes}")

    @hook
    def setter(activation: Array, index: Array, source: Array) -> Array:
        place: list[Any] = [slice(None)] * activation.ndim
        for axis, i in zip(along, index[1:], strict=True):
            place[axis] = i
        return change(activation.at[tuple(place)], activation, source[tuple(place)])

    return setter


def put_source(at: Any, activation: Array, source: Array) -> Array:
    """Replaces the value by the source's."""
    return at.set(source)


def put_zero(at: Any, activation: Array, source: Array) -> Array:
    """Replaces the value by zero."""
    return at.set(0)


def metric_axes(shape: tuple[int, ...]) -> dict[str, list[str]]:
    """The axes of a metric's own value with their labels: prompts first."""
    names = ("prompt", *(f"metric axis {axis}" for axis in range(1, len(shape))))
    return {axis: [str(i) for i in range(length)] for axis, length in zip(names, shape, strict=False)}


def position_labels(model: HookedTransformer, tokens: Any) -> list[str]:
    """A label for every position: its number, with the token that the first prompt has there."""
    if model.tokenizer is None:
        return [str(position) for position in range(tokens.shape[1])]
    return [f"{token} {position}" for position, token in enumerate(model.to_str_tokens(tokens[0]))]


def _by_name(metric: Any) -> dict[str, MetricFunction]:
    if isinstance(metric, Mapping) and not metric:
        raise ValueError("the dict of metrics is empty; give a function of the logits, or several by name")
    return dict(metric) if isinstance(metric, Mapping) else {"": metric}


def _number(values: np.ndarray) -> str:
    return f"{values:.4g}" if values.ndim == 0 else np.array2string(values, precision=3, threshold=8)
