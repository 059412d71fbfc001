"""The work of a harvest: the activations that it stores, and how documents are divided into shards.

Axes: p position, r row.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from jaxlens.batch.background import made_ahead
from jaxlens.batch.contexts import Context, Reader
from jaxlens.batch.per_token import Skip, kept_tokens
from jaxlens.batch.program import Program
from jaxlens.batch.sources import Source
from jaxlens.batch.stream import overlapped

WHERE = {"document": np.int64, "tokens": np.int32, "position": np.int32, "part": np.int32}
"""The columns of each row besides its activations: the number of its document, its token, its position in its context,
and the number of its context in the document.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """What a harvest computes, from which documents, and which of their tokens it stores."""

    program: Program
    shapes: dict[str, tuple[int, ...]]
    dtype: np.dtype
    source: Source
    reader: Reader
    skip: Skip
    tokenizer: Any
    shard_tokens: int
    batch_tokens: int

    @property
    def row_bytes(self) -> int:
        """The size of a row."""
        where = sum(np.dtype(dtype).itemsize for dtype in WHERE.values())
        return where + self.dtype.itemsize * sum(int(np.prod(shape)) for shape in self.shapes.values())

    def kept(self, context: Context) -> Bool[np.ndarray, "p"]:
        """Which tokens of a context are stored."""
        return kept_tokens(context, self.skip, self.tokenizer)

    def parts(self, start: int = 0) -> Iterator["Part"]:
        """The documents from number `start` on, divided into the shards of the harvest.

        The last shard also has the documents after it that store nothing, so it is known only at the end.
        """
        contexts: list[Context] = []
        kept: list[np.ndarray] = []
        first, n_rows, complete = start, 0, None
        for context in self.reader.contexts(self.source, start):
            contexts.append(context)
            kept.append(self.kept(context))
            n_rows += int(kept[-1].sum())
            if complete is not None and n_rows:
                yield complete
                complete = None
            if context.is_last and n_rows >= self.shard_tokens:
                complete = Part(first, context.document + 1, contexts, kept)
                contexts, kept, first, n_rows = [], [], context.document + 1, 0
        if n_rows:
            yield Part(first, contexts[-1].document + 1, contexts, kept)
        elif complete is not None:
            stop = contexts[-1].document + 1 if contexts else complete.stop
            yield dataclasses.replace(complete, stop=stop)


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """The documents `first` to `stop` - 1, whose stored tokens make a shard. What it holds depends on nothing else."""

    first: int
    stop: int
    contexts: list[Context]
    kept: list[Bool[np.ndarray, "p"]]

    @property
    def n_rows(self) -> int:
        return sum(int(kept.sum()) for kept in self.kept)

    def columns(self, work: Work, on_rows: Callable[[int], Any] = lambda n: None) -> dict[str, np.ndarray]:
        """The rows of the shard, in the order of the data. Calls `on_rows` with the number of rows of each batch."""
        ends = np.cumsum([int(kept.sum()) for kept in self.kept])
        place = {id(context): i for i, context in enumerate(self.contexts)}
        columns = self._where()
        columns |= {name: np.empty((self.n_rows, *shape), work.dtype) for name, shape in work.shapes.items()}
        worth_running = [context for context, kept in zip(self.contexts, self.kept, strict=True) if kept.any()]
        ready = work.program.batches(worth_running, work.batch_tokens, work.reader.max_length)
        for batch, result in overlapped(work.program, made_ahead(ready)):
            n_rows = 0
            for context, values in zip(batch.contexts, work.program.rows(batch, result), strict=True):
                i = place[id(context)]
                n = int(self.kept[i].sum())
                for name, value in values.items():
                    columns[name][ends[i] - n : ends[i]] = value[self.kept[i]]
                n_rows += n
            on_rows(n_rows)
        return columns

    def _where(self) -> dict[str, np.ndarray]:
        """The columns that say where each row comes from."""
        pairs = list(zip(self.contexts, self.kept, strict=True))
        values = {
            "document": [np.full(kept.sum(), context.document) for context, kept in pairs],
            "tokens": [context.tokens[kept] for context, kept in pairs],
            "position": [np.flatnonzero(kept) for context, kept in pairs],
            "part": [np.full(kept.sum(), context.part) for context, kept in pairs],
        }
        return {name: np.concatenate(values[name]).astype(dtype) for name, dtype in WHERE.items()}


def first_documents(work: Work, n: int) -> list[list[Context]]:
    """The contexts of the first `n` documents."""
    return list(itertools.islice(_by_document(work.reader.contexts(work.source)), n))


def _by_document(contexts: Iterable[Context]) -> Iterator[list[Context]]:
    for _, group in itertools.groupby(contexts, key=lambda context: context.document):
        yield list(group)


def spans_processes(model: Any) -> bool:
    """Whether the weights of a model are divided over several processes, which must then run together."""
    return any(isinstance(leaf, jax.Array) and not leaf.is_fully_addressable for leaf in jax.tree.leaves(model))
