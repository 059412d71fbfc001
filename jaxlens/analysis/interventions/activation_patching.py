"""Activation patching in both directions, and ablations, with prompts as arguments and labeled arrays as results.

    activation_patch    replaces an activation by that of another run, at every index along the axes
    ablate              replaces an activation by zero, by its mean, or by that of another prompt

On the use of activation patching see Heimersheim & Nanda 2024 (arXiv 2404.15255).

Axes: b batch, p position, v vocabulary; hooks/table.py has those of a site.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack, overload

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlens._jax import wide
from jaxlens._jax.explicit_axes import on_any_mesh
from jaxlens.analysis.inputs import read_pair, read_single
from jaxlens.analysis.interventions.cells import Cells, combinations, index_axes, site_of
from jaxlens.analysis.interventions.metric import metric_of
from jaxlens.analysis.interventions.sweep import PaddedSetter, Setter, SweepOptions, captured_names, sweep
from jaxlens.analysis.labelled_array import Labelled
from jaxlens.hooks.table import sites
from jaxlens.model.request import ModelInput
from jaxlens.model.transformer import HookedTransformer

MetricFunction = Callable[[Float[Array, "b p v"]], Any]

LETTERS = {"pos": "p", "dest_pos": "p", "src_pos": "s", "head": "nk", "head_index": "nk", "neuron": "mfx",
           "expert": "e"}  # fmt: skip
"""The letters that each axis of a sweep has in the hook table."""


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Patched(Labelled):
    """The metric with every intervention of a sweep, and without an intervention (`start`).

    `goal` is the metric of the run that the activations came from; None for an ablation.
    """

    start: np.ndarray
    goal: np.ndarray | None = None

    def __repr__(self) -> str:
        goal = "" if self.goal is None else f", {_number(self.goal)} in the run that activations came from"
        sizes, _, largest = repr(self.change).removeprefix("Labelled").partition("\n")
        return f"Patched{sizes}: {_number(self.start)} without intervention{goal}; largest changes\n{largest}"

    @property
    def change(self) -> Labelled:
        """The change of the metric by every intervention."""
        return Labelled(_difference(self.values, self.start), self.axes, self.labels)

    @property
    def normalised(self) -> Labelled:
        """The change as a fraction of the difference between `start` and `goal`: 0 for no effect, 1 for the whole.

        Raises:
            ValueError: There was no other run, or both have the same metric.
        """
        if self.goal is None or np.any(self.goal == self.start):
            metrics = f"{self.start} without intervention and {self.goal} in the other run"
            raise ValueError(f"cannot normalize: the metric is {metrics}; expected two different values")
        change = _difference(self.values, self.start) / _difference(self.goal, self.start)
        return Labelled(change, self.axes, self.labels)


def _difference(values: Any, start: Any) -> np.ndarray:
    """The difference as floating-point numbers: a metric may return integers without a sign, or booleans."""
    return np.subtract(*(np.asarray(x, np.result_type(x, np.float32)) for x in (values, start)))


@overload
def activation_patch(
    model: HookedTransformer, corrupted: Any, clean: Any, metric: MetricFunction, activation_name: str = "resid_pre",
    axes: Sequence[str] = ("layer", "pos"), *, direction: Literal["denoising", "noising"] = "denoising",
    **options: Unpack[SweepOptions],
) -> Patched: ...  # fmt: skip
@overload
def activation_patch(
    model: HookedTransformer, corrupted: Any, clean: Any, metric: Mapping[str, MetricFunction], *args: Any,
    **kwargs: Any,
) -> dict[str, Patched]: ...  # fmt: skip
@on_any_mesh
def activation_patch(
    model: HookedTransformer, corrupted: Any, clean: Any, metric: MetricFunction | Mapping[str, MetricFunction],
    activation_name: str = "resid_pre", axes: Sequence[str] = ("layer", "pos"), *,
    direction: Literal["denoising", "noising"] = "denoising", **options: Unpack[SweepOptions],
) -> Patched | dict[str, Patched]:  # fmt: skip
    """Patches an activation of one run into another run, separately at every index along `axes`.

    Denoising patches clean activations into the corrupted run and shows which activations suffice to restore the
    metric. Noising patches corrupted activations into the clean run and shows which are necessary. `corrupted` and
    `clean` are strings or tokens [b p]. Both prompts of a pair have equal length. `metric(logits)` returns a
    number, or one per prompt, which adds the axis "prompt". A dict of metrics gives a dict of results from one sweep.

    `axes` are "layer" and then any of "pos", "head", "neuron", "dest_pos", "src_pos" and "expert" that the activation
    has. `jaxlens.analysis.interventions.sweep.SweepOptions` describes the options (`batch_size`, `progress`, and
    `attention_mask` for both runs).

    Raises:
        ValueError: The positions of the runs do not correspond, or the activation has no such axis.
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
    target = Target.of(model, activation_name, axes)
    runs = read_pair(model, options.get("attention_mask"), corrupted=corrupted, clean=clean)
    base, other = runs if direction == "denoising" else reversed(runs)
    names = captured_names(target.site)
    logits, cache = model.run_with_cache(other.tokens, names_filter=names, attention_mask=other.mask)
    goals = {name: metric_of(function, logits, other.n_positions) for name, function in _by_name(metric).items()}
    return _swept(model, base, cache, put_source, metric, target, goals, **options)


@overload
def ablate(
    model: HookedTransformer, input: Any, metric: MetricFunction, activation_name: str = "z",
    axes: Sequence[str] = ("layer", "head"), *, by: Literal["zero", "mean", "resample"] = "zero", seed: int = 0,
    **options: Unpack[SweepOptions],
) -> Patched: ...  # fmt: skip
@overload
def ablate(
    model: HookedTransformer, input: Any, metric: Mapping[str, MetricFunction], *args: Any, **kwargs: Any
) -> dict[str, Patched]: ...
@on_any_mesh
def ablate(
    model: HookedTransformer, input: Any, metric: MetricFunction | Mapping[str, MetricFunction],
    activation_name: str = "z", axes: Sequence[str] = ("layer", "head"), *,
    by: Literal["zero", "mean", "resample"] = "zero", seed: int = 0, **options: Unpack[SweepOptions],
) -> Patched | dict[str, Patched]:  # fmt: skip
    """The metric after an activation is removed, separately at every index along `axes`.

    `by` selects the replacement: zero; the mean over the prompts and positions of `input`, without padding; or the
    value in another prompt of the batch with the same padding, drawn with `seed` (resample ablation, Chan et al. 2022).
    The other arguments are those of `activation_patch`.

    Raises:
        ValueError: `by` is unknown, "resample" has no such prompt to draw from, or "mean" is used for patterns or
            scores, where a mean over positions would attend to later positions.
    """
    target = Target.of(model, activation_name, axes)
    if by == "mean" and "s" in target.letters.split():
        problem = f'the mean of "{activation_name}" over positions would attend to later positions'
        raise ValueError(f'{problem}; use by="zero", by="resample", or generic_activation_patch with another mean')
    inputs = read_single(model, input, options.get("attention_mask"))
    if by == "zero":
        return _swept(model, inputs, None, put_zero, metric, target, None, **options)
    _, cache = model.run_with_cache(inputs.tokens, names_filter=target.name, attention_mask=inputs.mask)
    if by == "resample":
        others = _other_prompts(np.asarray(inputs.mask), seed)
        source = {name: value[others] for name, value in cache.items()}
    elif by == "mean":
        source = {name: _mean(value, inputs.mask, sites(model.cfg)[name].axes) for name, value in cache.items()}
    else:
        raise ValueError(f'by is {by!r}; expected "zero", "mean" or "resample"')
    return _swept(model, inputs, source, put_source, metric, target, None, **options)


def _other_prompts(mask: Bool[np.ndarray, "b p"], seed: int) -> Int[np.ndarray, "b"]:
    """The prompt that each prompt takes its activation from: a random cycle through those with the same mask."""
    order = np.random.default_rng(seed).permutation(len(mask))
    others = np.empty(len(mask), np.int32)
    for row in np.unique(mask, axis=0):
        cycle = order[(mask[order] == row).all(1)]
        if len(cycle) == 1:
            problem = f"no other prompt has the {row.sum()} tokens and the padding of prompt {cycle[0]}"
            raise ValueError(f"resampling takes activations of another prompt, but {problem}; add one of this length")
        others[cycle] = np.roll(cycle, 1)
    return others


def _mean(value: Array, mask: Array, letters: str) -> Array:
    """The mean of an activation over prompts and positions, without padding, in the activation's shape."""
    axis = letters.split().index("p")
    weights = mask.reshape(len(mask), *(mask.shape[1] if i == axis else 1 for i in range(1, value.ndim)))
    mean = jnp.sum(wide(value) * weights, axis=(0, axis), keepdims=True) / jnp.sum(mask)
    return jnp.broadcast_to(mean, value.shape).astype(value.dtype)


# --- from a sweep to a labeled result


@dataclasses.dataclass(frozen=True)
class Target:
    """The activation that a sweep patches: its name and site, the letters of its axes, and the axes of the sweep."""

    activation_name: str
    site: str
    letters: str
    axes: tuple[str, ...]

    @classmethod
    def of(cls, model: HookedTransformer, activation_name: str, axes: Sequence[str]) -> "Target":
        return cls(activation_name, *site_of(model.cfg, activation_name), axes=axes)

    @property
    def name(self) -> str:
        """The site in all layers, as a `names_filter`."""
        return f"blocks.*.{self.site}"


def _swept(
    model: HookedTransformer, base: ModelInput, source: Mapping[str, Array] | None, change: Callable, metric: Any,
    target: Target, goals: Mapping[str, np.ndarray] | None, **options: Unpack[SweepOptions],
) -> Patched | dict[str, Patched]:  # fmt: skip
    """The results of a sweep as `Patched` arrays: one, or a dict if `metric` is a dict."""
    labels = index_axes(model.cfg, base.n_positions, target.activation_name, target.axes)
    shape = tuple(map(len, labels.values()))
    cells = Cells.at(model.cfg, target.activation_name, combinations(labels))
    setter = _setter(target.letters, tuple(target.axes), change)
    swept = sweep(model, base, cells, setter, source, _by_name(metric), **options)
    labels |= {axis: position_labels(model, base) for axis in target.axes if axis.endswith("pos")}
    results = {}
    for name, values in swept.cells.items():
        prompts = metric_axes(values.shape[1:])
        goal = None if goals is None else goals[name]
        values = values.reshape(*shape, *values.shape[1:])
        results[name] = Patched(values, (*labels, *prompts), labels | prompts, swept.baseline[name], goal)
    return results if isinstance(metric, Mapping) else results[""]


@functools.cache
def _setter(letters: str, axes: tuple[str, ...], change: Callable[[Any, Array, Array], Array]) -> Setter:
    """The setter that changes an activation with these axes at the index of a sweep along `axes`."""
    along = [
        next((i for i, letter in enumerate(letters.split()) if letter in LETTERS.get(axis, "")), None)
        for axis in axes[1:]
    ]
    if None in along or len(set(along)) < len(along):
        possible = ("layer", *(axis for axis, own in LETTERS.items() if set(own) & set(letters.split())))
        raise ValueError(
            f"an activation with the axes {letters!r} cannot be swept along {axes}; its axes are {possible}"
        )

    @PaddedSetter
    def setter(activation: Array, index: Array, source: Array) -> Array:
        selected: list[Any] = [slice(None)] * activation.ndim
        for axis, i in zip(along, index[1:], strict=True):
            selected[axis] = i
        return change(activation.at[tuple(selected)], activation, source[tuple(selected)])

    return setter


def put_source(at: Any, activation: Array, source: Array) -> Array:
    """Replaces the value by that of the source."""
    return at.set(source)


def put_zero(at: Any, activation: Array, source: Array) -> Array:
    """Replaces the value by zero."""
    return at.set(0)


def metric_axes(shape: tuple[int, ...]) -> dict[str, list[str]]:
    """The axes of a metric that returns an array of this shape, with their labels. The first axis is "prompt"."""
    names = ("prompt", *(f"metric axis {axis}" for axis in range(1, len(shape))))
    return {axis: [str(i) for i in range(length)] for axis, length in zip(names, shape, strict=False)}


def position_labels(model: HookedTransformer, inputs: ModelInput) -> list[str]:
    """A label for every position: the token of the first prompt, and the number of the position."""
    if model.tokenizer is None:
        return [str(position) for position in range(inputs.n_positions)]
    tokens = np.asarray(inputs.tokens)[0, : inputs.n_positions]
    return [f"{token} {position}" for position, token in enumerate(model.to_str_tokens(tokens))]


def _by_name(metric: Any) -> dict[str, MetricFunction]:
    if isinstance(metric, Mapping) and not metric:
        raise ValueError("the dict of metrics is empty; give a function of the logits, or several by name")
    return dict(metric) if isinstance(metric, Mapping) else {"": metric}


def _number(values: np.ndarray) -> str:
    return f"{values:.4g}" if values.ndim == 0 else np.array2string(values, precision=3, threshold=8)
