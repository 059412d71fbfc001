"""Statistics of activations over a data set: means, and the contexts in which each neuron is most active.

Axes: b batch, p position, n neuron, k rank.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens.batch.contexts import Reader, positive
from jaxlens.batch.per_token import (
    Skip,
    TokenActivations,
    activations_program,
    check_skip,
    each_context,
    kept_tokens,
    token_names,
)  # fmt: skip
from jaxlens.batch.sources import Source
from jaxlens.batch.stream import BATCH_TOKENS
from jaxlens.hooks.names import HookName
from jaxlens.hooks.plan import HookSpec
from jaxlens.model.transformer import HookedTransformer


class Means(dict[str, np.ndarray]):
    """Mean activations by name, float32. `counts` is the number of tokens of each mean: 0 where the mean is NaN."""

    counts: np.ndarray


def mean_activations(
    model: HookedTransformer, data: Any, names: HookName | list[HookName],
    by: Literal["dataset", "token", "position"] = "dataset", *, skip: Skip = "bos and padding",
    hooks: Sequence[HookSpec] | None = None, batch_tokens: int = BATCH_TOKENS, max_length: int | None = None,
    column: str | None = None, prepend_bos: bool | None = None, progress: bool | None = None,
) -> Means:  # fmt: skip
    """The mean of activations over the tokens of a data set, for mean ablation and for steering vectors.

    It is one mean for the whole data set, or one for each token of the vocabulary [v, …], or for each position [p, …].
    Sums are float64. `skip` says which tokens do not count, as in `harvest`; the other arguments are those of `run`.

    Raises:
        HookError: A name matches no hook point, or an activation has no position axis.
        ValueError: `by` is unknown, or no token is left.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> means = mean_activations(model, [[1, 2], [3, 4, 5]], "blocks.0.hook_resid_post")
        >>> means["blocks.0.hook_resid_post"].shape, int(means.counts)
        ((8,), 5)
    """
    reader = Reader(model, max_length, prepend_bos)
    n_groups = {"dataset": 1, "token": model.cfg.d_vocab, "position": reader.max_length}
    if by not in list(n_groups):
        raise ValueError(f'by is {by!r}; expected "dataset", "token" or "position"')
    check_skip(skip)
    activations = TokenActivations(token_names(model.cfg, names), "float32")
    program = activations_program(model, activations, hooks)
    sums, counts = {}, np.zeros(n_groups[by], np.int64)
    for context, values in each_context(program, Source.of(data, column), reader, batch_tokens, progress):
        kept = kept_tokens(context, skip, model.tokenizer)
        groups = {"dataset": np.zeros(len(kept), int), "token": context.tokens, "position": np.arange(len(kept))}[by]
        np.add.at(counts, groups[kept], 1)
        for name, value in values.items():
            if name not in sums:
                sums[name] = np.zeros((len(counts), *value.shape[1:]))
            total = sums[name]
            if by == "dataset":
                total[0] += value[kept].sum(0, dtype=np.float64)
            else:
                np.add.at(total, groups[kept], value[kept])
    return _means(sums, counts, by)


def _means(sums: Mapping[str, np.ndarray], counts: Int[np.ndarray, "g"], by: str) -> Means:
    if not counts.any():
        raise ValueError("no token is left for the mean; give more data, or skip less")
    if by == "position":
        counts = np.trim_zeros(counts, "b")
    with np.errstate(invalid="ignore", divide="ignore"):
        divided = {
            name: (total[: len(counts)] / counts.reshape(-1, *[1] * (total.ndim - 1))).astype(np.float32)
            for name, total in sums.items()
        }
    means = Means({name: value[0] for name, value in divided.items()} if by == "dataset" else divided)
    means.counts = counts[0] if by == "dataset" else counts
    return means


# --- the strongest activations


@dataclasses.dataclass(frozen=True, eq=False)
class TopActivations:
    """The k documents in which each neuron is most active: its highest value in each, strongest first.

    `values`, `documents` and `positions` have the axes of the activation, then k. Where there were fewer documents,
    the value is -inf and the document -1. `tokens` holds the tokens of these documents.
    """

    values: Float[np.ndarray, "n k"]
    documents: Int[np.ndarray, "n k"]
    positions: Int[np.ndarray, "n k"]
    tokens: Mapping[int, Int[np.ndarray, "p"]]

    def contexts(self, neuron: int | tuple[int, ...], width: int = 10) -> list[tuple[float, Int[np.ndarray, "p"], int]]:
        """For a neuron, each value, the tokens around it (up to `width` on each side), and its index in them.

        If the activation has several axes, such as head and d_head, `neuron` is a tuple with an index for each.

        Raises:
            IndexError: There is no such neuron.
            ValueError: `width` is negative.
        """
        if width < 0:
            raise ValueError(f"width is {width}; expected a number of tokens of at least 0")
        if self.values[neuron].ndim != 1:
            raise IndexError(f"neuron is {neuron!r}; expected an index for each axis of {self.values.shape[:-1]}")
        found = zip(self.values[neuron], self.documents[neuron], self.positions[neuron], strict=True)
        cut = [(value, self.tokens[document], position) for value, document, position in found if document >= 0]
        return [
            (float(value), tokens[max(0, position - width) : position + width + 1], int(min(position, width)))
            for value, tokens, position in cut
        ]


def top_activations(
    model: HookedTransformer, data: Any, names: HookName | list[HookName], k: int = 10, *,
    encode: Callable[[Array], Array] | None = None, skip: Skip = "bos and padding",
    hooks: Sequence[HookSpec] | None = None, batch_tokens: int = BATCH_TOKENS, max_length: int | None = None,
    column: str | None = None, prepend_bos: bool | None = None, progress: bool | None = None,
) -> dict[str, TopActivations]:  # fmt: skip
    """The documents in which each neuron is most active, by name of the activation. The data may exceed memory.

    `encode` is a function of an activation [b p …] whose results [b p feature] are ranked instead, such as the encoder
    of a sparse autoencoder. It is compiled with the model. `skip` says which tokens do not count, as in `harvest`; the
    other arguments are those of `run`. A NaN has no rank: it is left out, with a warning.

    Raises:
        HookError: A name matches no hook point, or an activation has no position axis.
        ValueError: `k` is not positive, or no token is left.

    Example:
        >>> import jaxlens
        >>> model = jaxlens.HookedTransformer(jaxlens.Config(
        ...     n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8))
        >>> top = top_activations(model, [[1, 2], [3, 4, 5]], "blocks.0.mlp.hook_post", k=1)["blocks.0.mlp.hook_post"]
        >>> top.values.shape, len(top.contexts(0))
        ((32, 1), 1)
    """
    reader, k = Reader(model, max_length, prepend_bos), positive("k", k)
    if not (encode is None or callable(encode)):
        raise TypeError(f"encode is {encode!r}; expected a function of an activation, such as sae.encode")
    check_skip(skip)
    activations = TokenActivations(token_names(model.cfg, names), "float32", encode)
    program = activations_program(model, activations, hooks)
    rankings: dict[str, _Ranking] = {}
    for context, values in each_context(program, Source.of(data, column), reader, batch_tokens, progress):
        kept = kept_tokens(context, skip, model.tokenizer)
        if kept.any():
            for name, value in values.items():
                if name not in rankings:
                    rankings[name] = _Ranking(name, value.shape[1:], k)
                rankings[name].add(context, value, kept)
    if not rankings:
        raise ValueError("no token is left to rank; give more data, or skip less")
    return {name: ranking.result() for name, ranking in rankings.items()}


class _Ranking:
    """The strongest activations so far, and a few documents whose rank is not known yet."""

    def __init__(self, name: str, shape: tuple[int, ...], k: int):
        self._name, self._shape, self._k, n = name, shape, k, int(np.prod(shape))
        self._values = np.full((k, n), -np.inf, np.float32)
        self._where = np.full((2, k, n), -1, np.int64)  # documents and positions
        self._new: list[tuple[int, np.ndarray, np.ndarray]] = []
        self._tokens: dict[int, np.ndarray] = {}
        self._has_warned = False

    def add(self, context: Any, value: np.ndarray, kept: np.ndarray) -> None:
        value = value.reshape(len(value), -1)
        is_ranked = kept[:, None] & ~np.isnan(value)
        if not self._has_warned and not is_ranked[kept].all():
            self._has_warned = True
            where = f"{self._name} has NaN in document {context.document}"
            warnings.warn(f"{where}; NaN is left out, as in all documents", UserWarning, stacklevel=3)
        value = np.where(is_ranked, value, -np.inf)
        positions = value.argmax(0)
        self._new.append((context.document, value[positions, np.arange(value.shape[1])], positions))
        self._tokens[context.document] = context.tokens
        if len(self._new) >= max(self._k, 16):
            self._rank()

    def _rank(self) -> None:
        numbers, values, positions = zip(*self._new, strict=True) if self._new else ((), (), ())
        self._new = []
        if numbers:
            documents = np.broadcast_to(np.array(numbers)[:, None], (len(numbers), self._values.shape[1]))
            values = np.concatenate([self._values, np.stack(values)])
            where = np.concatenate([self._where, np.stack([documents, np.stack(positions)])], axis=1)
            # equal values: the first document, whatever the order in which they came
            order = np.lexsort((where[0], -values), axis=0)[: self._k]
            self._values = np.take_along_axis(values, order, 0)
            self._where = np.take_along_axis(where, order[None], 1)
        kept = set(np.unique(self._where[0]).tolist())
        self._tokens = {document: tokens for document, tokens in self._tokens.items() if document in kept}

    def result(self) -> TopActivations:
        self._rank()
        values, documents, positions = (
            np.moveaxis(array, 0, -1).reshape(*self._shape, self._k) for array in (self._values, *self._where)
        )
        return TopActivations(values, documents, positions, self._tokens)
