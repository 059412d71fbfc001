"""Compares the effects that attribution patching estimates with those that activation patching measures."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.scipy.stats import rankdata
from jaxtyping import Array, Float

from jaxlens.analysis.attribution.nodes import attribution_patch
from jaxlens.analysis.interventions.activation_patching import activation_patch
from jaxlens.analysis.labelled_array import Labelled
from jaxlens.model.transformer import HookedTransformer


@dataclasses.dataclass(frozen=True, eq=False)
class Agreement:
    """Attributions, the effects of patching the same activations, and their correlation.

    `pearson` correlates values and `spearman` ranks. `slope` is that of the regression of effects on attributions.
    """

    attribution: Labelled
    patching: Labelled
    pearson: float
    spearman: float
    slope: float

    def __repr__(self) -> str:
        correlations = f"Pearson {self.pearson:.3f}, Spearman {self.spearman:.3f}, slope {self.slope:.3f}"
        return f"Agreement over {self.patching.values.size} entries: {correlations}"


def correlation(attribution: Labelled, patching: Labelled) -> Agreement:
    """The correlation of attributions with effects of patching that have the same axes, in any order.

    Raises:
        ValueError: The axes differ, or all attributions or all effects are equal.

    Example:
        >>> labels = {"head": ["0", "1", "2"]}
        >>> correlation(Labelled(np.array([0.0, 1.0, 2.0]), ("head",), labels),
        ...             Labelled(np.array([0.5, 1.0, 5.0]), ("head",), labels))
        Agreement over 3 entries: Pearson 0.912, Spearman 1.000, slope 2.250
    """
    axes, expected = (dict(zip(result.axes, result.shape, strict=True)) for result in (attribution, patching))
    if axes != expected:
        given = f"attributions have the axes {axes}, but patching has {expected}"
        raise ValueError(f'{given}; sum attributions over the other axes, as in attributions["z"].sum("pos")')
    order = [attribution.axes.index(axis) for axis in patching.axes]
    pair = np.stack([attribution.values.transpose(order).ravel(), patching.values.ravel()]).astype(np.float64)
    if not pair.std(axis=1).all():
        raise ValueError("attributions or effects are constant, so their correlation is undefined")
    ranks = [np.asarray(rankdata(values)) for values in pair]
    pearson, spearman = (float(np.corrcoef(values)[0, 1]) for values in (pair, ranks))
    (variance, covariance), _ = np.cov(pair)
    return Agreement(attribution, patching, pearson, spearman, slope=float(covariance / variance))


def compare_with_patching(
    model: HookedTransformer, clean: Any, corrupt: Any, metric_fn: Callable[[Float[Array, "b p v"]], Array],
    node: str = "z", axes: Sequence[str] = ("layer", "head"), *, ig_steps: int = 1, exact_softmax: bool = False,
    attention_mask: Any = None, batch_size: int | None = None, progress: bool = True,
) -> Agreement:  # fmt: skip
    """Compares the attributions of a node with the effects of patching it at every index along `axes`.

    The arguments are those of `attribution_patch` and `activation_patch` (which takes the corrupted input first).

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> agreement = compare_with_patching(
        ...     model, [[1, 2, 3]], [[1, 5, 3]], lambda logits: logits[0, -1, 4], "resid_pre", ("layer", "pos"))
        >>> agreement.patching.shape, -1 <= agreement.spearman <= 1
        ((2, 3), True)
    """
    attributions = attribution_patch(
        model, clean, corrupt, metric_fn, node, ig_steps=ig_steps, exact_softmax=exact_softmax,
        attention_mask=attention_mask,
    )[node]  # fmt: skip
    patched = activation_patch(
        model, corrupt, clean, metric_fn, node, axes, attention_mask=attention_mask, batch_size=batch_size,
        progress=progress,
    ).change  # fmt: skip
    other_axes = [axis for axis in attributions.axes if axis not in patched.axes]
    return correlation(attributions.sum(*other_axes), patched)
