"""Documents as contexts, the token rows that a model runs, and batches of contexts of similar length.

Axes: b batch, p position.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from jaxlens.batch.sources import Document, Source
from jaxlens.model.request import bos_choice, check_in_vocabulary, required_tokenizer
from jaxlens.model.transformer import HookedTransformer

DOCUMENTS_AT_ONCE = 64
"""The number of documents that are tokenized together."""


def positive(name: str, number: Any) -> int:
    """A number as an int. Raises ValueError, which names the argument, if it is not a positive integer."""
    if not _is_integer(number) or number < 1:
        raise ValueError(f"{name} is {number!r}; expected a positive integer")
    return int(number)


def _is_integer(number: Any) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """Tokens that the model runs as one row: a document, or its part number `part` if it was split."""

    document: int
    tokens: Int[np.ndarray, "p"]
    part: int = 0
    is_last: bool = True

    def __len__(self) -> int:
        return len(self.tokens)


class Reader:
    """Makes contexts of documents: tokenizes texts, and cuts or splits documents of more than `max_length` tokens.

    BOS is prepended to texts as in a call of the model; rows of tokens are taken as they are. With `splits`, a long
    document becomes several contexts, each with its own BOS. Otherwise it is cut, and the first cut gives a warning.
    `n_ahead` is the number of tokens at the end of a context that are predicted, but not run.

    Raises:
        TypeError: `model` is not a HookedTransformer.
        ValueError: `max_length` is not between 1 and n_ctx + n_ahead; a document has no tokens, or tokens outside the
            vocabulary.
    """

    def __init__(
        self, model: Any, max_length: int | None = None, prepend_bos: bool | None = None, splits: bool = False,
        n_ahead: int = 0,
    ):  # fmt: skip
        if not isinstance(model, HookedTransformer):
            raise TypeError(f"model is a {type(model).__name__}; expected a HookedTransformer")
        n_ctx = model.cfg.n_ctx
        most = n_ctx + n_ahead
        if not (max_length is None or (_is_integer(max_length) and 1 <= max_length <= most)):
            plus = f" plus {n_ahead}" if n_ahead else ""
            raise ValueError(f"max_length is {max_length!r}; expected 1 to {most}, the n_ctx of the model{plus}")
        self.max_length = n_ctx if max_length is None else int(max_length)
        self._model, self.prepend_bos, self.splits = model, prepend_bos, splits
        self.n_cut = 0

    def contexts(self, source: Source, start: int = 0) -> Iterator[Context]:
        """The contexts of the documents from number `start` on."""
        documents = enumerate(source.read(start), start)
        while group := list(itertools.islice(documents, DOCUMENTS_AT_ONCE)):
            for (number, _), tokens in zip(group, self._tokens([document for _, document in group]), strict=True):
                yield from self._parts(number, tokens)

    def _tokens(self, documents: Sequence[Document]) -> list[np.ndarray]:
        """The tokens of documents. Texts get BOS, and rows of tokens do not."""
        texts = [document for document in documents if isinstance(document, str)]
        tokenizer = required_tokenizer(self._model.tokenizer) if texts else None
        encoded = iter(tokenizer.rows(texts, bos_choice(self._model.cfg, self.prepend_bos)) if texts else ())
        return [np.asarray(next(encoded) if isinstance(text, str) else text, np.int32) for text in documents]

    def _parts(self, number: int, tokens: Int[np.ndarray, "p"]) -> Iterator[Context]:
        if not tokens.size:
            raise ValueError(f"document {number} has no tokens; remove it from the data")
        try:
            check_in_vocabulary(tokens, self._model.cfg.d_vocab)
        except ValueError as error:
            raise ValueError(f"document {number}: {error}") from None
        if len(tokens) > self.max_length and not self.splits:
            tokens = self._cut(number, tokens)
        pieces = self._split(tokens)
        for part, piece in enumerate(pieces):
            yield Context(number, piece, part, part == len(pieces) - 1)

    def _cut(self, number: int, tokens: np.ndarray) -> np.ndarray:
        if not self.n_cut:
            longer = f"document {number} has {len(tokens)} tokens and is cut to max_length = {self.max_length}"
            warnings.warn(f"{longer}, as are all documents that are longer", UserWarning, stacklevel=2)
        self.n_cut += 1
        return tokens[: self.max_length]

    def _split(self, tokens: np.ndarray) -> list[np.ndarray]:
        """Contexts of at most `max_length` tokens. If the document begins with BOS, each of them does."""
        bos = None if self._model.tokenizer is None else self._model.tokenizer.bos_token_id
        repeated = tokens[: int(tokens[0] == bos and self.max_length > 1)]
        step, rest = self.max_length - len(repeated), tokens[len(repeated) :]
        pieces = [rest[first : first + step] for first in range(0, max(1, len(rest)), step)]
        return [np.concatenate([repeated, piece]) for piece in pieces]


# --- batches


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Contexts of similar length as one array of tokens, padded to the length and the size of their program.

    `mask` is False on padding. Rows after those of the contexts repeat the first of them.
    """

    contexts: list[Context]
    tokens: Int[np.ndarray, "b p"]
    mask: Bool[np.ndarray, "b p"]


def bucket_length(length: int, limit: int) -> int:
    """The length of the program for rows of up to `length` tokens: one of 16, 32, 48, 64, 80 … 128, 160 … 256, 320 …

    There are four lengths between a power of two and the next one, so rows are at most a fourth longer than needed
    (those of at least 64 tokens).

    Example:
        >>> [bucket_length(length, 1000) for length in (1, 17, 65, 130, 999)]
        [16, 32, 80, 160, 1000]
    """
    step = max(16, (1 << (length - 1).bit_length()) // 8)
    return max(length, min(-(-length // step) * step, limit))


def batches(
    contexts: Iterable[Context], batch_tokens: int, limit: int, side: str = "left", multiple: int = 1, n_ahead: int = 0
) -> Iterator[Batch]:
    """The contexts, longest first, in batches of at most `batch_tokens` tokens with their padding.

    Full batches of a length have the same number of rows, a multiple of `multiple`, so that they run in one program.
    If a quarter or a sixteenth of the rows is enough for the last batch, it has only these, and a program of its own.
    The last `n_ahead` tokens of a row are not run, so these lengths are those of the others.
    """
    batch_tokens = positive("batch_tokens", batch_tokens)
    ordered = sorted(contexts, key=len, reverse=True)
    while ordered:
        length = bucket_length(max(1, len(ordered[0]) - n_ahead), max(1, limit - n_ahead)) + n_ahead
        sizes = [max(multiple, batch_tokens // part // length // multiple * multiple) for part in (16, 4, 1)]
        chosen, ordered = ordered[: sizes[-1]], ordered[sizes[-1] :]
        yield _batch(chosen, next(size for size in sizes if size >= len(chosen)), length, side)


def _batch(contexts: list[Context], n_rows: int, length: int, side: str) -> Batch:
    tokens, mask = np.zeros((n_rows, length), np.int32), np.zeros((n_rows, length), bool)
    for row, context in enumerate(contexts + contexts[:1] * (n_rows - len(contexts))):
        columns = slice(length - len(context), None) if side == "left" else slice(len(context))
        tokens[row, columns], mask[row, columns] = context.tokens, True
    return Batch(contexts, tokens, mask)
