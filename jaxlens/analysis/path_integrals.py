"""Integrated gradients: which tokens of a prompt a metric is due to.

The gradient by the embedding says what an infinitely small change does. Followed along the straight way from a baseline
to the prompt it adds up to the whole difference between the two (Sundararajan et al. 2017, arXiv 1703.01365).

Axes: b batch, p position, d d_model, v vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens.analysis.interventions import position_labels
from jaxlens.analysis.labelled import Labelled
from jaxlens.analysis.linearise import Readout, Start, along, pull_back, run_layers, themselves, wide
from jaxlens.transformer import HookedTransformer


@dataclasses.dataclass(frozen=True, repr=False)
class TokenContributions(Labelled):
    """What tokens contribute, [prompt pos], and the difference of the metric that they are to add up to."""

    difference: np.ndarray

    @property
    def gap(self) -> np.ndarray:
        """What the contributions lack of the difference, the error of the integral: one number, or one per prompt."""
        return self.difference - self.values.sum(-1 if self.difference.ndim else None)


def integrated_gradients(
    model: HookedTransformer, input: Any, metric_fn: Callable[[Float[Array, "b p v"]], Array], baseline: Any,
    steps: int = 32, *, attention_mask: Any = None,
) -> TokenContributions:  # fmt: skip
    """What every token contributes to metric(input) - metric(baseline), for a metric of one number or one per prompt.

    The baseline is another prompt of the same shape, or embeddings that broadcast to [b p d_model], such as
    `model.W_E.mean(0)`; positions keep theirs. The integral is Gauss and Legendre's, with a forward and a backward pass
    for each step. Its error, `.gap`, falls fast with the number of steps where the model is smooth on the way: more
    slowly with the kinks of ReLU, hardly where experts come and go, and hardly for a baseline of zeros behind a norm,
    which undoes all but the first step away from zero.

    Raises:
        ValueError: `steps` is not positive, the baseline has another shape, or the metric is neither one number nor one
            for every prompt.
        TypeError: the metric cannot be differentiated.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8, act_fn="gelu", attn_only=True))
        >>> found = integrated_gradients(model, [[1, 2, 3]], lambda logits: logits[0, -1, 4], [[7, 8, 9]])
        >>> found.shape, bool(abs(found.gap) < 1e-5)
        ((1, 3), True)
    """
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps is {steps!r}; wanted a positive number of points at which gradients are taken")
    goal, start = _ends(model, input, baseline, attention_mask)
    readout, total = Readout.of(model, metric_fn, goal), 0
    places, weights = np.polynomial.legendre.leggauss(int(steps))
    runs = along(model, start, goal, (places + 1) / 2, readout)
    for (run, _, gradient), weight in zip(runs, weights / 2, strict=True):
        gradient, _ = pull_back(model, gradient, run.derivatives, run.values, start.real, reduce=themselves)
        total = total + float(weight) * wide(gradient)
        del run
    contributions = np.asarray(_along(total, goal.residual - start.residual))
    at_end, at_start = (np.asarray(readout(run_layers(model, of, wanted=frozenset())[0])) for of in (goal, start))
    prompts = [str(prompt) for prompt in range(len(contributions))]
    positions = position_labels(model, model._read_input(input).tokens)
    return TokenContributions(
        contributions, ("prompt", "pos"), {"prompt": prompts, "pos": positions}, difference=at_end - at_start
    )


def _ends(model: HookedTransformer, input: Any, baseline: Any, attention_mask: Any) -> tuple[Start, Start]:
    """Where the way ends, the input, and where it starts, the baseline."""
    if not (isinstance(baseline, jax.Array | np.ndarray) and jnp.issubdtype(baseline.dtype, jnp.floating)):
        return Start.pair(model, input, baseline, attention_mask, names=("input", "baseline"))
    goal = Start.of(model, input, attention_mask)
    sizes = zip(baseline.shape[::-1], goal.residual.shape[::-1], strict=False)
    if baseline.ndim > 3 or any(size not in (1, wanted) for size, wanted in sizes):
        raise ValueError(f"the baseline has shape {baseline.shape}; wanted what broadcasts to {goal.residual.shape}")
    given = model._read_input(input, attention_mask=attention_mask)
    embedded = model.run_with_cache(
        given.tokens, attention_mask=given.real, stop_at_layer=0, names_filter="hook_embed"
    )[1]["hook_embed"]  # fmt: skip
    return goal, Start(goal.residual - embedded + jnp.asarray(baseline, embedded.dtype), goal.real)


_along = jax.jit(lambda gradient, moved: jnp.einsum("bpd,bpd->bp", gradient, moved))
