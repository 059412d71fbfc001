"""A run and its derivatives by its activations: forward once, then back from the metric, layer by layer.

    forward     x ─ layer 0 ─ layer 1 ─ … ─ x' ─ logits ─ metric      every layer keeps what its derivative needs
    backward   ∂x ─ layer 0 ─ layer 1 ─ … ─ ∂x' ─ ∂logits ─┘          and gives the gradients at its probed sites

Forward, metric and backward are programs apart, so a new metric compiles nothing of the model, and the residual stream
that the layers start from is data. Derivatives are by activations alone: no weight gets a gradient, and none is kept a
second time (what `jax.vjp` of a whole loop over layers keeps for the way back holds a copy of all weights).

Axes: b batch, p position, d d_model, v vocabulary, l layer of a stretch.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxlens.analysis.metric import Metric
from jaxlens.engine import Stretch, plan
from jaxlens.hooks import DataHook, Listening, Tap
from jaxlens.nn.block import Block
from jaxlens.nn.context import Context, make_context
from jaxlens.tracing import is_traced
from jaxlens.transformer import HookedTransformer, float32_means_float32

KEYWORD = inspect.Parameter.KEYWORD_ONLY
UNTRACEABLE = (
    jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError, jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
)  # fmt: skip
"""What a metric raises under differentiation if it needs plain numbers."""

ByStretch = tuple[dict[str, Float[Array, "l b ..."]], ...]
"""Arrays by site, for every stretch of layers of one shape, in order."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Start:
    """What the layers start from: the residual stream, and which columns are real tokens."""

    residual: Float[Array, "b p d"]
    real: Bool[Array, "b p"]

    @classmethod
    def of(cls, model: HookedTransformer, input: Any, attention_mask: Any = None) -> "Start":
        """The embedding of an input as a model takes it."""
        given = model._read_input(input, attention_mask=attention_mask)
        return cls(model(given.tokens, stop_at_layer=0, attention_mask=given.real), given.real)

    @classmethod
    def pair(
        cls, model: HookedTransformer, clean: Any, corrupt: Any, attention_mask: Any, names=("clean", "corrupt")
    ) -> tuple["Start", "Start"]:
        """Two inputs whose positions correspond.

        Raises:
            ValueError: they differ in shape, or in where they are padded, or a transformation looks at them.
        """
        found = cls.of(model, clean, attention_mask), cls.of(model, corrupt, attention_mask)
        if is_traced(found):
            raise ValueError("attribution takes its own gradients, and labels them; call it outside jit, grad and vmap")
        shapes = [list(start.real.shape) for start in found]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{names[0]} has [prompts, positions] = {shapes[0]} and {names[1]} {shapes[1]}; wanted the same"
            )
        if not np.array_equal(*(start.real for start in found)):
            raise ValueError(f"{names[0]} and {names[1]} have padding in different places; positions must correspond")
        return found

    def towards(self, other: "Start", share: float) -> "Start":
        """This start moved by a share of the way to another."""
        return Start(_between(self.residual, other.residual, float(share)), self.real)


@jax.jit
def _between(start, goal, share):
    return start + share * (goal - start)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerDerivative:
    """What the derivative of a layer needs besides the layer's weights: of one layer, or stacked of many."""

    kept: list[Array]
    recipe: Any = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, pull_back: Callable, block: Block) -> "LayerDerivative":
        """A function that `jax.vjp` returned, taken apart: the weights of `block` are left out."""
        weights = {id(weight): place for place, weight in enumerate(jax.tree.leaves(block))}
        leaves, structure = jax.tree.flatten(pull_back)
        places = tuple(weights.get(id(leaf)) for leaf in leaves)
        return cls([leaf for leaf, place in zip(leaves, places, strict=True) if place is None], (structure, places))

    def of_layer(self, block: Block) -> Callable:
        """The function again, with the weights of the same block."""
        structure, places = self.recipe
        weights, kept = jax.tree.leaves(block), iter(self.kept)
        return jax.tree.unflatten(structure, [next(kept) if place is None else weights[place] for place in places])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linearised:
    """A run of all layers: where it ended, the values that were wanted, and the derivative of every layer."""

    final: Float[Array, "b p d"]
    values: ByStretch
    derivatives: tuple[LayerDerivative, ...]


@dataclasses.dataclass(frozen=True)
class Probe:
    """A hook that adds a zero: the derivative by it is the gradient at its site."""

    site: str
    zero: Array

    def acts_at(self, layer) -> bool:
        return True

    def __call__(self, value, layer, points=None):
        return value + self.zero


def program(function: Callable) -> Callable:
    """A function of (model, …) compiled, with its keyword-only arguments as a part of the program.

    For a model with Python hooks it is traced anew every time: what these read may have changed.
    """
    static = [name for name, argument in inspect.signature(function).parameters.items() if argument.kind == KEYWORD]
    compiled = jax.jit(function, static_argnames=static)

    @functools.wraps(function)
    def run(model: HookedTransformer, *arguments: Any, **keywords: Any):
        plain = any(not isinstance(added.fn, DataHook) for added in model._hooks)
        with float32_means_float32(model.cfg):
            return (function if plain else compiled)(model, *arguments, **keywords)

    return run


def wide(x: Array) -> Array:
    """In float32 at least: what is to be summed up, or decomposed."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def context_of(model: HookedTransformer, real: Bool[Array, "b p"]) -> Context:
    """The context of a run that starts from a residual stream."""
    context = make_context(model.cfg, real)
    if model.cfg.positional_embedding_type != "shortformer":
        return context
    return dataclasses.replace(context, pos_embed=model.parts.pos_embed(context.positions, context.real))


def stretches(model: HookedTransformer) -> list[tuple[Stretch, Block]]:
    """The layers in order, as stretches of equal shape, and the weights of each."""
    found = []
    for stretch in plan(Listening(model.cfg), 0, model.cfg.n_layers, whole=True):
        stack, first, last = model.parts.stacks[stretch.stack], stretch.first, stretch.first + len(stretch.layers)
        if len(stretch.layers) < len(model.cfg.stacks[stretch.stack]):
            stack = jax.tree.map(lambda w, first=first, last=last: w[first:last], stack)
        found.append((stretch, stack))
    return found


@program
def run_layers(model: HookedTransformer, start: Start, *, wanted: frozenset[str]) -> tuple[Array, ByStretch]:
    """Where a run ends, and its values at the wanted sites."""
    x, values = start.residual, []
    for layers, stack, step in _steps(model, start.real):
        def body(x, layer, step=step):
            return step(*layer, wanted, {}, x)

        x, caught = jax.lax.scan(body, x, (stack, layers))
        values.append(caught)
    return x, tuple(values)


@program
def linearise(
    model: HookedTransformer, start: Start, *, probed: frozenset[str], wanted: frozenset[str]
) -> Linearised:
    """The same run with its derivatives, by the residual stream at its start and by the values at the probed sites."""
    x, values, derivatives = start.residual, [], []
    for layers, stack, step in _steps(model, start.real):
        first = jax.tree.map(lambda w: w[0], (stack, layers))
        shapes = jax.eval_shape(lambda x, first=first, step=step: step(*first, probed, {}, x)[1], x)

        def body(x, layer, step=step, shapes=shapes):
            zeros = {site: jnp.zeros(shape.shape, shape.dtype) for site, shape in shapes.items()}
            x, pull_back, caught = jax.vjp(functools.partial(step, *layer, wanted), zeros, x, has_aux=True)
            return x, (LayerDerivative.of(pull_back, layer[0]), caught)

        x, (derivative, caught) = jax.lax.scan(body, x, (stack, layers))
        values.append(caught)
        derivatives.append(derivative)
    return Linearised(x, tuple(values), tuple(derivatives))


def _steps(model: HookedTransformer, real):
    """For every stretch: its layers' numbers, its weights, and `step(block, layer, wanted, zeros, x)`."""
    context = context_of(model, real)
    listening = Listening.of(model.cfg, model._hooks, frozenset(), None, model._points)
    points = model._points if listening.edits else None
    for stretch, stack in stretches(model):
        edits = tuple(edit.afresh() for edit in listening.edits_in(stretch.layers))

        def step(block, layer, wanted, zeros, x, edits=edits):
            tap = Tap((*edits, *(Probe(site, zero) for site, zero in zeros.items())), wanted, layer, None, points)
            return block(x, context.at_layer(layer), tap), tap.caught

        yield jnp.array(stretch.layers, jnp.int32), stack, step


@program
def pull_back(
    model: HookedTransformer, gradient: Float[Array, "b p d"], derivatives: tuple[LayerDerivative, ...],
    data: ByStretch, real: Bool[Array, "b p"], *, reduce: Callable,
) -> tuple[Float[Array, "b p d"], ByStretch]:  # fmt: skip
    """From the gradient at the end to that at the start, and what `reduce` makes of those at the probed sites.

    `reduce(layers, gradients, row, block, at)` gets those of one layer (of these layers), by site, with that layer's
    row of `data`; what it returns is stacked.
    """
    context, found = context_of(model, real), []
    for (stretch, stack), derivative, rows in reversed(list(zip(stretches(model), derivatives, data, strict=True))):
        def body(gradient, layer, layers=stretch.layers):
            block, number, derivative, row = layer
            gradients, gradient = derivative.of_layer(block)(gradient)
            return gradient, reduce(layers, gradients, row, block, context.at_layer(number))

        numbers = jnp.array(stretch.layers, jnp.int32)
        gradient, made = jax.lax.scan(body, gradient, (stack, numbers, derivative, rows), reverse=True)
        found.append(made)
    return gradient, tuple(found[::-1])


def themselves(layers, gradients, row, block, at) -> dict[str, Array]:
    """The `reduce` that keeps the gradients at all probed sites."""
    return gradients


# --- the way from one start to another


def along(
    model: HookedTransformer, start: Start, goal: Start, shares: Iterable[float], readout: "Readout", *,
    probed: frozenset[str] = frozenset(), wanted: frozenset[str] = frozenset(),
) -> Iterator[tuple[Linearised, Array, Float[Array, "b p d"]]]:  # fmt: skip
    """Runs from starts at these shares of the way, the metric of each and its gradient where the layers end.

    Delete a run before asking for the next: what they keep for the way back is large.
    """
    for share in shares:
        run = linearise(model, start.towards(goal, share), probed=probed, wanted=wanted)
        yield run, *readout.with_gradient(run.final)
        del run


# --- from the end of the layers to the metric


@dataclasses.dataclass(frozen=True)
class Readout:
    """A metric of the logits: one number, or one for every prompt, which must depend on no other prompt's logits."""

    model: HookedTransformer
    metric: Metric
    positions: np.ndarray

    @classmethod
    def of(cls, model: HookedTransformer, metric: Callable, start: Start) -> "Readout":
        """The metric, ready for runs from `start`; only logits at the positions that it reads are computed."""
        shape = (*start.real.shape, model.cfg.d_vocab_out)
        ready = Metric(metric, jax.ShapeDtypeStruct(shape, start.residual.dtype))
        # a hook on the logits, or on what leads to them, may count positions
        return cls(model, ready, np.arange(shape[1]) if model.list_hooks() else ready.positions)

    def __call__(self, final: Float[Array, "b p d"]) -> Array:
        """The metric of a run that ended there."""
        return self._checked(self._of_logits(logits_at(self.model, final, self.positions)), len(final))

    def with_gradient(self, final: Float[Array, "b p d"]) -> tuple[Array, Float[Array, "b p d"]]:
        """The metric, and its gradient where the layers end (that of its sum, if there is one for every prompt).

        Raises:
            ValueError: it is neither one number nor one for every prompt.
            TypeError: it cannot be differentiated.
        """

        def total(logits):
            value = self._checked(self._of_logits(logits), len(final))
            if not is_traced(value) or not jnp.issubdtype(value.dtype, jnp.floating):
                raise TypeError(
                    f"no gradient leads from the metric's value, {value.dtype}, to the logits: it is a constant, or "
                    "passes through .item() or argmax; write it with jax.numpy, as a smooth function of them"
                )
            return jnp.sum(value), value

        logits = logits_at(self.model, final, self.positions)
        try:
            (_, value), gradient = jax.value_and_grad(total, has_aux=True)(logits)
        except UNTRACEABLE as error:
            raise TypeError(
                "the metric turns logits into plain numbers (float, numpy, print), so it has no gradient; write it "
                "with jax.numpy and return an array"
            ) from error
        return value, pull_back_logits(self.model, final, self.positions, gradient)

    def _of_logits(self, logits):
        places = np.searchsorted(self.positions, self.metric.positions)
        return self.metric((logits if len(places) == len(self.positions) else logits[:, places])[None])[0]

    def _checked(self, value, n_prompts: int):
        if value.shape not in ((), (n_prompts,)):
            raise ValueError(
                f"the metric has shape {list(value.shape)}; wanted one number, or one for each of {n_prompts} prompts"
            )
        return value


@program
def logits_at(model: HookedTransformer, x: Float[Array, "b p d"], positions) -> Float[Array, "b p v"]:
    """The logits at some positions of a run that ended with `x`."""
    return model(x[:, positions], start_at_layer=model.cfg.n_layers)


@program
def pull_back_logits(model: HookedTransformer, x, positions, gradient) -> Float[Array, "b p d"]:
    """The gradient by `x` from that by those logits."""
    return jax.vjp(lambda x: logits_at(model, x, positions), x)[1](gradient)[0]
