"""Runs of a model on a mesh with Explicit axes (see jaxlens/_jax/explicit_axes.py).

Axes: b batch, p position, d d_model, o output vocabulary.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxlens._jax.explicit_axes import explicit_mesh
from jaxlens.hooks.api import PythonHook
from jaxlens.hooks.layout import ModelLayout
from jaxlens.hooks.plan import RegisteredHook
from jaxlens.model.engine import Captured
from jaxlens.model.request import ModelInput, RunRequest
from jaxlens.nn.kv_cache import KVCache
from jaxlens.nn.parameters import disassemble, parameter_axes


def with_automatic_axes(
    run: Callable, model: Any, model_input: ModelInput, request: RunRequest, hooks: tuple[RegisteredHook, ...],
    *others: Any,
) -> tuple[Any, list[Captured], Any]:  # fmt: skip
    """`run(model, model_input, request, hooks, *others)`, with Auto axes during the run if the mesh has Explicit axes.

    Its results get Explicit axes again: the output, the captured activations, and a KV cache.
    """
    layout = layout_of(model, model_input)
    if layout is None:
        return run(model, model_input, request, hooks, *others)
    hooks = tuple(in_layout(hook, layout) for hook in hooks)
    with layout.automatic():
        modules, *inputs = layout.to_automatic((model.modules, model_input, request, hooks, *others))
        output, captured, rest = run(model._copy(modules), *inputs)
    letters = ["", "b", "b p", "b p o" if request.layers.unembeds else "b p d"]  # by the number of axes
    output = jax.tree.map(lambda array: layout.to_explicit(array, letters[array.ndim]), output)
    rest = rest.with_explicit_axes(layout) if isinstance(rest, KVCache) else rest
    return output, [explicit(entry, layout) for entry in captured], rest


def layout_of(model: Any, *inputs: Any) -> ModelLayout | None:
    """The layout of a run on a mesh with Explicit axes, or None. Arrays of `inputs` begin with the axes "b p"."""
    mesh = explicit_mesh(model.modules.embed, inputs)  # not all weights: every call would be slower
    if mesh is None:
        return None
    given = [("b p", array) for array in jax.tree.leaves(inputs) if isinstance(array, jax.Array) and array.ndim > 1]
    return ModelLayout.of(mesh, [*given, *_weights(model)], model.cfg)


def _weights(model: Any) -> Iterator[tuple[str, jax.Array]]:
    """The weights, with their axis letters."""
    weights = disassemble(model.cfg, model.modules)
    for name, letters in parameter_axes(model.cfg).items():
        yield letters.replace("v", "o") if model.cfg.tie_word_embeddings else letters, weights[name]


def in_layout(hook: RegisteredHook, layout: ModelLayout) -> RegisteredHook:
    """The hook; if its function is a plain Python function, the function receives arrays with Explicit axes."""
    if not isinstance(hook.hook, PythonHook):
        return hook
    return dataclasses.replace(hook, hook=dataclasses.replace(hook.hook, layout=layout))


def explicit(entry: Captured, layout: ModelLayout) -> Captured:
    """A captured activation with Explicit axes."""
    name = entry.name if entry.layers is None else f"blocks.{entry.layers[0]}.{entry.name}"
    value = layout.to_explicit_at(name, entry.value, n_leading=int(entry.layers is not None))
    return dataclasses.replace(entry, value=value)
