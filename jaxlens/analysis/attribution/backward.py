"""A layer-by-layer backward pass: the derivatives of a metric with respect to activations, not weights.

    forward     x ─ layer 0 ─ layer 1 ─ … ─ x' ─ logits ─ metric      every layer saves what its derivative needs
    backward   ∂x ─ layer 0 ─ layer 1 ─ … ─ ∂x' ─ ∂logits ─┘          and yields the gradients at its probed sites

Forward, metric and backward are separate programs, so a new metric recompiles nothing of the model. No weight gets a
gradient or is stored a second time. (`jax.vjp` of the whole loop over layers would save a copy of all weights.)

Axes: b batch, p position, d d_model, v vocabulary, l layer of a stretch (consecutive layers of one kind).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxlens._jax import UNTRACEABLE, is_traced
from jaxlens.analysis.compiled import compiled
from jaxlens.analysis.interventions.metric import Metric, repeated_last
from jaxlens.hooks.plan import HookPlan, zero_probe
from jaxlens.hooks.tap import Tap
from jaxlens.model.engine import Mode, Stretch, stretches
from jaxlens.model.request import ModelInput
from jaxlens.model.transformer import HookedTransformer
from jaxlens.nn.block import Block
from jaxlens.nn.module import arrays

ByStretch = tuple[dict[str, Float[Array, "l b ..."]], ...]
"""Arrays by site, for every stretch in order."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """The input of the first layer: the residual stream, and the mask (False for padding)."""

    residual: Float[Array, "b p d"]
    mask: Bool[Array, "b p"]

    @classmethod
    def of(cls, model: HookedTransformer, inputs: ModelInput) -> "Start":
        """The embedding of an input."""
        return cls(model(inputs.tokens, stop_at_layer=0, attention_mask=inputs.mask), inputs.mask)

    @classmethod
    def pair(cls, model: HookedTransformer, *inputs: ModelInput) -> list["Start"]:
        """The embeddings of two inputs."""
        return [cls.of(model, run) for run in inputs]

    def towards(self, other: "Start", fraction: float) -> "Start":
        """Linear interpolation towards `other`."""
        return Start(_interpolate(self.residual, other.residual, float(fraction)), self.mask)


@jax.jit
def _interpolate(start, goal, fraction):
    return start + fraction * (goal - start)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LayerDerivative:
    """The derivative of a layer without the layer's weights, or those of several layers, stacked.

    `saved` are the other arrays that it needs. `recipe` is the structure of the function that `jax.vjp` returned.
    """

    saved: list[Array]
    recipe: Any = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, pull_back: Callable, block: Block) -> "LayerDerivative":
        """The derivative from the function that `jax.vjp` returned, without the weights of `block`."""
        weights = {id(weight): index for index, weight in enumerate(jax.tree.leaves(block))}
        leaves, structure = jax.tree.flatten(pull_back)
        indices = tuple(weights.get(id(leaf)) for leaf in leaves)
        return cls([leaf for leaf, index in zip(leaves, indices, strict=True) if index is None], (structure, indices))

    def of_layer(self, block: Block) -> Callable:
        """The function that `jax.vjp` returned, rebuilt with the weights of the same block."""
        structure, indices = self.recipe
        weights, saved = jax.tree.leaves(block), iter(self.saved)
        return jax.tree.unflatten(structure, [next(saved) if index is None else weights[index] for index in indices])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Linearised:
    """A run of all layers: its final residual stream, the wanted values, and the derivative of every layer."""

    final: Float[Array, "b p d"]
    values: ByStretch
    derivatives: tuple[LayerDerivative, ...]


def layer_stretches(model: HookedTransformer) -> list[tuple[Stretch, Block]]:
    """The layers in order, as stretches with the stacked weights of each."""
    with_weights = []
    for stretch in stretches(HookPlan(model.cfg), 0, model.cfg.n_layers, Mode.SCANNED):
        stack, first = arrays(model.modules.stacks[stretch.stack]), stretch.first
        if len(stretch.layers) < len(model.cfg.stacks[stretch.stack]):
            rows = slice(first, first + len(stretch.layers))
            stack = jax.tree.map(lambda w, rows=rows: w[rows], stack)
        with_weights.append((stretch, stack))
    return with_weights


def run_layers(
    model: HookedTransformer, start: Start, *, probed: frozenset[str] = frozenset(), wanted: frozenset[str]
) -> tuple[Array, ByStretch]:
    """The residual stream after the last layer, and the values at the wanted sites.

    Values that are compared must come from the same program, because another would round differently. So this runs the
    program of `linearise`, and `probed` are the sites whose derivatives the run that it is compared with needs.
    """
    run = linearise(model, start, probed=probed, wanted=wanted)
    return run.final, run.values


@compiled
def linearise(model: HookedTransformer, start: Start, *, probed: frozenset[str], wanted: frozenset[str]) -> Linearised:
    """A run of all layers, with derivatives with respect to the residual stream at the start and the probed sites."""
    x, values, derivatives = start.residual, [], []
    for layers, stack, step in _steps(model, start.mask):
        first = jax.tree.map(lambda w: w[0], (stack, layers))
        shapes = jax.eval_shape(lambda x, first=first, step=step: step(*first, probed, {}, x)[1], x)

        def body(x, layer, step=step, shapes=shapes):
            zeros = {site: jnp.zeros(shape.shape, shape.dtype) for site, shape in shapes.items()}
            x, pull_back, captured = jax.vjp(functools.partial(step, *layer, wanted), zeros, x, has_aux=True)
            return x, (LayerDerivative.of(pull_back, layer[0]), captured)

        x, (derivative, captured) = jax.lax.scan(body, x, (stack, layers))
        values.append(captured)
        derivatives.append(derivative)
    return Linearised(x, tuple(values), tuple(derivatives))


def _steps(model: HookedTransformer, mask):
    """For every stretch: its layer numbers, its weights, and `step`, which runs one layer.

    `step(block, layer, wanted, zeros, x)` returns the layer's output and the values at the wanted sites. It adds
    `zeros[site]` to the value at each site, so that the derivative with respect to `zeros` is the gradient there.
    """
    info, plan = model.modules.sequence_info(mask), model.hook_plan()
    points = plan.points if plan.hooks else None
    for stretch, stack in layer_stretches(model):
        hooks = tuple(hook.with_new_identity() for hook in plan.hooks_in(stretch.layers))

        def step(block, layer, wanted, zeros, x, hooks=hooks):
            probes = (zero_probe(site, zero) for site, zero in zeros.items())
            tap = Tap((*hooks, *probes), wanted, layer, points=points, columns=info.columns)
            return block(x, info.at_layer(layer), tap), tap.captured

        yield jnp.array(stretch.layers, jnp.int32), stack, step


@compiled
def pull_back(
    model: HookedTransformer, gradient: Float[Array, "b p d"], derivatives: tuple[LayerDerivative, ...],
    data: ByStretch, mask: Bool[Array, "b p"], *, reduce: Callable,
) -> tuple[Float[Array, "b p d"], ByStretch]:  # fmt: skip
    """The gradient at the start from the gradient at the end, and the reduced gradients at the probed sites.

    `reduce(layers, gradients, row, block, info)` receives the gradients of one layer by site, and the entry of `data`
    for that layer. Its results are stacked over layers.
    """
    info, reduced = model.modules.sequence_info(mask), []
    by_stretch = list(zip(layer_stretches(model), derivatives, data, strict=True))
    for (stretch, stack), derivative, rows in reversed(by_stretch):

        def body(gradient, layer, layers=stretch.layers):
            block, number, derivative, row = layer
            gradients, gradient = derivative.of_layer(block)(gradient)
            return gradient, reduce(layers, gradients, row, block, info.at_layer(number))

        numbers = jnp.array(stretch.layers, jnp.int32)
        gradient, results = jax.lax.scan(body, gradient, (stack, numbers, derivative, rows), reverse=True)
        reduced.append(results)
    return gradient, tuple(reduced[::-1])


def all_gradients(layers, gradients, row, block, info) -> dict[str, Array]:
    """The `reduce` that keeps the gradients at all probed sites."""
    return gradients


# --- runs between two starts


def runs_along(
    model: HookedTransformer, start: Start, goal: Start, fractions: Iterable[float], readout: "Readout", *,
    probed: frozenset[str] = frozenset(), wanted: frozenset[str] = frozenset(),
) -> Iterator[tuple[Linearised, Array, Float[Array, "b p d"]]]:  # fmt: skip
    """Runs from these fractions of the way from `start` to `goal`, each with its metric and the gradient at its end.

    Delete each run before the next is computed: it saves large arrays for the backward pass.
    """
    for fraction in fractions:
        run = linearise(model, start.towards(goal, fraction), probed=probed, wanted=wanted)
        yield run, *readout.with_gradient(run.final)
        del run


# --- from the residual stream after the layers to the metric


@dataclasses.dataclass(frozen=True, eq=False)
class Readout:
    """A metric of the logits: one number, or one per prompt that depends only on that prompt's logits."""

    model: HookedTransformer
    metric: Metric
    positions: np.ndarray

    @classmethod
    def of(cls, model: HookedTransformer, metric: Callable, inputs: ModelInput) -> "Readout":
        """The metric for runs of these inputs. Only the logits at positions that it reads are computed."""
        shape = (len(inputs.mask), inputs.n_positions, model.cfg.d_vocab_out)
        traced = Metric(metric, jax.ShapeDtypeStruct(shape, model.cfg.dtype))
        # With hooks, all positions are computed, because a hook on the final norm or the logits may index positions.
        read = np.arange(shape[1]) if model.list_hooks() else repeated_last(traced.positions, inputs.mask.shape[1])
        return cls(model, traced, read)

    def __call__(self, final: Float[Array, "b p d"]) -> Array:
        """The metric of a run with this residual stream after the last layer."""
        return self._checked(self._of_logits(logits_at(self.model, final, self.positions)), len(final))

    def with_gradient(self, final: Float[Array, "b p d"]) -> tuple[Array, Float[Array, "b p d"]]:
        """The metric, and its gradient after the last layer. A metric per prompt is summed for the gradient."""

        def total(logits):
            value = self._checked(self._of_logits(logits), len(final))
            if not is_traced(value) or not jnp.issubdtype(value.dtype, jnp.floating):
                cause = "it is constant, or uses .item() or argmax; write it in jax.numpy, as a smooth function"
                problem = f"the metric's value ({value.dtype}) has no gradient with respect to the logits"
                raise TypeError(f"{problem}: {cause}")
            return jnp.sum(value), value

        logits = logits_at(self.model, final, self.positions)
        try:
            (_, value), gradient = jax.value_and_grad(total, has_aux=True)(logits)
        except UNTRACEABLE as error:
            cause = "the metric converts logits to Python or numpy numbers (float, numpy, print), so it has no gradient"
            raise TypeError(f"{cause}; write it in jax.numpy and return an array") from error
        return value, pull_back_logits(self.model, final, self.positions, gradient)

    def _of_logits(self, logits):
        return self.metric(logits[None], self.positions, np.arange(logits.shape[-1]))[0]

    def _checked(self, value, n_prompts: int):
        if value.shape not in ((), (n_prompts,)):
            raise ValueError(f"the metric has shape {list(value.shape)}; expected one number, or [{n_prompts}]")
        return value


@compiled
def logits_at(model: HookedTransformer, x: Float[Array, "b p d"], positions) -> Float[Array, "b p v"]:
    """The logits at some positions, from the residual stream `x` after the last layer."""
    return model(x[:, positions], start_at_layer=model.cfg.n_layers)


@compiled
def pull_back_logits(model: HookedTransformer, x, positions, gradient) -> Float[Array, "b p d"]:
    """The gradient with respect to `x`, from that with respect to these logits."""
    return jax.vjp(lambda x: logits_at(model, x, positions), x)[1](gradient)[0]
