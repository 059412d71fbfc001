"""How well attributions foretell what patching does."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.scipy.stats import rankdata
from jaxtyping import Array, Float

from jaxlens.analysis.attribution import attribution_patch
from jaxlens.analysis.interventions import activation_patch
from jaxlens.analysis.labelled import Labelled
from jaxlens.transformer import HookedTransformer


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Attributions, the effects of patching at the same places, and how they are correlated.

    `pearson` compares values and `spearman` ranks; `slope` is by how much effects grow, in the mean, with attributions.
    """

    attribution: Labelled
    patching: Labelled
    pearson: float
    spearman: float
    slope: float

    def __repr__(self) -> str:
        return (
            f"Agreement over {self.patching.values.size} places: Pearson {self.pearson:.3f}, "
            f"Spearman {self.spearman:.3f}, slope {self.slope:.3f}"
        )


def correlation(attribution: Labelled, patching: Labelled) -> Agreement:
    """How attributions and effects of patching with the same axes, in any order, are correlated.

    Raises:
        ValueError: their axes differ, or either is the same everywhere.

    Example:
        >>> labels = {"head": ["0", "1", "2"]}
        >>> correlation(Labelled(np.array([0.0, 1.0, 2.0]), ("head",), labels),
        ...             Labelled(np.array([0.5, 1.0, 5.0]), ("head",), labels))
        Agreement over 3 places: Pearson 0.912, Spearman 1.000, slope 2.250
    """
    if _sizes(attribution) != _sizes(patching):
        raise ValueError(
            f"attributions have the axes {_sizes(attribution)} and patching {_sizes(patching)}; wanted the same: sum "
            'attributions over the axes that patching does not have, as in attributions["z"].sum("pos")'
        )
    order = [attribution.axes.index(axis) for axis in patching.axes]
    pair = np.stack([attribution.values.transpose(order).ravel(), patching.values.ravel()]).astype(np.float64)
    if not pair.std(axis=1).all():
        raise ValueError("attributions or effects are all the same, so nothing can be correlated")
    ranks = [np.asarray(rankdata(values)) for values in pair]
    (variance, covariance), _ = np.cov(pair)
    return Agreement(
        attribution, patching, float(np.corrcoef(pair)[0, 1]), float(np.corrcoef(ranks)[0, 1]),
        float(covariance / variance),
    )  # fmt: skip


def _sizes(result: Labelled) -> dict[str, int]:
    return dict(zip(result.axes, result.shape, strict=True))


def compare_with_patching(
    model: HookedTransformer, clean: Any, corrupt: Any, metric_fn: Callable[[Float[Array, "b p v"]], Array],
    node: str = "z", axes: Sequence[str] = ("layer", "head"), *, ig_steps: int = 1, exact_softmax: bool = False,
    attention_mask: Any = None, batch_size: int | None = None, progress: bool = True,
) -> Agreement:  # fmt: skip
    """Attributes a node and patches it for real at every place along `axes`, and says how well the two agree.

    Arguments are those of `attribution_patch` and `activation_patch` (which takes the corrupted input first).

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> found = compare_with_patching(
        ...     model, [[1, 2, 3]], [[1, 5, 3]], lambda logits: logits[0, -1, 4], "resid_pre", ("layer", "pos"))
        >>> found.patching.shape, -1 <= found.spearman <= 1
        ((2, 3), True)
    """
    found = attribution_patch(
        model, clean, corrupt, metric_fn, node, ig_steps=ig_steps, exact_softmax=exact_softmax,
        attention_mask=attention_mask,
    )[node]  # fmt: skip
    patched = activation_patch(
        model, corrupt, clean, metric_fn, node, axes, attention_mask=attention_mask, batch_size=batch_size,
        progress=progress,
    ).change  # fmt: skip
    return correlation(found.sum(*(axis for axis in found.axes if axis not in patched.axes)), patched)
