"""The compiled function of a batch: a model and a reduction of what it computes.

Axes: b batch, p position.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxlens._jax import on_host
from jaxlens._jax.explicit_axes import Layout, explicit_mesh
from jaxlens.batch.contexts import Batch, Context, batches
from jaxlens.batch.fingerprint import AsOfNow
from jaxlens.hooks.api import DataHook
from jaxlens.hooks.steer import Steering
from jaxlens.model.cache.activation_cache import ActivationCache
from jaxlens.model.request import LayerRange, ModelInput, RunRequest
from jaxlens.model.transformer import HookedTransformer

Side = Literal["left", "right"]


class Program:
    """The compiled function of a batch: `reduce` of the logits and the activations of a model.

    With `n_ahead`, the last columns of a batch are not run: the model predicts them. Rows are then padded on the left.
    """

    def __init__(
        self, model: HookedTransformer, wanted: frozenset[str], layers: LayerRange, reduce: Callable,
        side: Side = "left", returns: Literal["logits"] | None = "logits", n_ahead: int = 0,
    ):  # fmt: skip
        request = RunRequest(layers, returns, wanted=wanted, has_derivative=False)
        self.side, self.cfg, self.n_ahead = side, model.cfg, n_ahead
        mesh = explicit_mesh(model.modules.embed)
        self._layout = None if mesh is None else Layout(mesh, ())  # then programs use Auto axes
        self.model = _as_of_now(model if mesh is None else self._layout.to_automatic(model))
        # plain hooks may do anything, so they have programs of their own
        program = _new_program if model.has_python_hooks else _kept_program
        self._run = program(request, AsOfNow(reduce), n_ahead)
        self._axes: Any = None

    def __call__(self, tokens: Int[np.ndarray, "b p"], mask: Bool[np.ndarray, "b p"]) -> Any:
        """The result of a batch, on the device. It may not be computed yet."""
        with self.axes():
            if self.model.sharding is not None:
                tokens, mask = map(self.model.sharding.place_batch, (tokens, mask))
            return self._run(self.model, tokens, mask)

    def axes(self) -> contextlib.AbstractContextManager:
        """A context in which the axes of the model's mesh, if it has one, are Auto."""
        return contextlib.nullcontext() if self._layout is None else self._layout.automatic()

    def batches(self, contexts: Iterable[Context], batch_tokens: int, limit: int) -> Iterator[Batch]:
        """The contexts in batches for this program. The rows are divided over the devices of the model's mesh."""
        sharding = self.model.sharding
        axis = None if sharding is None else dict(sharding.rules).get("b")
        n_devices = 1 if axis is None else sharding.mesh.shape[axis]
        return batches(contexts, batch_tokens, limit, self.side, n_devices, self.n_ahead)

    def rows(self, batch: Batch, result: Any) -> list[Any]:
        """The result of each context, on the host, without padding."""
        axes = self._length_axes(batch.tokens.shape)
        leaves, structure = jax.tree.flatten(jax.tree.map(on_host, result))
        n_rows = batch.tokens.shape[0]
        for leaf in leaves:
            if np.ndim(leaf) == 0 or leaf.shape[0] != n_rows:
                expected = f"arrays whose first axis is that of the {n_rows} rows of a batch"
                raise ValueError(f"reduce returned an array of shape {np.shape(leaf)}; expected {expected}")
        return [
            structure.unflatten([self._cut(leaf[i], cut, batch, i) for leaf, cut in zip(leaves, axes, strict=True)])
            for i in range(len(batch.contexts))
        ]

    def _cut(self, row: np.ndarray, axes: tuple[int, ...], batch: Batch, i: int) -> np.ndarray:
        """A row without padding, along the axes that have the length of the batch."""
        n_padding = batch.tokens.shape[1] - len(batch.contexts[i])
        for axis in axes:
            kept = slice(n_padding, None) if self.side == "left" else slice(row.shape[axis] - n_padding)
            row = row[(slice(None),) * axis + (kept,)]
        return row

    def _length_axes(self, shape: tuple[int, int]) -> list[tuple[int, ...]]:
        """The axes of each array of a row that grow with the length of the batch."""
        if self._axes is None:
            n_rows, length = shape
            n_run = length - self.n_ahead
            other = length + 1 if n_run < self.cfg.n_ctx or n_run == 1 else length - 1
            sizes = zip(self._shapes(n_rows, length), self._shapes(n_rows, other), strict=True)
            self._axes = [tuple(i - 1 for i in range(1, len(a)) if a[i] != b[i]) for a, b in sizes]
        return self._axes

    def _shapes(self, n_rows: int, length: int) -> list[tuple[int, ...]]:
        tokens, mask = np.zeros((n_rows, length), np.int32), np.ones((n_rows, length), bool)
        with self.axes():
            return [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(self._run, self.model, tokens, mask))]


def _as_of_now(model: HookedTransformer) -> HookedTransformer:
    """A copy of the model whose data hooks are traced again if what their functions read has changed."""
    copy = model._copy(model.modules)
    copy._hooks = tuple(
        each if each.is_plain else dataclasses.replace(each, hook=_hook_as_of_now(each.hook)) for each in model._hooks
    )
    return copy


def _hook_as_of_now(edit: DataHook) -> DataHook:
    function = edit.func
    if not isinstance(function, Steering):
        function = AsOfNow(function)
    elif function.schedule is not None:
        function = dataclasses.replace(function, schedule=AsOfNow(function.schedule))
    return DataHook(function, *edit.args, **edit.keywords)


def _new_program(request: RunRequest, reduce: AsOfNow, n_ahead: int) -> Callable:
    takes_input = _takes_input(reduce.function)

    @jax.jit
    def program(model: HookedTransformer, tokens: Int[Array, "b p"], mask: Bool[Array, "b p"]) -> Any:
        model_input = ModelInput(tokens, None, mask, mask)
        behind = jax.tree.map(lambda array: array[:, : array.shape[1] - n_ahead], model_input)
        logits, captured, length = model._run_padded(behind, request, model._hooks)
        cache = ActivationCache.of(captured, model, length)
        return reduce(logits, cache, model_input) if takes_input else reduce(logits, cache)

    return program


@functools.lru_cache(maxsize=16)
def _kept_program(request: RunRequest, reduce: AsOfNow, n_ahead: int) -> Callable:
    """A few programs are kept, so that the next call with the same function compiles nothing."""
    return _new_program(request, reduce, n_ahead)


def _takes_input(reduce: Callable) -> bool:
    """Whether the function has a third positional parameter without a default."""
    try:
        parameters = inspect.signature(reduce).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [each for each in parameters if each.kind in positional and each.default is inspect.Parameter.empty]
    return len(needed) >= 3
