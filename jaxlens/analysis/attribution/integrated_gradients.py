"""Integrated gradients: how much each token of a prompt contributes to a metric.

The gradient with respect to the embedding gives the effect of an infinitesimal change. Its integral along the straight
line from a baseline to the prompt is the difference of the metric (Sundararajan et al. 2017, arXiv 1703.01365).

Axes: b batch, p position, d d_model, v vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlens._jax import full_precision, on_host, wide
from jaxlens._jax.explicit_axes import on_any_mesh
from jaxlens.analysis.attribution.backward import Readout, Start, all_gradients, pull_back, run_layers, runs_along
from jaxlens.analysis.inputs import read_pair, read_single
from jaxlens.analysis.interventions.activation_patching import position_labels
from jaxlens.analysis.labelled_array import Labelled
from jaxlens.model.lengths import extended
from jaxlens.model.request import ModelInput
from jaxlens.model.transformer import HookedTransformer


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class TokenContributions(Labelled):
    """The contributions of tokens, [prompt pos]. They sum to about `difference`, metric(input) - metric(baseline)."""

    difference: np.ndarray

    @property
    def gap(self) -> np.ndarray:
        """The error of the integral: `difference` minus the sum of contributions, one number or one per prompt."""
        return self.difference - self.values.sum(-1 if self.difference.ndim else None)


@on_any_mesh
def integrated_gradients(
    model: HookedTransformer, input: Any, metric_fn: Callable[[Float[Array, "b p v"]], Array], baseline: Any,
    steps: int = 32, *, attention_mask: Any = None,
) -> TokenContributions:  # fmt: skip
    """The contribution of every token to metric(input) - metric(baseline).

    The metric returns one number, or one per prompt. The baseline is another prompt of the same shape, or values of
    `hook_embed` that broadcast to [b p d_model], such as the mean over all tokens,
    `model.embed(np.arange(model.cfg.d_vocab)[None])[0].mean(0)`. Position embeddings are added to them. The integral
    uses Gauss-Legendre quadrature, with a forward and a backward pass per step. Its error, `.gap`, falls fast with the
    number of steps if the model is smooth along the line. It falls more slowly with ReLUs, and hardly at all if the
    choice of experts changes along the line, or if the baseline is zero and a norm follows.

    Raises:
        ValueError: `steps` is not positive, or the shape of the baseline or of the metric is invalid.
        TypeError: The metric cannot be differentiated.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8, act_fn="gelu", attn_only=True))
        >>> result = integrated_gradients(model, [[1, 2, 3]], lambda logits: logits[0, -1, 4], [[7, 8, 9]])
        >>> result.shape, bool(abs(result.gap) < 1e-5)
        ((1, 3), True)
    """
    if not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps is {steps!r}; expected a positive number of integration points")
    inputs, goal, start = _ends(model, input, baseline, attention_mask)
    readout, total = Readout.of(model, metric_fn, inputs), 0
    points, weights = np.polynomial.legendre.leggauss(int(steps))
    runs = runs_along(model, start, goal, (points + 1) / 2, readout)
    for (run, _, gradient), weight in zip(runs, weights / 2, strict=True):
        gradient, _ = pull_back(model, gradient, run.derivatives, run.values, start.mask, reduce=all_gradients)
        total = total + float(weight) * wide(gradient)
        del run
    with full_precision(model.cfg.dtype):
        contributions = on_host(_dot(total, goal.residual - start.residual))[:, : inputs.n_positions]
    at_end, at_start = (on_host(readout(run_layers(model, of, wanted=frozenset())[0])) for of in (goal, start))
    prompts = [str(prompt) for prompt in range(len(contributions))]
    labels = {"prompt": prompts, "pos": position_labels(model, inputs)}
    return TokenContributions(contributions, ("prompt", "pos"), labels, difference=at_end - at_start)


def _ends(model: HookedTransformer, input: Any, baseline: Any, attention_mask: Any) -> tuple[ModelInput, Start, Start]:
    """The input, and the two ends of the line: the input, and the baseline."""
    if not (isinstance(baseline, jax.Array | np.ndarray) and jnp.issubdtype(baseline.dtype, jnp.floating)):
        runs = read_pair(model, attention_mask, input=input, baseline=baseline)
        return runs[0], *Start.pair(model, *runs)
    inputs = read_single(model, input, attention_mask)
    goal = Start.of(model, inputs)
    shape = (len(inputs.mask), inputs.n_positions, model.cfg.d_model)
    sizes = zip(baseline.shape[::-1], shape[::-1], strict=False)
    if baseline.ndim > 3 or any(size not in (1, expected) for size, expected in sizes):
        raise ValueError(f"the baseline has shape {baseline.shape}, which does not broadcast to {shape}")
    options = {"attention_mask": inputs.mask, "stop_at_layer": 0, "names_filter": "hook_embed"}
    embedded = model.run_with_cache(inputs.tokens, **options)[1]["hook_embed"]
    baseline = extended(jnp.broadcast_to(jnp.asarray(baseline, embedded.dtype), shape), (1,), goal.mask.shape[1])
    return inputs, goal, Start(goal.residual - embedded + baseline, goal.mask)


_dot = jax.jit(lambda gradient, difference: jnp.einsum("bpd,bpd->bp", gradient, difference))
