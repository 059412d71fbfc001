"""Runs of a model over a data set, in batches of contexts of similar length, with one compiled program per length.

Axes: b batch, p position.
"""

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jaxtyping import Array

from jaxlens.batch.background import made_ahead
from jaxlens.batch.contexts import Batch, Context, Reader
from jaxlens.batch.program import Program, Side
from jaxlens.batch.sources import Source
from jaxlens.hooks.names import HookName
from jaxlens.hooks.plan import HookSpec
from jaxlens.model.cache.activation_cache import ActivationCache
from jaxlens.model.request import LayerRange
from jaxlens.model.transformer import HookedTransformer

BATCH_TOKENS = 2048
WINDOW = 32
"""The number of batches whose contexts are sorted by length together."""


def run(
    model: HookedTransformer, data: Any, *, names_filter: HookName | list[HookName] | None = None,
    hooks: Sequence[HookSpec] | None = None, reduce: Callable | None = None, batch_tokens: int = BATCH_TOKENS,
    max_length: int | None = None, column: str | None = None, prepend_bos: bool | None = None,
    padding_side: Side = "left", stop_at_layer: int | None = None, progress: bool | None = None,
) -> Iterator[Any]:  # fmt: skip
    """Runs the model on each document of a data set. Yields a result for each, in the order of the data.

    `data` is a list of texts or rows of tokens, a `datasets.Dataset`, the path of a `.jsonl`, `.parquet` or `.txt`
    file, or any iterable; it may be larger than memory. Documents of similar length run together, in batches of at most
    `batch_tokens` tokens; each length has one compiled program. A thread reads and tokenizes ahead. Documents of more
    than `max_length` tokens (default: n_ctx) are cut, with a warning.

    `reduce` is a function of logits [b p v] and the ActivationCache of a batch. It is compiled with the model, so that
    only its results leave the device: arrays, or a dict or tuple of arrays, with an axis of rows first. Its result
    for a document is its row. Axes with the length of the batch are cut to the length of the document. Rows are padded
    on the left, so that position -1 is the last token of each row. If the function has a third parameter, it receives
    the input, with `tokens` and their `mask` [b p], which is False on padding.
    `names_filter` selects the activations of the cache, as in `run_with_cache`. Without `reduce`, the result is the
    logits and the cache of the document, as `run_with_cache` returns them.

    `hooks` are those of the run: `(name, fn)`, where `fn` may be `jaxlens.hook(fn, **data)`. Functions are traced once
    per program, so they cannot look at the values.

    Raises:
        ValueError: A document has no tokens, or tokens outside the vocabulary; or a result of `reduce` has no axis of
            rows. The message names the document or the shape.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> last = lambda logits, cache: cache["resid_post", -1][:, -1]
        >>> [row.shape for row in run(model, [[1, 2], [3, 4, 5]], names_filter="blocks.1.hook_resid_post", reduce=last)]
        [(8,), (8,)]
    """
    if padding_side not in ("left", "right"):
        raise ValueError(f'padding_side is {padding_side!r}; expected "left" or "right"')
    reader = Reader(model, max_length, prepend_bos)
    source = Source.of(data, column)
    layers = LayerRange.of(model.cfg, None, stop_at_layer)
    hooked = with_hooks(model, hooks, layers)
    wanted = layers.wanted(model.cfg, names_filter)
    program = Program(hooked, wanted, layers, _whole if reduce is None else reduce, padding_side)

    def results() -> Iterator[Any]:
        with progress_bar(progress, source.size, "documents") as bar:
            for result in in_order(program, reader.contexts(source), batch_tokens, reader, bar):
                yield _run_result(model, *result) if reduce is None else result

    return results()


def with_hooks(model: HookedTransformer, hooks: Sequence[HookSpec] | None, layers: LayerRange) -> HookedTransformer:
    """A copy of the model with more hooks, each of which must act in these layers."""
    hooked = model._copy(model.modules)
    hooked._hooks += model._registered(hooks, layers)
    return hooked


def _whole(logits: Array, cache: ActivationCache) -> tuple[Array, dict[str, Array]]:
    """The result without a `reduce`."""
    return logits, dict(cache.items())


def _run_result(model: HookedTransformer, logits: Any, cache: dict[str, Any]) -> tuple[Any, ActivationCache]:
    """The logits and the cache of a document, with a batch axis, as `run_with_cache` returns them."""
    return logits[None], ActivationCache({name: value[None] for name, value in cache.items()}, model)


# --- the stream


def in_order(
    program: Program, contexts: Iterable[Context], batch_tokens: int, reader: Reader, bar: Any
) -> Iterator[Any]:  # fmt: skip
    """The result of each context, in their order. Each document is one context. `bar` counts them."""
    done: dict[int, Any] = {}
    number = 0
    for batch, result in overlapped(program, batches_of(program, contexts, batch_tokens, reader)):
        done |= zip((context.document for context in batch.contexts), program.rows(batch, result), strict=True)
        bar.update(len(batch.contexts))
        while number in done:
            yield done.pop(number)
            number += 1


def batches_of(program: Program, contexts: Iterable[Context], batch_tokens: int, reader: Reader) -> Iterator[Batch]:
    """Contexts in batches of similar length, made in the background."""
    windows, limit = _windows(contexts, batch_tokens * WINDOW), reader.max_length
    return made_ahead(batch for window in windows for batch in program.batches(window, batch_tokens, limit))


def overlapped(program: Program, ready: Iterable[Batch]) -> Iterator[tuple[Batch, Any]]:
    """Each batch and its result. The device already computes the next batch while the caller reads a result.

    An error in `ready` is raised after the results of all batches before it.
    """
    running: collections.deque[tuple[Batch, Any]] = collections.deque()
    try:
        for batch in ready:
            running.append((batch, program(batch.tokens, batch.mask)))
            if len(running) > 1:
                yield running.popleft()
    except Exception:
        yield from running
        raise
    yield from running


def _windows(contexts: Iterable[Context], n_tokens: int) -> Iterator[Sequence[Context]]:
    """Consecutive contexts with about `n_tokens` tokens in all."""
    window: list[Context] = []
    total = 0
    for context in contexts:
        window.append(context)
        total += len(context)
        if total >= n_tokens:
            yield window
            window, total = [], 0
    if window:
        yield window


@contextlib.contextmanager
def progress_bar(progress: bool | None, size: int | None, unit: str, initial: int = 0) -> Iterator[Any]:
    """A progress bar: always, never, or (None) if stderr is a terminal."""
    from tqdm import tqdm

    disable = None if progress is None else not progress
    with tqdm(total=size, initial=initial, unit=f" {unit}", unit_scale=True, disable=disable, leave=False) as bar:
        yield bar
